"""
The part of the engine that decides whether a training can save and go on inside an epoch, and that goes on there.

Engines of users that train or save in their own ways are left alone: they stop and go on between epochs, as ever.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from returnn._state import state
from returnn.engine.inner_files import inner_checkpoints
from returnn.engine.model_files import StartPoint
from returnn.engine.pauses import PausePlan
from returnn.engine.report import PassReport
from returnn.errors import CheckpointError, DatasetError, UserError
from returnn.learning_rate_control import EpochData
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.inner_checkpoints import InnerCheckpointOptions
from returnn.options.loading import LoadingOptions
from returnn.options.task import TaskOptions
from returnn.torch.checkpoint import find_checkpoint_file, load_file
from returnn.torch.data.loader import Loader
from returnn.torch.data_identity import changed_sequences
from returnn.torch.distributed.start import first_rank_decides
from returnn.torch.epoch_position import EpochPosition, TrainPass
from returnn.torch.eval_passes import EvalPasses
from returnn.torch.start_report import preview_learning_rate
from returnn.torch.step_reports import RawBatch
from returnn.torch.updater import Updater

__all__ = ["InnerStart"]

#: Of the engine. Who overrides one of them may keep state of its own, or save it in own ways.
_OWN_METHODS = (
    *("train", "train_epoch", "run_train_step", "save_model"),
    *("_load_model", "_save_optimizer", "_load_optimizer", "get_epoch_model", "get_start_point"),
)
_OWN_UPDATER_METHODS = ("step", "save_optimizer", "load_optimizer", "finish_epoch", "optimizer_state_dict")


class InnerStart(EvalPasses):
    """Base of the engine; uses attributes that the engine sets."""

    #: of the datasets of a training, by name; on the rank that writes. Any: see returnn.torch.data_identity
    _fingerprints: Mapping[str, Any] = {}
    #: the checkpoint inside an epoch that the training goes on from, without suffix
    _inner_filename: str | None = None
    #: whether the training starts inside an epoch
    _starts_inside = False

    def _get_start_point(self) -> StartPoint:
        raise NotImplementedError  # by Engine

    # ---- what is possible

    def _why_no_inner_checkpoints(self) -> str | None:
        """:return: why this training cannot save inside an epoch, the same on all ranks; None: it can"""
        options = CheckpointOptions.from_config(self.config)
        if options.task != "train":
            return f"task = {options.task!r}"
        if TaskOptions.from_config(self.config).dry_run:
            return "it is a dry run"
        if not (self.model_filename or options.model):
            return "the option model is not set"
        for name in _OWN_METHODS:
            method: Any = getattr(type(self), name)  # Any: functions and bound class methods
            if not getattr(method, "__module__", "").startswith("returnn."):
                return f"the engine {type(self).__name__} has its own {name}"
        ctx = self._distributed
        if ctx is not None and ctx.options.is_fsdp:
            return 'the model is in shards (class "fsdp" in torch_distributed)'
        if ctx is not None and ctx.options.reduce_type == "param":
            return 'each rank has its own weights (reduce_type "param" in torch_distributed)'
        return None

    def _plan_pauses(self) -> None:
        """At the start of the set-up of a training: the limits of time count from here."""
        options = InnerCheckpointOptions.from_config(self.config)
        if self._why_no_inner_checkpoints() is None:
            self._pauses = PausePlan(**dataclasses.asdict(options))

    def _why_not_now(self) -> str | None:
        if self._pauses is None:
            return f"the engine {type(self).__name__} has its own init_train"
        if any(observer.keeps_from_writing for observer in self._observers):
            return "nothing is written while the run is profiled"
        if not isinstance(self._train_dataloader, Loader):
            return f"the engine {type(self).__name__} has its own loader of the training data"
        if not isinstance(self._updater, Updater):
            return f"the engine {type(self).__name__} has its own updater"
        for name in _OWN_UPDATER_METHODS:
            if not getattr(type(self._updater), name).__module__.startswith("returnn."):
                return f"the updater {type(self._updater).__name__} has its own {name}"
        return None

    def _say_why_not(self, reason: str) -> None:
        given = InnerCheckpointOptions.from_config(self.config).given
        if given:
            print(
                f"Warning: no checkpoints inside epochs, since {reason}: {', '.join(given)} has no effect.",
                file=log.v1,
            )
        elif type(self).__module__.startswith("returnn."):
            print(f"No checkpoints inside epochs: {reason}.", file=log.v5)
        else:
            print(
                f"Note: no checkpoints inside epochs, since {reason}; stopped inside an epoch, the training goes on at its start.",
                file=log.v3,
            )

    # ---- going on

    def _choose_train_start(self) -> StartPoint:
        """:return: the checkpoint to go on from, of an epoch or inside one, the same on all ranks"""
        if self._pauses is None:
            start = self._get_start_point()
            options = CheckpointOptions.from_config(self.config)
            inner = inner_checkpoints(options.model, options.final_epoch) if options.task == "train" else {}
            if inner and options.start_epoch is None and max(inner)[0] >= start.start_epoch:
                note = f"warning: {inner[max(inner)]} is not used, since {self._why_no_inner_checkpoints()}."
                start = dataclasses.replace(start, notes=[*start.notes, note])
            return start
        return first_rank_decides(self._newest_usable)

    def _newest_usable(self) -> StartPoint:
        options = CheckpointOptions.from_config(self.config)
        inner = inner_checkpoints(options.model, options.final_epoch)
        notes: list[str] = []
        while True:
            start = self.get_start_point(self.config, inner=inner)
            if start.step is None:
                break
            assert start.filename is not None
            problem = self._why_unusable(start.filename)
            if problem is None:
                break
            notes.append(f"warning: {start.filename} cannot be used to go on: {problem}")
            inner = {key: path for key, path in inner.items() if path != start.filename}
        return dataclasses.replace(start, notes=[*notes, *start.notes])

    def _why_unusable(self, filename: str) -> str | None:
        """:return: why the training cannot go on inside the epoch with this checkpoint; None: it can, the loader is told"""
        try:
            weights_only = not LoadingOptions.from_config(self.config).allow_unsafe
            checkpoint = load_file(find_checkpoint_file(filename), weights_only=weights_only, mmap=True)
            entries = checkpoint.get("position") if isinstance(checkpoint, dict) else None
            if not isinstance(entries, dict):
                return "it does not say where it is in the epoch."
            position = EpochPosition.from_entries(entries, filename=filename)
            if position.num_ranks != state.world_size:
                return (
                    f"it was written by {position.num_ranks} processes, now there are {state.world_size}. "
                    "Inside an epoch their number cannot change."
                )
            if position.phase == "eval":
                return None
            changes = changed_sequences((checkpoint.get("data") or {}).get("train"), self._fingerprints.get("train"))
            if changes:
                return f"the training data have changed since. {' '.join(changes)}"
            if not isinstance(self._train_dataloader, Loader):
                return f"the engine {type(self).__name__} has its own loader of the training data."
            self._train_loader.load_state_dict(position.ranks[0]["loader"])
        except UserError as exc:
            return str(exc)
        return None

    @property
    def _train_loader(self) -> Loader:
        assert isinstance(self._train_dataloader, Loader), "checked in _why_not_now"
        return self._train_dataloader

    def _go_on_inside(self, start: StartPoint) -> None:
        """:param start: whose model was just loaded: its position becomes that of the training, if it has one"""
        if start.step is None:
            return
        if self._restart.position is None:
            raise CheckpointError(f"Checkpoint {start.filename} does not say where it is in its epoch. Remove it.")
        assert start.filename is not None
        position = EpochPosition.from_entries(self._restart.position, filename=start.filename)
        if position.phase == "train":
            self._train_loader.load_state_dict(position.ranks[state.rank]["loader"])
        self._inner_filename = start.filename
        self._position, self._epochs_done = position, position.epochs_done
        assert self.learning_rate_control is not None
        epoch_data = self.learning_rate_control.epoch_data
        planned = preview_learning_rate(self.learning_rate_control, start.start_epoch)
        data = epoch_data.get(start.start_epoch)
        if data is None:
            epoch_data[start.start_epoch] = EpochData(position.learning_rate)
        elif data.learning_rate is None:
            data.learning_rate = position.learning_rate
        now = epoch_data[start.start_epoch].learning_rate
        if planned != now:
            print(
                f"Note: epoch {start.start_epoch} goes on with its learning rate, {now}; by the options as they are now it "
                f"would be {planned}. They hold from the next epoch on.",
                file=log.v1,
            )

    def _secs_of_earlier_runs(self) -> float:
        """:return: seconds that they spent in the epoch that begins"""
        return 0.0 if self._position is None else self._position.secs

    @contextlib.contextmanager
    def _keeping_weights(self, needed: bool) -> Iterator[None]:
        """
        Around functions of the user at the start of a pass, which were called before the pass was interrupted as well: what they
        set in the model they set again, but not its weights and buffers.

        :param needed: False: nothing happens
        """
        if not needed or not self._pass_frame.has_start:
            yield
            return
        assert self._model is not None
        entries = {name: x for name, x in self._model.state_dict().items() if isinstance(x, torch.Tensor)}
        saved = {name: x.detach().clone() for name, x in entries.items()}
        yield
        with torch.no_grad():
            for name, x in entries.items():
                x.copy_(saved[name])

    def _iter_train(self, position: EpochPosition | None) -> Iterator[RawBatch]:
        """
        :param position: to go on at, which the loader knows; None: at the start
        :return: the batches of the pass
        :raises DatasetError: the data have changed, and the position is none in them
        """
        assert self._train_dataloader is not None
        try:
            return iter(self._train_dataloader)
        except DatasetError as exc:
            if position is None:
                raise
            raise DatasetError(
                f"{exc} To start the epoch again from the checkpoint before, remove {self._inner_filename}.pt."
            ) from exc

    def _going_on_train_pass(self, position: EpochPosition, report: PassReport) -> TrainPass:
        """
        When the iterator over the training data is there and nothing else is left to be set up: all random generators, and what
        is special to this rank, as they were.

        :param position: to go on at
        :param report: of the pass
        :return: the pass as it was
        """
        part = position.ranks[state.rank]
        assert self._model is not None
        if self._ranks is not None:
            self._ranks.load_own_state(part, self._model)
        self._restart.restore_rng()
        report.goes_on_after(position.secs)
        print(f"Going on with step {position.num_steps} of {self.get_epoch_str()}.", file=log.v3)
        return position.train_pass(state.rank)
