"""
Length filter: which sequences are too short or too long.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

__all__ = ["LenFilter", "DropReason"]

#: (reason, data key or None)
DropReason = tuple[str, "str | None"]


class LenFilter:
    """
    Drops a sequence if the length of any data key is below the minimum or above the maximum.
    A number applies to every key that has a time axis, a dict only to its keys.
    """

    def __init__(
        self,
        min_seq_length: int | float | Mapping[str, Any] | None = None,
        max_seq_length: int | float | Mapping[str, Any] | None = None,
    ):
        """
        :param min_seq_length: in frames; dict values are numbers
        :param max_seq_length: in frames; dict values are numbers
        """
        self.min_seq_length = min_seq_length
        self.max_seq_length = max_seq_length

    def __bool__(self) -> bool:
        return self.min_seq_length is not None or self.max_seq_length is not None

    @staticmethod
    def _limit(limit: int | float | Mapping[str, Any] | None, key: str) -> int | float | None:
        if isinstance(limit, Mapping):
            return limit.get(key)
        return limit

    def limit_of(self, reason: str, key: str) -> int | float | None:
        """:return: the limit that a sequence was dropped for"""
        return self._limit({"too short": self.min_seq_length, "too long": self.max_seq_length}.get(reason), key)

    def reason(self, lengths: Mapping[str, int]) -> DropReason | None:
        """
        :param lengths: of each data key with a time axis
        :return: why the sequence is dropped; None: it is kept
        """
        for key, length in lengths.items():
            limit = self._limit(self.min_seq_length, key)
            if limit is not None and length < limit:
                return "too short", key
            limit = self._limit(self.max_seq_length, key)
            if limit is not None and length > limit:
                return "too long", key
        return None

    def select(self, lengths: Mapping[str, numpy.ndarray]) -> tuple[numpy.ndarray, dict[DropReason, int]]:
        """
        :param lengths: per data key with a time axis, int [n]
        :return: bool [n], whether each sequence is kept; and the number of dropped ones by reason (the first that applies)
        """
        num = len(next(iter(lengths.values()))) if lengths else 0
        keep = numpy.ones(num, dtype=bool)
        dropped: dict[DropReason, int] = {}
        for key, lens in lengths.items():
            for reason, limit in (
                ("too short", self._limit(self.min_seq_length, key)),
                ("too long", self._limit(self.max_seq_length, key)),
            ):
                if limit is None:
                    continue
                bad = keep & ((lens < limit) if reason == "too short" else (lens > limit))
                count = int(numpy.count_nonzero(bad))
                if count:
                    dropped[(reason, key)] = count
                    keep &= ~bad
        return keep, dropped

    def unknown_keys(self, known: Sequence[str]) -> list[tuple[str, str]]:
        """
        :param known: keys of the data
        :return: (option, key) for each key of a dict that no data has, so that it never drops anything
        """
        return [
            (name, key)
            for name, limit in (("min_seq_length", self.min_seq_length), ("max_seq_length", self.max_seq_length))
            if isinstance(limit, Mapping)
            for key in limit
            if key not in known
        ]
