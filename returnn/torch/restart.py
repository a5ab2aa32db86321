"""What a continued training needs beside model and optimizer to go on as if it had not been interrupted."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch

from returnn._state import state
from returnn.errors import ConfigError
from returnn.learning_rate_control import LearningRateControl
from returnn.log import log
from returnn.torch.data.loader import Loader
from returnn.torch.rng_state import RngState, get_rng_state, set_rng_state

__all__ = ["RestartState", "consume_rng", "isolated_rng", "mark_resumed", "missing_evals", "was_used"]

_RNG_KEY = "rng_state"
_LR_KEY = "learning_rate_control"
_FIRST_EPOCH_KEY = "first_epoch"
_RNG_OF_OTHERS_KEY = "rng_state_of_other_ranks"
_POSITION_KEY = "position"
_DATA_KEY = "data"


@dataclasses.dataclass(frozen=True)
class RestartState:
    """Entries of the model checkpoint that the peers ignore."""

    #: state of the random generators of this rank
    rng: RngState | None = None
    #: of rank 1, 2, ...
    rng_of_others: Sequence[RngState] = ()
    #: text of the learning-rate file; used if there is no such file
    learning_rates: str | None = None
    #: the first epoch that this training did, over all restarts
    first_epoch: int | None = None
    #: of a checkpoint inside an epoch: where it is in there, see :mod:`returnn.torch.epoch_position`. Any: plain values, tensors
    position: Mapping[str, Any] | None = None
    #: dataset name -> fingerprint. Any: see :mod:`returnn.datasets.fingerprint`
    data: Mapping[str, Any] | None = None

    @classmethod
    def capture(
        cls,
        lr_control: LearningRateControl | None,
        *,
        first_epoch: int | None,
        rng: RngState | None = None,
        rng_of_others: Sequence[RngState] = (),
        position: Mapping[str, Any] | None = None,
        data: Mapping[str, Any] | None = None,
    ) -> RestartState:
        """
        :param lr_control: its rates and scores are kept
        :param first_epoch: of this training
        :param rng: states of the random generators to go on with; None: as they are
        :param rng_of_others: states of the random generators of rank 1, 2, ...
        :param position: inside an epoch; None: the epoch is done. Any: see the attribute
        :param data: fingerprints of the datasets; None: not known. Any: see the attribute
        :return: state of this process now
        """
        return cls(
            rng=rng or get_rng_state(),
            position=position,
            data=data,
            rng_of_others=rng_of_others,
            learning_rates=None if lr_control is None else lr_control.to_text(),
            first_epoch=first_epoch,
        )

    @classmethod
    def from_checkpoint(cls, checkpoint: object) -> RestartState:
        """:return: what the checkpoint has for this rank; those of the peers have nothing"""
        if not isinstance(checkpoint, dict):
            return cls()
        of_others = checkpoint.get(_RNG_OF_OTHERS_KEY)
        of_others = of_others if isinstance(of_others, list) else []
        rng, text, first = (checkpoint.get(k) for k in (_RNG_KEY, _LR_KEY, _FIRST_EPOCH_KEY))
        position, data = checkpoint.get(_POSITION_KEY), checkpoint.get(_DATA_KEY)
        if state.rank:
            rng = of_others[state.rank - 1] if len(of_others) == state.world_size - 1 else None
        return cls(
            rng=rng if isinstance(rng, dict) else None,
            rng_of_others=of_others,
            learning_rates=text if isinstance(text, str) else None,
            first_epoch=first if isinstance(first, int) else None,
            position=position if isinstance(position, dict) else None,
            data=data if isinstance(data, dict) else None,
        )

    def as_entries(self) -> dict[str, Any]:
        """:return: for the checkpoint; tensors, numbers, str and containers of them only"""
        entries: dict[str, Any] = {_RNG_KEY: self.rng, _LR_KEY: self.learning_rates, _FIRST_EPOCH_KEY: self.first_epoch}
        if self.rng_of_others:
            entries[_RNG_OF_OTHERS_KEY] = list(self.rng_of_others)
        if self.position is not None:
            entries[_POSITION_KEY] = dict(self.position)
        if self.data:
            entries[_DATA_KEY] = dict(self.data)
        return {k: v for k, v in entries.items() if v is not None}

    def restore_rng(self) -> bool:
        """
        Set the random generators as they were after the last training step of that epoch.

        :return: whether the checkpoint had them
        """
        num_ranks = len(self.rng_of_others) + 1
        if num_ranks != state.world_size and (self.rng is not None or state.rank):
            print(
                f"The checkpoint was written by {num_ranks} processes, now there are {state.world_size}: "
                "random numbers (dropout) differ from those of an uninterrupted run.",
                file=log.v3,
            )
            if self.rng is None:
                return False
        if self.rng is None:
            print(
                "The checkpoint has no state of the random generators (older version, or another program): "
                "training goes on, but dropout and the like differ from an uninterrupted run.",
                file=log.v3,
            )
            return False
        set_rng_state(self.rng)
        return True

    def restore_learning_rates(self, lr_control: LearningRateControl) -> None:
        """Take learning rates and scores from the checkpoint if they are not in a learning-rate file."""
        if self.learning_rates and not lr_control.filename:
            lr_control.update_from_text(self.learning_rates, source="the checkpoint")


def mark_resumed(loader: object, resumed: bool = True) -> None:
    """
    :param loader: ours: its first iterator counts as a later one for the random draws. A custom engine's own: nothing
    :param resumed:
    """
    if isinstance(loader, Loader):
        loader.resumed = resumed


def was_used(loader: object) -> bool:
    """:return: whether the loader, in this run or before it, had an iterator; of a custom engine's own: not known, True"""
    return not isinstance(loader, Loader) or loader.was_used


def consume_rng(loader: object) -> None:
    """
    Draw from torch's generator what a new iterator over the loader draws.

    :param loader: ours, or a DataLoader of torch that a custom engine made
    """
    if isinstance(loader, Loader):
        loader.consume_rng()
    elif isinstance(loader, torch.utils.data.DataLoader) and not loader.num_workers:
        iter(loader)


@contextlib.contextmanager
def isolated_rng(device: str | torch.device) -> Iterator[None]:
    """Restore the random generators at exit."""
    del device
    saved = get_rng_state()
    try:
        yield
    finally:
        set_rng_state(saved)


def missing_evals(lr_control: LearningRateControl, *, last_epoch: int, eval_names: Sequence[str]) -> list[str]:
    """
    :param lr_control: with the scores
    :param last_epoch: finished epoch whose model was loaded
    :param eval_names: eval datasets
    :return: eval datasets without score of the last epoch. Empty if no scores are kept at all
    :raises ConfigError: an earlier epoch lacks scores of a dataset that other epochs have
    """

    def keys(epoch: int) -> list[str]:
        return list(lr_control.get_epoch_error_dict(epoch))

    def is_eval_key(key: str, name: str) -> bool:
        return key.startswith(f"{name}_loss_") or key.startswith(f"{name}_score")

    if not any(keys(epoch) for epoch in range(1, last_epoch + 1)):
        return []  # no learning-rate file, and a checkpoint without scores: nothing was ever stored
    known = [n for n in eval_names if any(is_eval_key(k, n) for e in range(1, last_epoch) for k in keys(e))]
    for epoch in range(1, last_epoch):
        if not keys(epoch):
            continue  # e.g. training continued from a given checkpoint with start_epoch
        for name in known:
            if not any(is_eval_key(k, name) for k in keys(epoch)):
                raise ConfigError(
                    f"Scores of epoch {epoch} for {name} are missing. The learning-rate file "
                    f"{lr_control.filename!r} does not belong to these checkpoints, or was edited."
                )
    return [n for n in eval_names if not any(is_eval_key(k, n) for k in keys(last_epoch))]
