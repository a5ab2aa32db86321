"""
Batch limits: where one batch ends and the next begins.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from returnn.options.batching import BatchingOptions, DropLast, Limit, check_limit_of_function
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["BatchLimits", "BatchState", "SeqPosition", "cut_batches"]


@dataclasses.dataclass(frozen=True)
class SeqPosition:
    """
    Where a sequence is in the epoch, for limits that are functions.

    :param seq_idx: from 0
    :param epoch: None: unknown
    :param num_seqs: of the epoch; None: unknown
    :param complete_frac: 0..1; None: unknown
    """

    seq_idx: int = 0
    epoch: int | None = None
    num_seqs: int | None = None
    complete_frac: float | None = None

    def call(self, func: Callable[..., Any]) -> Any:
        """:return: the limit for this sequence. Any: what the user's function gives"""
        continuous = None
        if self.epoch is not None and self.complete_frac is not None:
            continuous = self.epoch - 1 + self.complete_frac
        elif self.epoch is not None and self.num_seqs:
            continuous = self.epoch - 1 + (self.seq_idx + 1) / self.num_seqs
        return func(epoch=self.epoch, seq_idx=self.seq_idx, epoch_continuous=continuous, **get_fwd_compat_kwargs())


@dataclasses.dataclass(frozen=True)
class BatchLimits:
    """
    :param batch_size: limit of num_seqs x max length, for all keys or per key; may be a function of the sequence
    :param max_seqs: None: no limit
    :param packed_batch_size: limit of the sum of lengths
    :param drop_last: True: the last pending batch is never given; "incomplete": only if more would fit and it is not the only one
    :param count_scalars: keys without a time axis count as length 1 (Mini-RETURNN) instead of not at all (mainline)
    """

    batch_size: Limit = 1
    max_seqs: int | Callable[..., Any] | None = None
    packed_batch_size: Limit = None
    drop_last: DropLast = False
    count_scalars: bool = True

    @classmethod
    def from_options(cls, options: BatchingOptions, *, drop_last: DropLast) -> BatchLimits:
        """
        :param options: checked options
        :param drop_last: what is wanted for this dataset
        """
        return cls(options.batch_size, options.max_seqs, options.packed_batch_size, drop_last, options.count_scalars)

    @property
    def has_functions(self) -> bool:
        """:return: whether any limit is a function"""
        return callable(self.batch_size) or callable(self.max_seqs) or callable(self.packed_batch_size)

    def resolve(self, position: SeqPosition) -> BatchLimits:
        """
        :return: the limits for one sequence, without functions
        :raises OptionError: a function gave something else
        """
        if not self.has_functions:
            return self

        def value(name: str) -> Any:  # Any: each limit has its own type
            limit = getattr(self, name)
            return check_limit_of_function(name, position.call(limit)) if callable(limit) else limit

        max_seqs = value("max_seqs")
        return dataclasses.replace(
            self,
            batch_size=value("batch_size"),
            max_seqs=None if max_seqs is None or max_seqs < 0 else int(max_seqs),
            packed_batch_size=value("packed_batch_size"),
        )

    def unknown_keys(self, known: Sequence[str]) -> list[tuple[str, str]]:
        """:return: (option, key) for each key of a dict that no data has"""
        return [
            (name, key)
            for name, limit in (("batch_size", self.batch_size), ("packed_batch_size", self.packed_batch_size))
            if isinstance(limit, Mapping)
            for key in limit
            if key not in known
        ]


def _exceeds(limit: Limit, values: Mapping[str, int]) -> bool:
    if limit is None:
        return False
    if isinstance(limit, Mapping):
        return any(key in values and values[key] > key_limit for key, key_limit in limit.items())
    return any(value > limit for value in values.values())  # type: ignore[operator]


class BatchState:
    """The batch under construction."""

    def __init__(self, limits: BatchLimits):
        """
        :param limits: may have functions
        """
        self.limits = limits
        self.num_seqs = 0
        self._max_lens: dict[str, int] = {}
        self._sums: dict[str, int] = {}
        self._current = limits

    def add(self, lengths: Mapping[str, int], position: SeqPosition | None = None) -> bool:
        """
        Add a sequence.

        :param lengths: per key, in frames
        :param position: needed if limits are functions
        :return: whether the batch before had to be emitted, so that this sequence is the first of a new one
        """
        limits = self._current = self.limits.resolve(position or SeqPosition())
        emit = self.num_seqs > 0 and self._has_max_seqs
        if emit:
            self._clear()
        num = self.num_seqs + 1
        max_lens = {key: max(length, self._max_lens.get(key, 0)) for key, length in lengths.items()}
        sums = {key: length + self._sums.get(key, 0) for key, length in lengths.items()}
        if self.num_seqs and (
            _exceeds(limits.batch_size, {key: length * num for key, length in max_lens.items()})
            or _exceeds(limits.packed_batch_size, sums)
        ):
            self.num_seqs, self._max_lens, self._sums = 1, dict(lengths), dict(lengths)
            return True
        self.num_seqs, self._max_lens, self._sums = num, max_lens, sums
        return emit

    @property
    def _has_max_seqs(self) -> bool:
        max_seqs = self._current.max_seqs
        return isinstance(max_seqs, int) and self.num_seqs >= max_seqs

    def _clear(self) -> None:
        self.num_seqs, self._max_lens, self._sums = 0, {}, {}

    @property
    def is_full(self) -> bool:
        """:return: whether no further sequence of at least one frame would fit, or there is no limit at all"""
        limits = self._current
        if limits.max_seqs is None and limits.batch_size is None and limits.packed_batch_size is None:
            return True
        if self._has_max_seqs:
            return True
        padded = {key: max(length, 1) * (self.num_seqs + 1) for key, length in self._max_lens.items()}
        return _exceeds(limits.batch_size, padded) or _exceeds(
            limits.packed_batch_size, {key: total + 1 for key, total in self._sums.items()}
        )

    def keeps_last(self, *, is_only_batch: bool) -> bool:
        """
        :param is_only_batch: no batch was emitted before
        :return: whether the pending last batch is given
        """
        drop_last = self.limits.drop_last
        if drop_last == "incomplete":
            return is_only_batch or self.is_full
        return not drop_last


def _padded_limits(
    limits: BatchLimits, lengths: Mapping[str, numpy.ndarray], extra_keys: Sequence[str]
) -> list[tuple[list[int], int | float]]:
    """:return: (lengths, limit) pairs for batch_size without functions"""
    limit = limits.batch_size
    if limit is None:
        return []
    num = len(next(iter(lengths.values()))) if lengths else 0
    if isinstance(limit, Mapping):
        ones = [1] * num
        return [
            (lengths[key].tolist() if key in lengths else ones, key_limit)
            for key, key_limit in limit.items()
            if key in lengths or key in extra_keys
        ]
    # One limit for all keys: only the longest key of each sequence matters.
    longest = numpy.ones(num, dtype=numpy.int64) if extra_keys else numpy.zeros(num, dtype=numpy.int64)
    for lens in lengths.values():
        longest = numpy.maximum(longest, lens)
    return [(longest.tolist(), limit)]  # type: ignore[list-item]


def cut_batches(
    limits: BatchLimits,
    lengths: Mapping[str, numpy.ndarray],
    *,
    extra_keys: Sequence[str],
    is_end: bool,
    is_first: bool,
) -> tuple[list[int], int]:
    """
    Cut items into batches, as a fresh :class:`BatchState` would. Not for limits with functions.

    :param limits: without functions
    :param lengths: per key int64 [n], nonempty dict
    :param extra_keys: keys without a time axis that count as length 1
    :param is_end: no more items follow: the rest is a batch too, if drop_last allows
    :param is_first: no batch was cut before, for drop_last
    :return: end of each batch; number of dropped items at the end (0 if not is_end). Items after the last end are pending
    """
    num = len(next(iter(lengths.values())))
    max_seqs = limits.max_seqs if limits.max_seqs is not None else num + 1
    assert isinstance(max_seqs, int) and not limits.has_functions
    padded = _padded_limits(limits, lengths, extra_keys)
    packed = limits.packed_batch_size
    ends: list[int] = []
    if packed is None and len(padded) <= 1:
        start = _cut_one_limit(*padded[0], max_seqs, ends) if padded else _cut_max_seqs(num, max_seqs, ends)
    else:
        sums: list[tuple[list[int], int | float]] = [
            (lens.tolist(), packed.get(key) if isinstance(packed, Mapping) else packed)  # type: ignore[misc]
            for key, lens in lengths.items()
            if packed is not None and (not isinstance(packed, Mapping) or key in packed)
        ]
        extra_packed = [packed.get(k) if isinstance(packed, Mapping) else packed for k in extra_keys]
        sums += [([1] * num, limit) for limit in extra_packed if limit is not None]  # type: ignore[misc]
        start = _cut_general(padded, sums, num, max_seqs, ends)
    if not is_end or start == num:
        return ends, 0
    state = BatchState(limits)
    for i in range(start, num):
        state.add({**{key: int(lens[i]) for key, lens in lengths.items()}, **dict.fromkeys(extra_keys, 1)})
    if state.keeps_last(is_only_batch=is_first and not ends):
        ends.append(num)
        return ends, 0
    return ends, num - start


def _cut_max_seqs(num: int, max_seqs: int, ends: list[int]) -> int:
    """Only a number of sequences. The last full batch is pending, as more items may follow; :return: start of it"""
    if num == 0:
        return 0
    ends.extend(range(max_seqs, num, max_seqs))
    return ends[-1] if ends else 0


def _cut_one_limit(lens: list[int], limit: int | float, max_seqs: int, ends: list[int]) -> int:
    """The usual case, with one tight loop. :return: start of the pending batch"""
    start, longest = 0, 0
    for i, length in enumerate(lens):
        num = i - start
        new_longest = length if length > longest else longest
        if num and (num >= max_seqs or new_longest * (num + 1) > limit):
            ends.append(i)
            start, longest = i, length
        else:
            longest = new_longest
    return start


def _cut_general(
    padded: list[tuple[list[int], int | float]],
    sums: list[tuple[list[int], int | float]],
    num_items: int,
    max_seqs: int,
    ends: list[int],
) -> int:
    """Several limits. :return: start of the pending batch"""
    start = 0
    longest = [0] * len(padded)
    total = [0] * len(sums)
    for i in range(num_items):
        num = i - start
        new_longest = [max(lens[i], m) for (lens, _), m in zip(padded, longest, strict=True)]
        new_total = [lens[i] + t for (lens, _), t in zip(sums, total, strict=True)]
        if num and (
            num >= max_seqs
            or any(m * (num + 1) > limit for (_, limit), m in zip(padded, new_longest, strict=True))
            or any(t > limit for (_, limit), t in zip(sums, new_total, strict=True))
        ):
            ends.append(i)
            start = i
            new_longest = [lens[i] for lens, _ in padded]
            new_total = [lens[i] for lens, _ in sums]
        longest, total = new_longest, new_total
    return start
