"""
Where a training is inside an epoch: what a checkpoint taken there has beside model, optimizer and random generators.

Format: the entry ``position`` of the model file, made of plain values, lists, dicts and tensors only, so that safe loading
accepts it; see :class:`EpochPosition`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from returnn.engine.losses import LossAccumulator, LossSums
from returnn.errors import CheckpointError
from returnn.torch.epoch_meta import EpochMeta

__all__ = ["EpochPosition", "Phase", "TrainPass"]

#: "train": between two steps of the training pass. "eval": the training pass is done, the evaluation is not.
Phase = Literal["train", "eval"]

_VERSION = 1


@dataclasses.dataclass
class TrainPass:
    """The running training pass, as far as it outlives a stop."""

    meta: EpochMeta
    losses: LossAccumulator
    step_secs: float = 0.0  # in the steps, not waiting for data

    @property
    def num_steps(self) -> int:
        """Steps done."""
        return self.losses.num_steps


@dataclasses.dataclass(frozen=True)
class EpochPosition:
    """The entry of the checkpoint."""

    phase: Phase
    learning_rate: float  # of the epoch
    #: per eval dataset whether its loader had an iterator before, which decides about random draws
    used_eval_loaders: Mapping[str, bool]
    #: of EpochMeta. Empty in "eval", where it is not needed any more
    meta: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    step_secs: float = 0.0
    #: which part of the training is done, in epochs; None: unknown
    epochs_done: float | None = None
    #: Per rank: "loader" (state), "losses" (sums), and with several ranks what differs between them. Empty in "eval". Any: see there
    ranks: Sequence[Mapping[str, Any]] = ()
    num_ranks: int = 1

    def as_entries(self) -> dict[str, Any]:
        """:return: for the checkpoint. Any: plain values, lists, dicts and tensors"""
        entries = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        return {
            **entries,
            "version": _VERSION,
            "used_eval_loaders": dict(self.used_eval_loaders),
            "meta": dict(self.meta),
            "ranks": [dict(rank) for rank in self.ranks],
        }

    @classmethod
    def from_entries(cls, entries: Mapping[str, Any], *, filename: str) -> EpochPosition:
        """
        :param entries: of :meth:`as_entries`. Any: as there
        :param filename: of the checkpoint, for messages
        :raises CheckpointError: of another version, or not such entries
        """
        if entries.get("version") != _VERSION:
            raise CheckpointError(
                f"Checkpoint {filename}: its position inside the epoch has the format {entries.get('version')!r}, expected {_VERSION}. "
                "Go on with the version that wrote it, or remove the file to go on after the last whole epoch."
            )
        try:
            position = cls(**{field.name: entries[field.name] for field in dataclasses.fields(cls)})
        except KeyError as exc:
            raise CheckpointError(
                f"Checkpoint {filename}: its position inside the epoch lacks the entry {exc}."
            ) from exc
        if position.phase == "train" and len(position.ranks) != position.num_ranks:
            raise CheckpointError(f"Checkpoint {filename}: its position inside the epoch is not of all ranks.")
        return position

    @property
    def num_steps(self) -> int:
        """Steps of the epoch that are done."""
        return int(self.ranks[0]["losses"]["num_steps"]) if self.ranks else 0

    @property
    def secs(self) -> float:
        """Seconds that the training pass took so far."""
        return float(self.meta.get("secs", 0.0))

    def train_pass(self, rank: int) -> TrainPass:
        """
        :param rank: of this process
        :return: to go on with
        """
        losses = LossAccumulator.of_sums([_sums_of_entries(self.ranks[rank]["losses"])], skips_nonfinite=True)
        return TrainPass(EpochMeta.going_on(self.meta), losses, self.step_secs)

    @staticmethod
    def entries_of_losses(losses: LossAccumulator) -> dict[str, Any]:
        """
        :param losses: so far; fetches
        :return: for the part of a rank. Any: plain values
        """
        sums = losses.sums()
        return {**dataclasses.asdict(sums), "errors": sorted(sums.errors)}


def _sums_of_entries(entries: Mapping[str, Any]) -> LossSums:
    return LossSums(**{**entries, "errors": set(entries["errors"])})
