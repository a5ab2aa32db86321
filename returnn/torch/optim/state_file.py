"""The part of the updater that writes its state to a file, and goes on with that of a file."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

import torch

from returnn._state import state
from returnn.log import log
from returnn.options.loading import LoadingOptions
from returnn.options.optimizer import read_optimizer
from returnn.torch.checkpoint import load_file, save_file_atomic
from returnn.torch.distributed.tensors import is_sharded, like_parameter
from returnn.torch.optim.skipped_updates import SkippedUpdates
from returnn.torch.optim.state import load_into, pack_state, param_names, unpack_state, wrap_state

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["OptimizerStateFile"]

#: Entry of our part of a checkpoint inside an epoch: counters of that epoch.
_EPOCH_KEY = "running_epoch"


class OptimizerStateFile:
    """Base of the updater; uses attributes that the updater sets."""

    config: Config | Mapping[str, Any]
    learning_rate: float
    network: torch.nn.Module
    optimizer: torch.optim.Optimizer | None
    _grad_scaler: torch.amp.GradScaler | None
    _accum_grad_leftover: Literal["carry", "drop", "flush"]
    _num_accumulated: int
    _num_updates: int
    _group_size: int
    _leftover_logged: bool

    _dialect: Literal["mini", "mainline"]

    @property
    def effective_learning_rate(self) -> float:
        """Of the next step."""
        raise NotImplementedError  # by Updater

    @property
    def _skipped_updates(self) -> SkippedUpdates:
        raise NotImplementedError  # by Updater

    def save_optimizer(self, filename: str, *, epoch: int | None = None, step: int | None = None) -> None:
        """
        Write the optimizer state, and what else a restart needs: scaler, gradients that are not yet applied, counters.
        Of several ranks, only the first writes.
        The form is that of the dialect: bare, or wrapped; see :mod:`returnn.torch.optim.state`.

        :param filename: e.g. "models/epoch.010.opt.pt"
        :param epoch: finished one, for the file; None: not known
        :param step: number of training steps done, for the file; None: not known
        :raises CheckpointError: cannot be written
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        if state.rank:  # engines of users call this on all ranks, which all have the same state
            return
        print(f"Save optimizer under {filename}", file=log.v4)
        save_file_atomic(self.optimizer_file_content(epoch=epoch, step=step), filename)

    def optimizer_file_content(
        self, *, epoch: int | None = None, step: int | None = None, inside_epoch: bool = False
    ) -> dict[str, Any]:
        """
        :param epoch: finished or running one; None: not known
        :param step: number of training steps done; None: not known
        :param inside_epoch: see :meth:`optimizer_state_dict`
        :return: what :meth:`save_optimizer` writes, not copied. Any: see :meth:`optimizer_state_dict`
        """
        content = self.optimizer_state_dict(inside_epoch=inside_epoch)
        if self._dialect == "mainline":
            content = wrap_state(
                content,
                optimizer_opts=read_optimizer(self.config),
                learning_rate=self.effective_learning_rate,
                epoch=epoch,
                step=step,
            )
        return content

    def optimizer_state_dict(self, *, inside_epoch: bool = False) -> dict[str, Any]:
        """
        :param inside_epoch: the epoch goes on after this: with what :meth:`Updater.finish_epoch` will report of it
        :return: content of the optimizer file: the optimizer's state_dict, plus our entry "returnn". Any: see there
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        extra: dict[str, Any] = {
            "param_names": param_names(self.network, self.optimizer),
            "learning_rate": self.learning_rate,
            "num_invalid_in_succession": self._skipped_updates.num_in_succession,
        }
        if self._grad_scaler is not None:
            extra["grad_scaler"] = self._grad_scaler.state_dict()
        if self._num_accumulated:
            extra["accumulated"] = {
                "num_steps": self._num_accumulated,
                "grads": {name: p.grad.detach() for name, p in self.network.named_parameters() if p.grad is not None},
            }
        if inside_epoch:
            extra[_EPOCH_KEY] = {
                "num_updates": self._num_updates,
                "skipped": self._skipped_updates.epoch_state(),
                "group_size": self._group_size,
                "leftover_logged": self._leftover_logged,
            }
        return pack_state(self.optimizer, extra)

    def load_optimizer(self, filename: str) -> None:
        """
        Continue with the state of a file of :meth:`save_optimizer`, of Mini-RETURNN (bare), or of RETURNN (wrapped).

        :param filename:
        :raises CheckpointError: missing, broken, or of another optimizer or model (then also a ValueError)
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        print(f"Load optimizer {filename}", file=log.v4)
        allow_unsafe = LoadingOptions.from_config(self.config).allow_unsafe
        self.load_optimizer_state(
            load_file(filename, map_location=self._load_device(), weights_only=not allow_unsafe), filename
        )

    def load_optimizer_state(self, obj: object, filename: str) -> None:
        """
        :param obj: content of an optimizer file, or of the sharded state of a checkpoint
        :param filename: for messages
        :raises CheckpointError: as :meth:`load_optimizer`
        """
        assert self.optimizer is not None, "create_optimizer was not called"
        loaded = unpack_state(obj, filename)
        for note in load_into(self.optimizer, loaded, param_names(self.network, self.optimizer)):
            print(f"Note: {note}", file=log.v3)
        extra = loaded.extra
        self._skipped_updates.num_in_succession = int(extra.get("num_invalid_in_succession", 0))
        if self._grad_scaler is not None and extra.get("grad_scaler"):
            self._grad_scaler.load_state_dict(dict(extra["grad_scaler"]))
        inside_epoch = extra.get(_EPOCH_KEY)
        self._restore_accumulated(extra.get("accumulated"), filename, inside_epoch=inside_epoch is not None)
        if inside_epoch is not None:
            self._num_updates = int(inside_epoch["num_updates"])
            self._skipped_updates.load_epoch_state(inside_epoch["skipped"])
            self._group_size = int(inside_epoch["group_size"])
            self._leftover_logged = bool(inside_epoch["leftover_logged"])

    def _load_device(self) -> torch.device:
        for param in self.network.parameters():
            return (
                torch.device("cpu") if is_sharded(param) else param.device
            )  # the whole state need not fit into one device
        return torch.device("cpu")

    def _restore_accumulated(self, accumulated: Mapping[str, Any] | None, filename: str, *, inside_epoch: bool) -> None:
        """
        :param accumulated: entry of the file. Any: number of steps, gradients by name
        :param filename: for the log
        :param inside_epoch: the group is that of the running epoch, and no leftover
        """
        if not accumulated:
            return
        if not inside_epoch and self._accum_grad_leftover != "carry":
            print(
                f"Note: gradients of {accumulated['num_steps']} steps in {filename} are dropped (accum_grad_leftover).",
                file=log.v3,
            )
            return
        params = dict(self.network.named_parameters())
        for name, grad in accumulated["grads"].items():
            param = params.get(name)
            if param is not None and param.shape == grad.shape:
                param.grad = like_parameter(grad, param).to(device=param.device, dtype=param.dtype)
        self._num_accumulated = int(accumulated["num_steps"])
