"""
The plan of a pass over a dataset that knows all lengths: filter, chunking and batch limits on index arrays.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy

from returnn.datasets._basic.epoch_lens import EpochLens, epoch_lens_of
from returnn.datasets._loading.bucket_plan import iter_bucket_plans
from returnn.datasets._loading.chunking import chunk_items
from returnn.datasets._loading.collate import target_dtype
from returnn.datasets._loading.items import Items
from returnn.datasets._loading.limits import BatchState, SeqPosition, cut_batches
from returnn.datasets._loading.source import PassContext, known_num_seqs
from returnn.errors import DatasetError
from returnn.options.custom_batching import BucketOptions

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["BulkKeys", "Planner", "probe_bulk"]

#: Sequences for which the plan is made at a time.
SEGMENT_SEQS = 65536
#: Smaller at the start of a pass, for a quick first batch.
FIRST_SEGMENT_SEQS = 1024


@dataclasses.dataclass(frozen=True)
class BulkKeys:
    """
    The data keys of a dataset with the bulk protocol.

    :param keys: all, in order
    :param lens: of those with a time axis: by position in the epoch
    :param frame_bytes: per key: bytes of one frame (or of one scalar)
    """

    keys: list[str]
    lens: dict[str, EpochLens]
    frame_bytes: dict[str, int]

    @property
    def scalar_keys(self) -> list[str]:
        """:return: keys without a time axis"""
        return [key for key in self.keys if key not in self.lens]


def probe_bulk(dataset: Dataset) -> BulkKeys | None:
    """
    :param dataset: with the order of an epoch
    :return: None: the dataset does not know all lengths, or cannot read at random
    """
    if not dataset.supports_bulk():
        return None
    num_seqs = known_num_seqs(dataset)
    if not num_seqs:
        return None
    keys = list(dataset.get_data_keys())
    first = dataset.read_seqs(numpy.zeros(1, dtype=numpy.int64), keys)
    if first is None:
        return None
    lens: dict[str, EpochLens] = {}
    frame_bytes: dict[str, int] = {}
    for key in keys:
        ragged = first[key]
        frame_bytes[key] = max(int(numpy.prod(ragged.flat.shape[1:])) * target_dtype(ragged.flat.dtype).itemsize, 1)
        if ragged.lens is None:
            continue
        key_lens = epoch_lens_of(dataset, key)
        if key_lens is None:
            return None
        lens[key] = key_lens
        if len(lens[key]) != num_seqs:
            raise DatasetError(
                f"{dataset!r}: get_epoch_seq_lens({key!r}) gives {len(lens[key])} lengths, but num_seqs is {num_seqs}. "
                "It must give one per sequence of the current epoch."
            )
    return BulkKeys(keys, lens, frame_bytes)


class Planner:
    """Filter, chunking and batch limits, on arrays."""

    def __init__(self, ctx: PassContext, keys: BulkKeys):
        """
        :param ctx: started
        :param keys: of the dataset
        """
        self._ctx = ctx
        self._keys = keys
        ctx.check_keys(keys.keys)
        chunking = ctx.options.chunking
        self._streams = chunking.for_keys(list(keys.lens)) if chunking is not None else None

    def _segment(self, start: int, end: int) -> Items:
        """:return: items of the shard's sequences [start, end)"""
        ctx = self._ctx
        seq_idx = numpy.arange(start, end, dtype=numpy.int64)
        positions = slice(ctx.epoch_position(start), ctx.epoch_position(end - 1) + 1, ctx.shard_count)
        lens = {key: a[positions] for key, a in self._keys.lens.items()}
        if ctx.options.len_filter and lens:
            keep, dropped = ctx.options.len_filter.select(lens)
            for (reason, key), count in dropped.items():
                ctx.drop(reason, key, count)
            seq_idx = seq_idx[keep]
            lens = {key: a[keep] for key, a in lens.items()}
        if self._streams is None:
            return Items(seq_idx, {}, lens)
        chunking = ctx.options.chunking
        assert chunking is not None
        fracs = ctx.rng.random(len(seq_idx)) if chunking.random_start else None
        if not self._streams:
            return Items(seq_idx, {}, lens)
        seq, starts, chunk_lens = chunk_items(lens, self._streams, start_fracs=fracs)
        num_without = len(seq_idx) - len(numpy.unique(seq))
        if num_without:
            ctx.drop("no chunk", None, num_without)
        all_lens = {key: chunk_lens[key] if key in chunk_lens else a[seq] for key, a in lens.items()}
        return Items(seq_idx[seq], starts, all_lens)

    def _cut(self, items: Items, *, is_end: bool, is_first: bool) -> list[int]:
        limits = self._ctx.options.limits
        extra = ["seq_idx", "seq_tag", *self._keys.scalar_keys] if limits.count_scalars else []
        lens = items.lens
        if not lens:  # only data without time axis
            lens = {"seq_idx": numpy.ones(len(items), dtype=numpy.int64)}
            extra = [key for key in extra if key != "seq_idx"]
        if not limits.has_functions:
            ends, dropped = cut_batches(limits, lens, extra_keys=extra, is_end=is_end, is_first=is_first)
        else:
            ends, dropped = self._cut_with_functions(items, lens, extra, is_end=is_end, is_first=is_first)
        if dropped:
            self._ctx.drop("drop_last", None, dropped)
        return ends

    def _cut_with_functions(
        self, items: Items, lens: dict[str, numpy.ndarray], extra: Sequence[str], *, is_end: bool, is_first: bool
    ) -> tuple[list[int], int]:
        ctx = self._ctx
        state = BatchState(ctx.options.limits)
        lists = {key: a.tolist() for key, a in lens.items()}
        ends: list[int] = []
        num_seqs = ctx.stats.num_seqs
        for i, seq_idx in enumerate(items.seq_idx.tolist()):
            frac = ctx.complete_frac(ctx.epoch_position(seq_idx), num_seqs) if num_seqs else None
            lengths = {**{key: values[i] for key, values in lists.items()}, **dict.fromkeys(extra, 1)}
            if state.add(lengths, SeqPosition(seq_idx, ctx.epoch, num_seqs, frac)):
                ends.append(i)
        start = ends[-1] if ends else 0
        if not is_end or start == len(items):
            return ends, 0
        if state.keeps_last(is_only_batch=is_first and not ends):
            return [*ends, len(items)], 0
        return ends, len(items) - start

    def iter_plans(self) -> Iterator[tuple[Items, list[int]]]:
        """:return: items, and the end of each batch in them"""
        ctx = self._ctx
        total = ctx.stats.num_seqs or 0
        num = len(range(ctx.shard_index, total, ctx.shard_count))
        custom = ctx.options.custom
        if isinstance(custom, BucketOptions):
            starts = range(0, num, SEGMENT_SEQS)
            segments = (self._segment(start, min(start + SEGMENT_SEQS, num)) for start in starts)
            yield from iter_bucket_plans(ctx, custom, segments)
            return
        pending: Items | None = None
        is_first = True
        # Functions may draw random numbers or count: give each sequence to them once, so no pending rest is cut again.
        step = max(num, 1) if ctx.options.limits.has_functions else FIRST_SEGMENT_SEQS
        end = 0
        while end < num:
            start, end = end, min(end + step, num)
            step = min(step * 4, SEGMENT_SEQS)
            items = self._segment(start, end)
            if pending is not None:
                items = pending.append(items)
            ends = self._cut(items, is_end=end == num, is_first=is_first) if len(items) else []
            is_first = is_first and not ends
            if ends:
                yield items, ends
            pending = items.take(slice(ends[-1] if ends else 0, None))
