"""
EpochWiseFilter: keep the shortest sequences in some epochs, e.g. for curriculum learning.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets.seq_order import SeqOrder
from returnn.errors import ConfigError
from returnn.log import log

__all__ = ["EpochWiseFilter", "check_ranges", "options_of_epoch", "num_shortest_with_mean"]

_HELP = "Write e.g. {(1, 5): {'max_mean_len': 1000}}; None or -1 as last epoch is without end."

#: (first epoch or None, last epoch or None or -1), both inclusive -> options. Any: each has its own type
EpochRanges = Mapping[tuple[int | None, int | None], Mapping[str, Any]]


def options_of_epoch(ranges: EpochRanges, epoch: int | None) -> list[Mapping[str, Any]]:
    """
    :param ranges: by epochs
    :param epoch: from 1; None counts as 1
    :return: options of all ranges that hold the epoch, in the order of the ranges. Any: see EpochRanges
    """
    current = epoch or 1
    result = []
    for first, last in sorted(ranges, key=lambda k: (k[0] or 1, float("inf") if k[1] in (None, -1) else k[1] or 0)):
        if (first or 1) <= current and (last in (None, -1) or current <= (last or 0)):
            result.append(ranges[(first, last)])
    return result


def check_ranges(ranges: EpochRanges, *, further_options: Sequence[str] = ()) -> None:
    """
    :param ranges: by epochs, as a user gives them
    :param further_options: of a range, besides those of :class:`EpochWiseFilter`; their values are not checked
    :raises ConfigError: a key is no range, or the options of a range are wrong
    """
    if not isinstance(ranges, Mapping):
        raise ConfigError(
            f"epoch_wise_filter: expected a dict (first epoch, last epoch) -> options, got {ranges!r}. {_HELP}"
        )
    for key, opts in ranges.items():
        if not isinstance(key, tuple) or len(key) != 2 or not all(k is None or isinstance(k, int) for k in key):
            raise ConfigError(
                f"epoch_wise_filter: expected a dict (first epoch, last epoch) -> options, got the key {key!r}. {_HELP}"
            )
        _check_options(opts, f"epoch_wise_filter, epochs {key}", further_options)


def _check_options(opts: Mapping[str, Any], what: str, further_options: Sequence[str] = ()) -> None:
    """:param opts: of one range. Any: each has its own type"""
    if not isinstance(opts, Mapping):
        raise ConfigError(f"{what}: expected a dict of options, got {opts!r}. {_HELP}")
    known = ["max_mean_len", *further_options]
    unknown = sorted(set(opts).difference(known), key=str)
    if unknown:
        raise ConfigError(f"{what}: unknown options {unknown}. Known: {', '.join(map(repr, known))}.")
    limit = opts.get("max_mean_len")
    is_number = isinstance(limit, (int, float, numpy.number)) and not isinstance(limit, bool)
    if limit is not None and not is_number:
        raise ConfigError(f"{what}: max_mean_len must be a number or None, got {limit!r}.")


def num_shortest_with_mean(lens: numpy.ndarray, max_mean_len: float) -> int:
    """
    :param lens: ascending
    :param max_mean_len: wanted
    :return: number of shortest sequences, found by bisection; their mean may exceed the limit by the last one
    """
    sums = numpy.cumsum(lens, dtype=numpy.float64)
    low, high = 1, len(lens) + 1
    while low < high:
        mid = (low + high) // 2
        diff = sums[mid - 1] / mid - max_mean_len
        if diff == 0:
            return mid
        if diff < 0:
            low = mid + 1
        else:
            high = mid
    return low


class EpochWiseFilter:
    """Filters the order of an epoch by options for ranges of epochs."""

    def __init__(self, epochs_opts: EpochRanges, debug_msg_prefix: str = "EpochWiseFilter") -> None:
        """
        :param epochs_opts: ``{(first, last): {"max_mean_len": x}}``
        :param debug_msg_prefix: of log lines
        :raises ConfigError: see :func:`check_ranges`
        """
        check_ranges(epochs_opts)
        self.epochs_opts = epochs_opts
        self.debug_msg_prefix = debug_msg_prefix

    def filter(
        self, epoch: int | None, seq_order: SeqOrder, get_seq_len: Callable[[int], float] | numpy.ndarray
    ) -> SeqOrder:
        """
        :param epoch: from 1
        :param seq_order: corpus indices
        :param get_seq_len: corpus index -> length, as function or array
        :return: those that are kept, in order
        """
        options = options_of_epoch(self.epochs_opts, epoch)
        if not options:
            print(f"{self.debug_msg_prefix}: No filter for this epoch.", file=log.v4)
        for opts in options:
            seq_order = self.filter_epoch(opts, seq_order, get_seq_len, self.debug_msg_prefix)
        return seq_order

    @classmethod
    def filter_epoch(
        cls,
        opts: Mapping[str, Any],
        seq_order: SeqOrder,
        get_seq_len: Callable[[int], float] | numpy.ndarray,
        debug_msg_prefix: str = "EpochWiseFilter",
    ) -> SeqOrder:
        """
        :param opts: "max_mean_len". Any: each option has its own type
        :param seq_order: see :func:`filter`
        :param get_seq_len: see there
        :param debug_msg_prefix: of log lines
        :return: those that are kept, in order
        :raises ConfigError: for unknown or wrong options
        """
        _check_options(opts, "epoch_wise_filter")
        max_mean_len = opts.get("max_mean_len")
        if max_mean_len is None or not len(seq_order):
            return seq_order
        order = numpy.asarray(seq_order, dtype=numpy.int64)
        lens = get_seq_len[order] if isinstance(get_seq_len, numpy.ndarray) else _lens_of(order, get_seq_len)
        by_len = numpy.lexsort((order, lens))
        num = min(num_shortest_with_mean(lens[by_len], max_mean_len), len(order))
        kept = numpy.zeros(len(order), dtype=bool)
        kept[by_len[:num]] = True
        print(
            f"{debug_msg_prefix}: Old mean seq len is {lens.mean()}, new is {lens[kept].mean()}, "
            f"requested max is {max_mean_len}. Old num seqs is {len(order)}, new num seqs is {num}.",
            file=log.v4,
        )
        return order[kept]


def _lens_of(order: Sequence[int] | numpy.ndarray, get_seq_len: Callable[[int], float]) -> numpy.ndarray:
    return numpy.array([get_seq_len(int(i)) for i in order])
