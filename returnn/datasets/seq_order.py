"""
Sequence orders as pure functions on index arrays: orderings, partition, repeat, filter, fixed random subset.

All random draws are on one ``numpy.random.RandomState`` (MT19937) per order, in a fixed sequence of calls:
the results are part of the contract (same orders as the peers for the same seed).
"""

from __future__ import annotations

import dataclasses
import difflib
from collections.abc import Callable, Collection, Sequence
from typing import Any, TypeVar

import numpy

from returnn.datasets._basic.sorting import sort_bins, stable_argsort
from returnn.errors import DatasetError, describe

__all__ = [
    "SeqOrdering",
    "SeqOrder",
    "parse_seq_ordering",
    "epoch_seed",
    "order_seqs",
    "order_to_array",
    "seq_lens_to_array",
    "unique_seqs",
    "part_bounds",
    "part_of_order",
    "filter_seqs",
    "strided_shard",
    "fixed_random_subset",
]

#: A sequence of corpus indices. Compare by content only.
SeqOrder = numpy.ndarray | range | list[int]
#: Lengths as an array over the corpus, or a function corpus index -> length.
SeqLens = numpy.ndarray | Callable[[int], Any]

T = TypeVar("T")

_PLAIN = ("default", "reverse", "sorted", "sorted_reverse")
_WITH_NTH = ("random", "random_sample")
_WITH_BINS = ("laplace", "sort_bin_shuffle", "sort_bin_shuffle_x2")
_FORMS = (
    "default, default_every_n:K, reverse, sorted, sorted_reverse, random[:NTH], random_sample[:NTH], "
    "laplace[:BINS[:NTH]], sort_bin_shuffle[:BINS[:NTH]], sort_bin_shuffle_x2[:BINS[:NTH]], "
    'where BINS is a number of bins ("200") or a number of sequences per bin (".1000")'
)


@dataclasses.dataclass(frozen=True)
class SeqOrdering:
    """A parsed ``seq_ordering`` string."""

    text: str
    kind: str
    every_n: int = 0  # default_every_n
    num_bins: int | None = None  # None: by seqs_per_bin
    seqs_per_bin: int | None = None
    nth: int = 1  # keep the order for that many full epochs

    @property
    def needs_seq_lens(self) -> bool:
        """:return: whether lengths are used"""
        return self.kind.startswith("sorted") or self.kind in _WITH_BINS

    @property
    def is_random(self) -> bool:
        """:return: whether the order depends on the seed"""
        return self.kind in _WITH_NTH or self.kind in _WITH_BINS

    def bins_for(self, num_seqs: int) -> int:
        """:return: number of bins for that many sequences"""
        if self.num_bins is not None:
            return self.num_bins
        assert self.seqs_per_bin, f"{self}"
        return max(num_seqs // self.seqs_per_bin, 2)


def _invalid(text: object, where: str, hint: str) -> DatasetError:
    return DatasetError(
        describe(f"invalid seq_ordering {text!r}", where=where or None) + f" {hint}Valid forms are: {_FORMS}."
    )


def _hint(text: str) -> str:
    """:return: what may have been meant, or empty"""
    kinds = (*_PLAIN, *_WITH_NTH, *_WITH_BINS, "default_every_n")
    for kind in sorted(kinds, key=len, reverse=True):
        rest = text[len(kind) :]
        if text.startswith(kind) and rest[:1] in (".", "-", "_", " ", "=") and rest[1:].lstrip(".").isdigit():
            meant = f"{kind}:{rest if rest[:1] == '.' else rest[1:]}"
            return f'Did you mean "{meant}"? (Some versions silently read this as "{kind}".) '
    close = difflib.get_close_matches(text.split(":")[0], kinds, n=1, cutoff=0.6)
    if not close:
        return ""
    meant = ":".join((close[0], *text.split(":")[1:]))
    return "" if meant == text else f'Did you mean "{meant}"? '


# More is no number of anything, and may be more than int() takes.
_MAX_DIGITS = 18


def _positive(part: str) -> int | None:
    if not part.isascii() or not part.isdigit() or len(part) > _MAX_DIGITS:
        return None
    return int(part) or None


def parse_seq_ordering(text: str, *, where: str = "") -> SeqOrdering:
    """
    Parse a ``seq_ordering`` string by the strict grammar.

    :param text: e.g. "laplace:.1000"
    :param where: shown in the error, e.g. the dataset's repr
    :return: parsed form
    :raises DatasetError: (a ValueError) for anything that is not exactly of a valid form
    """
    if not isinstance(text, str):
        raise _invalid(text, where, f"It must be a str, got {type(text).__name__}. ")
    kind, *args = text.split(":")
    if kind in _PLAIN and not args:
        return SeqOrdering(text, kind)
    if kind in _PLAIN:
        raise _invalid(text, where, f'"{kind}" takes no argument. ')
    if kind == "default_every_n":
        n = _positive(args[0]) if len(args) == 1 else None
        if n is None:
            raise _invalid(text, where, '"default_every_n" needs one positive int. ')
        return SeqOrdering(text, kind, every_n=n)
    if kind in _WITH_NTH:
        nth = 1 if not args else _positive(args[0])
        if nth is None or len(args) > 1:
            raise _invalid(text, where, f'"{kind}" takes at most one argument, a positive int. ')
        return SeqOrdering(text, kind, nth=nth)
    if kind in _WITH_BINS:
        if len(args) > 2:
            raise _invalid(text, where, f'"{kind}" takes at most two arguments. ')
        bins = args[0] if args else "2"
        size = _positive(bins[1:]) if bins.startswith(".") else None
        num = None if bins.startswith(".") else _positive(bins)
        if size is None and num is None:
            raise _invalid(text, where, f'The number of bins "{bins}" must be a positive int, or "." and one. ')
        nth = 1 if len(args) < 2 else _positive(args[1])
        if nth is None:
            raise _invalid(text, where, f'The number of epochs "{args[1]}" must be a positive int. ')
        return SeqOrdering(text, kind, num_bins=num, seqs_per_bin=size, nth=nth)
    raise _invalid(text, where, _hint(text))


def epoch_seed(
    epoch: int | None,
    *,
    partition_epoch: int = 1,
    num_epochs_fixed: int = 1,
    fixed_random_seed: int | None = None,
    random_seed_offset: int = 0,
) -> int:
    """
    The seed of an epoch.

    :param epoch: from 1; None and 0 count as 1
    :param partition_epoch: sub-epochs of one full epoch share the seed
    :param num_epochs_fixed: that many full epochs share the seed
    :param fixed_random_seed: if not None, this is the result; 0 is valid
    :param random_seed_offset: added
    """
    if fixed_random_seed is not None:
        return fixed_random_seed
    seed = epoch or 1
    if partition_epoch > 1:
        seed = (seed - 1) // partition_epoch + 1
    if num_epochs_fixed > 1:
        seed = (seed - 1) // num_epochs_fixed + 1
    return seed + random_seed_offset


def order_to_array(order: SeqOrder) -> numpy.ndarray:
    """
    :param order: corpus indices
    :return: int64 array. ``numpy.asarray`` would go through a range item by item
    """
    if isinstance(order, range):
        return numpy.arange(order.start, order.stop, order.step, dtype=numpy.int64)
    return numpy.asarray(order, dtype=numpy.int64)


def seq_lens_to_array(seq_lens: SeqLens | Sequence[float], num_seqs: int, *, keep_int32: bool = False) -> numpy.ndarray:
    """
    Lengths as int64 or float64 array: unsigned or narrow types would overflow when negated.

    :param seq_lens: array or list over the corpus, or a function corpus index -> number
    :param num_seqs: of the corpus
    :param keep_int32: give an int32 array as it is
    :return: [num_seqs], int64 or float64
    :raises DatasetError: wrong number of lengths, or not numbers
    """
    if callable(seq_lens) and not isinstance(seq_lens, numpy.ndarray):
        array = numpy.asarray([seq_lens(i) for i in range(num_seqs)])
    else:
        array = numpy.asarray(seq_lens)
    if array.shape != (num_seqs,):
        raise DatasetError(
            f"sequence lengths for the ordering: expected one number for each of the {num_seqs} sequences, "
            f"got an array of shape {array.shape} and dtype {array.dtype}. Check get_seq_len / the length file."
        )
    if keep_int32 and array.dtype == numpy.int32:
        return array
    if array.dtype.kind in "biu":
        return array.astype(numpy.int64, copy=False)
    try:
        return array.astype(numpy.float64, copy=False)
    except (TypeError, ValueError) as exc:
        raise DatasetError(
            f"sequence lengths for the ordering are not numbers (dtype {array.dtype}): {exc}. "
            "Check get_seq_len / the length file."
        ) from exc


def order_seqs(
    ordering: SeqOrdering,
    num_seqs: int,
    *,
    seed: int,
    seq_lens: SeqLens | None = None,
    where: str = "",
    wanted: tuple[int, int] | None = None,
) -> SeqOrder:
    """
    The order of the whole corpus.

    :param ordering: parsed
    :param num_seqs: N
    :param seed: by :func:`epoch_seed` with the ordering's ``nth``
    :param seq_lens: array [N] or function; needed by the length-based orderings only
    :param where: shown in errors
    :param wanted: start and end of the positions that matter; the others may be in any order. None: all matter
    :return: corpus indices; [N], except for default_every_n, which drops the last N mod K
    :raises DatasetError: lengths are needed, but not given
    """
    kind = ordering.kind
    if kind == "default":
        return range(num_seqs)
    if kind == "reverse":
        return range(num_seqs - 1, -1, -1)
    if kind == "default_every_n":
        per_row = num_seqs // ordering.every_n
        rows = numpy.arange(per_row * ordering.every_n, dtype=numpy.int64).reshape(ordering.every_n, per_row)
        return rows.T.reshape(-1)
    if kind in _WITH_NTH:
        rnd = _random_state(seed, where)
        drawn = rnd.permutation(num_seqs) if kind == "random" else rnd.randint(0, num_seqs, size=num_seqs)
        return drawn.astype(numpy.int64, copy=False)
    if seq_lens is None:
        raise DatasetError(
            describe(f'seq_ordering "{ordering.text}" needs the sequence lengths, which are not known', where=where)
            + ' Use "default", "reverse" or "random", or give the lengths by seq_order_seq_lens_file.'
        )
    lens = seq_lens_to_array(seq_lens, num_seqs, keep_int32=kind == "laplace")
    if kind == "sorted":
        return stable_argsort(lens)
    if kind == "sorted_reverse":
        return stable_argsort(-lens)
    rnd = _random_state(seed, where)
    num_bins = ordering.bins_for(num_seqs)
    perm = rnd.permutation(num_seqs).astype(numpy.int64, copy=False)
    bounds = numpy.arange(num_bins + 1, dtype=numpy.int64) * num_seqs // num_bins
    if kind == "laplace":
        start, end = (0, num_seqs) if wanted is None else wanted
        if start >= end:
            return perm
        # An even bin first, so that up and down alternate as they do in all.
        first_bin = (int(numpy.searchsorted(bounds, start, side="right")) - 1) // 2 * 2
        bounds = bounds[first_bin : int(numpy.searchsorted(bounds, end, side="left")) + 1]
        start, end = int(bounds[0]), int(bounds[-1])
        perm[start:end] = sort_bins(perm[start:end], lens, bounds - start)
        return perm
    perm = perm[stable_argsort(lens[perm])]
    bin_order = rnd.permutation(num_bins)
    if kind == "sort_bin_shuffle_x2":
        for bin_idx in bin_order:
            # Views into perm, shuffled in place.
            rnd.shuffle(perm[bounds[bin_idx] : bounds[bin_idx + 1]])
    sizes = numpy.diff(bounds)[bin_order]
    out_starts = numpy.cumsum(sizes) - sizes
    return perm[numpy.repeat(bounds[:-1][bin_order] - out_starts, sizes) + numpy.arange(num_seqs)]


def _random_state(seed: int, where: str) -> numpy.random.RandomState:
    if not 0 <= seed < 2**32:
        raise DatasetError(
            describe(
                "the random seed of the epoch is out of range",
                where=where or None,
                expected="0 <= seed < 2 ** 32",
                got=seed,
                todo="Change fixed_random_seed or random_seed_offset",
            )
        )
    return numpy.random.RandomState(seed)


def unique_seqs(order: SeqOrder, tags: Sequence[str]) -> numpy.ndarray:
    """
    :param order: corpus indices
    :param tags: of the whole corpus
    :return: order without those whose tag occurred before
    """
    seen: set[str] = set()
    kept = []
    for idx in numpy.asarray(order).tolist():  # Python ints: much faster to index a list with
        tag = tags[idx]
        if tag not in seen:
            seen.add(tag)
            kept.append(idx)
    return numpy.array(kept, dtype=numpy.int64)


def part_bounds(num_seqs: int, num_parts: int, part_idx: int) -> tuple[int, int]:
    """
    :return: start and end of one of the contiguous parts; the first ``num_seqs % num_parts`` parts have one more
    """
    size, rest = divmod(num_seqs, num_parts)
    return part_idx * size + min(part_idx, rest), (part_idx + 1) * size + min(part_idx + 1, rest)


def part_of_order(
    order: SeqOrder, *, epoch: int | None, partition_epoch: int = 1, num_shards: int = 1, shard_index: int = 0
) -> SeqOrder:
    """
    :param order: of the full epoch
    :param epoch: sub-epoch, from 1
    :param partition_epoch: number of sub-epochs of a full epoch
    :param num_shards: each sub-epoch is cut into that many contiguous shards
    :param shard_index: which of them
    :return: the part of this sub-epoch and shard; may be empty
    """
    num_parts = partition_epoch * num_shards
    if num_parts == 1:
        return order
    part_idx = ((epoch or 1) - 1) % partition_epoch * num_shards + shard_index
    start, end = part_bounds(len(order), num_parts, part_idx)
    return order[start:end]


def filter_seqs(order: SeqOrder, tags: Sequence[str], wanted: Collection[str]) -> numpy.ndarray:
    """
    :param order: corpus indices
    :param tags: of the whole corpus
    :param wanted: tags to keep
    :return: the corpus indices whose tag is wanted, in order
    """
    return numpy.array([i for i in numpy.asarray(order).tolist() if tags[i] in wanted], dtype=numpy.int64)


def strided_shard(order: SeqOrder, *, num_workers: int, worker_id: int) -> SeqOrder:
    """
    :return: every ``num_workers``-th position, from ``worker_id``
    """
    return order[worker_id::num_workers]


def fixed_random_subset(
    entries: Sequence[T], subset: int | float | None, *, seed: int = 42, where: str = ""
) -> list[T]:
    """
    The option ``fixed_random_subset``. Its shuffled order becomes the corpus order.

    :param entries: corpus in native order; not changed
    :param subset: number of entries, or a fraction in (0, 1); falsy: all, unshuffled
    :param seed: of the shuffle
    :param where: shown in the error
    :return: new list
    :raises DatasetError: subset is neither
    """
    result = list(entries)
    if not subset:
        return result
    count: int | float = subset
    if 0 < count < 1:
        count = int(len(result) * count)
    if not isinstance(count, (int, numpy.integer)) or isinstance(count, bool) or count <= 0:
        raise DatasetError(
            describe(
                'option "fixed_random_subset" is invalid',
                where=where or None,
                expected=f"an int > 0, or a fraction in (0, 1) that gives at least one of {len(result)} sequences",
                got=subset,
            )
        )
    # RandomState.shuffle on a list of tuples or arrays would go wrong through array conversion: shuffle the indices.
    idxs = numpy.arange(len(result))
    numpy.random.RandomState(seed).shuffle(idxs)
    return [result[i] for i in idxs[:count]]
