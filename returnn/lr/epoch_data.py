"""What is stored per epoch: the learning rate, the scores, and facts about the run."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["EpochData", "META_PREFIX", "OLD_FORMAT_KEY"]

#: Entries of the score dict with this prefix are facts about the run (strings, times, ...), never scores.
META_PREFIX = ":meta:"
#: Score key of files that store one float instead of a dict.
OLD_FORMAT_KEY = "old_format_score"

_NOT_GIVEN: Any = object()


class EpochData:
    """
    Learning rate and scores of one epoch.

    Accepts both forms in use: ``EpochData(0.1, {"dev_loss_CE": 1.0})``, ``EpochData(learningRate=..., error=...)``,
    and ``EpochData(learning_rate=..., error=..., meta=...)``.
    """

    def __init__(
        self,
        learningRate: float | None = _NOT_GIVEN,
        error: Mapping[str, Any] | float | None = None,
        *,
        learning_rate: float | None = _NOT_GIVEN,
        meta: Mapping[str, Any] | None = None,
    ):
        """
        :param learningRate: learning rate of the epoch, None if not known
        :param error: score key -> value. One number is the old file format.
            Entries with the prefix ":meta:" are moved to ``meta``, without the prefix
        :param learning_rate: the same as learningRate
        :param meta: facts about the run, by name without prefix
        :raises TypeError: not exactly one of learningRate, learning_rate is given
        """
        if (learningRate is _NOT_GIVEN) == (learning_rate is _NOT_GIVEN):
            raise TypeError("EpochData: give exactly one of learningRate, learning_rate")
        value = learning_rate if learningRate is _NOT_GIVEN else learningRate
        self.learning_rate: float | None = None if value is None else float(value)
        self.error: dict[str, float] = {}
        # Any: strings, numbers, None, whatever a peer wrote there.
        self.meta: dict[str, Any] = dict(meta or {})
        if error is None:
            return
        if isinstance(error, Mapping):
            self.update(error)
        else:
            self.error[OLD_FORMAT_KEY] = float(error)

    @property
    def learningRate(self) -> float | None:
        """The same as learning_rate, under its older name."""
        return self.learning_rate

    @learningRate.setter
    def learningRate(self, value: float | None) -> None:
        self.learning_rate = value

    def update(self, error: Mapping[str, Any]) -> None:
        """
        Merge scores into the existing ones.

        :param error: score key -> number; keys with prefix ":meta:" -> anything
        :raises TypeError: a score is not a number
        """
        for key, value in error.items():
            if key.startswith(META_PREFIX):
                self.meta[key[len(META_PREFIX) :]] = value
                continue
            try:
                self.error[key] = float(value)
            except (TypeError, ValueError) as exc:
                raise TypeError(f"score {key!r}: expected a number, got {value!r}") from exc

    def error_with_meta(self) -> dict[str, Any]:
        """:return: the dict as it stands in the file: scores, and the facts under prefixed keys"""
        return {**{META_PREFIX + key: value for key, value in self.meta.items()}, **self.error}

    def __repr__(self) -> str:
        return f"EpochData(learningRate={self.learning_rate!r}, error={self.error_with_meta()!r})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, EpochData):
            return NotImplemented
        return (self.learning_rate, self.error, self.meta) == (other.learning_rate, other.error, other.meta)

    __hash__ = None  # type: ignore[assignment]  # mutable
