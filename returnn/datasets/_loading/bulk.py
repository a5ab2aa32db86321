"""
Batches from a dataset that knows all lengths before data is read: first a plan made of index arrays, then block reads.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

import numpy

from returnn.datasets._loading.chunking import chunk_items
from returnn.datasets._loading.collate import NumpyBatch, is_list_dtype, target_dtype
from returnn.datasets._loading.limits import BatchState, SeqPosition, cut_batches
from returnn.datasets._loading.source import Alloc, BatchInfo, Block, PassContext, known_num_seqs
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["BulkKeys", "probe_bulk", "iter_blocks_bulk"]

#: Sequences for which the plan is made at a time.
SEGMENT_SEQS = 65536
#: Batches in a block. The first blocks are smaller, for a quick first batch.
MAX_BLOCK_BATCHES = 256
#: Items with more bytes than this are copied one by one, others all at once with an index array.
_SCATTER_MAX_BYTES = 1024


@dataclasses.dataclass(frozen=True)
class BulkKeys:
    """
    The data keys of a dataset with the bulk protocol.

    :param keys: all, in order
    :param lens: of those with a time axis: int64 [num_seqs of the epoch]
    :param frame_bytes: per key: bytes of one frame (or of one scalar)
    """

    keys: list[str]
    lens: dict[str, numpy.ndarray]
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
    lens: dict[str, numpy.ndarray] = {}
    frame_bytes: dict[str, int] = {}
    for key in keys:
        ragged = first[key]
        frame_bytes[key] = max(int(numpy.prod(ragged.flat.shape[1:])) * target_dtype(ragged.flat.dtype).itemsize, 1)
        if ragged.lens is None:
            continue
        key_lens = dataset.get_epoch_seq_lens(key)
        if key_lens is None:
            return None
        lens[key] = numpy.asarray(key_lens, dtype=numpy.int64)
        if len(lens[key]) != num_seqs:
            raise DatasetError(
                f"{dataset!r}: get_epoch_seq_lens({key!r}) gives {len(lens[key])} lengths, but num_seqs is {num_seqs}. "
                "It must give one per sequence of the current epoch."
            )
    return BulkKeys(keys, lens, frame_bytes)


@dataclasses.dataclass
class _Items:
    """Sequences or chunks: arrays [m]."""

    seq_idx: numpy.ndarray  # in the shard
    starts: dict[str, numpy.ndarray]  # only chunked keys
    lens: dict[str, numpy.ndarray]

    def __len__(self) -> int:
        return len(self.seq_idx)

    def take(self, idxs: numpy.ndarray | slice) -> _Items:
        return _Items(
            self.seq_idx[idxs],
            {key: a[idxs] for key, a in self.starts.items()},
            {key: a[idxs] for key, a in self.lens.items()},
        )

    def append(self, other: _Items) -> _Items:
        if not len(self):
            return other
        cat = numpy.concatenate
        return _Items(
            cat([self.seq_idx, other.seq_idx]),
            {key: cat([a, other.starts[key]]) for key, a in self.starts.items()},
            {key: cat([a, other.lens[key]]) for key, a in self.lens.items()},
        )


class _Planner:
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

    def _segment(self, start: int, end: int) -> _Items:
        """:return: items of the shard's sequences [start, end)"""
        ctx = self._ctx
        seq_idx = numpy.arange(start, end, dtype=numpy.int64)
        positions = seq_idx * ctx.shard_count + ctx.shard_index
        lens = {key: a[positions] for key, a in self._keys.lens.items()}
        if ctx.options.len_filter and lens:
            keep, dropped = ctx.options.len_filter.select(lens)
            for (reason, key), count in dropped.items():
                ctx.drop(reason, key, count)
            seq_idx = seq_idx[keep]
            lens = {key: a[keep] for key, a in lens.items()}
        if self._streams is None:
            return _Items(seq_idx, {}, lens)
        chunking = ctx.options.chunking
        assert chunking is not None
        fracs = ctx.rng.random(len(seq_idx)) if chunking.random_start else None
        if not self._streams:
            return _Items(seq_idx, {}, lens)
        seq, starts, chunk_lens = chunk_items(lens, self._streams, start_fracs=fracs)
        num_without = len(seq_idx) - len(numpy.unique(seq))
        if num_without:
            ctx.drop("no chunk", None, num_without)
        all_lens = {key: chunk_lens[key] if key in chunk_lens else a[seq] for key, a in lens.items()}
        return _Items(seq_idx[seq], starts, all_lens)

    def _cut(self, items: _Items, *, is_end: bool, is_first: bool) -> list[int]:
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
        self, items: _Items, lens: dict[str, numpy.ndarray], extra: Sequence[str], *, is_end: bool, is_first: bool
    ) -> tuple[list[int], int]:
        ctx = self._ctx
        state = BatchState(ctx.options.limits)
        lists = {key: a.tolist() for key, a in lens.items()}
        ends: list[int] = []
        num_seqs = ctx.stats.num_seqs
        for i, seq_idx in enumerate(items.seq_idx.tolist()):
            frac = min((ctx.epoch_position(seq_idx) + 1) / num_seqs, 1.0) if num_seqs else None
            lengths = {**{key: values[i] for key, values in lists.items()}, **dict.fromkeys(extra, 1)}
            if state.add(lengths, SeqPosition(seq_idx, ctx.epoch, num_seqs, frac)):
                ends.append(i)
        start = ends[-1] if ends else 0
        if not is_end or start == len(items):
            return ends, 0
        if state.keeps_last(is_only_batch=is_first and not ends):
            return [*ends, len(items)], 0
        return ends, len(items) - start

    def iter_plans(self) -> Iterator[tuple[_Items, list[int]]]:
        """:return: items, and the end of each batch in them"""
        ctx = self._ctx
        total = ctx.stats.num_seqs or 0
        num = len(range(ctx.shard_index, total, ctx.shard_count))
        pending: _Items | None = None
        is_first = True
        # Functions may draw random numbers or count: give each sequence to them once, so no pending rest is cut again.
        step = max(num, 1) if ctx.options.limits.has_functions else SEGMENT_SEQS
        for start in range(0, num, step):
            end = min(start + step, num)
            items = self._segment(start, end)
            if pending is not None:
                items = pending.append(items)
            ends = self._cut(items, is_end=end == num, is_first=is_first) if len(items) else []
            is_first = is_first and not ends
            if ends:
                yield items, ends
            pending = items.take(slice(ends[-1] if ends else 0, None))


class _BlockReader:
    """Reads the data of some batches at once, and writes it into padded arrays."""

    def __init__(self, ctx: PassContext, keys: BulkKeys, alloc: Alloc):
        """
        :param ctx: started
        :param keys: of the dataset
        :param alloc: where the arrays live
        """
        self._ctx = ctx
        self._keys = keys
        self._alloc = alloc
        self._last: tuple[int, dict[str, Ragged]] | None = None  # with chunking: the sequence that goes on

    def _read(self, positions: numpy.ndarray) -> dict[str, Ragged]:
        """:param positions: strictly increasing"""
        dataset, keys = self._ctx.dataset, self._keys.keys
        last, self._last = self._last, None
        is_continued = last is not None and len(positions) and int(positions[0]) == last[0]
        new = positions[1:] if is_continued else positions
        data: dict[str, Ragged] = last[1] if is_continued and last is not None else {}
        if len(new):
            new_data = dataset.read_seqs(new, keys)
            assert new_data is not None, f"{dataset!r}: read_seqs gave data before, and now None"
            data = {k: Ragged.concat([data[k], new_data[k]]) for k in keys} if is_continued else new_data
        if self._ctx.options.chunking is not None:
            tail = numpy.array([len(positions) - 1])
            self._last = int(positions[-1]), {key: ragged.select(tail) for key, ragged in data.items()}
        return data

    def read_block(self, items: _Items, ends: Sequence[int]) -> Block:
        """
        :param items: of these batches only
        :param ends: of each batch
        """
        ctx = self._ctx
        positions = items.seq_idx * ctx.shard_count + ctx.shard_index
        source = numpy.arange(len(positions), dtype=numpy.int64)
        unique = positions
        if ctx.options.chunking is not None:
            is_new = numpy.ones(len(positions), dtype=bool)
            is_new[1:] = positions[1:] != positions[:-1]
            unique = positions[is_new]
            source = numpy.cumsum(is_new) - 1
        ctx.position, ctx.last_position, ctx.seq_tag = int(positions[0]), int(positions[-1]), None
        data = self._read(unique)
        tags = ctx.dataset.get_seq_tags(positions)
        ctx.position = ctx.last_position = None
        bounds = numpy.concatenate([[0], numpy.asarray(ends, dtype=numpy.int64)])
        parts = self._collate(data, items, source, bounds)
        seq_idxs = items.seq_idx.tolist()
        total = ctx.stats.num_seqs or 1
        block = Block([], [])
        edges = bounds.tolist()
        for b, (start, end) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            batch: NumpyBatch = {}
            frames, padded = {}, {}
            for part in parts:
                part.add_to(batch, b, start, end)
                if part.frames is not None:
                    frames[part.key], padded[part.key] = part.frames[b], part.rows[b]
            batch["seq_idx"] = seq_idxs[start:end]
            batch["seq_tag"] = tags[start:end]
            frac = min((int(positions[end - 1]) + 1) / total, 1.0)
            block.batches.append(batch)
            block.infos.append(BatchInfo(end - start, frames, padded, frac))
        return block

    def _collate(
        self, data: dict[str, Ragged], items: _Items, source: numpy.ndarray, bounds: numpy.ndarray
    ) -> list[_Part]:
        parts = [_Part(key, data[key], items, source, bounds) for key in self._keys.keys]
        specs = [spec for part in parts for spec in part.specs]
        arrays = iter(self._alloc(specs))
        for part in parts:
            part.fill([next(arrays) for _ in part.specs])
        return parts


class _Part:
    """One data key of a block."""

    def __init__(self, key: str, ragged: Ragged, items: _Items, source: numpy.ndarray, bounds: numpy.ndarray):
        """
        :param key: data key
        :param ragged: the sequences
        :param items: lengths and starts
        :param source: int64 [m]: which sequence of ragged each item is of
        :param bounds: int64 [num batches + 1]: first item of each batch
        """
        self.key = key
        self._ragged = ragged
        self._source = source
        self._bounds = bounds
        self._num_seqs = numpy.diff(bounds)
        self.is_list = is_list_dtype(ragged.flat.dtype)
        self.frames: list[int] | None = None
        self.rows: list[int] = []
        self._starts = items.starts.get(key)
        self.specs: list[tuple[tuple[int, ...], numpy.dtype]] = []
        int64 = numpy.dtype(numpy.int64)
        num_items, num_batches = len(items), len(bounds) - 1
        trail = ragged.flat.shape[1:]
        dtype = target_dtype(ragged.flat.dtype)
        if ragged.lens is None:
            self._lens = None
            if not self.is_list:
                self.specs = [((num_batches,), int64), ((num_items, *trail), dtype)]
            return
        self._lens = items.lens[key]
        if self._starts is None and not numpy.array_equal(ragged.lens[source], self._lens):
            raise DatasetError(f"data key {key!r}: read_seqs gives other lengths than get_epoch_seq_lens")
        if self.is_list:
            return
        self._max_lens = numpy.maximum.reduceat(self._lens, bounds[:-1])
        rows = self._num_seqs * self._max_lens
        self._row_offsets = numpy.concatenate([[0], numpy.cumsum(rows)])
        self.frames = numpy.add.reduceat(self._lens, bounds[:-1]).tolist()
        self.rows = rows.tolist()
        self.specs = [
            *(((num_batches,), int64), ((num_items,), int64)),
            *[((num_items,), int64) for _ in trail],
            ((int(self._row_offsets[-1]), *trail), dtype),
        ]

    def fill(self, arrays: list[numpy.ndarray]) -> None:
        """:param arrays: zeroed, as specs ask for"""
        if self.is_list:
            return
        ragged = self._ragged
        self._size0 = arrays[0]
        self._size0[:] = self._num_seqs
        self._data = arrays[-1]
        if self._lens is None:
            self._data[:] = ragged.flat[self._source]
            return
        self._sizes = arrays[1:-1]
        self._sizes[0][:] = self._lens
        for size, dim in zip(self._sizes[1:], ragged.flat.shape[1:], strict=True):
            size[:] = dim
        self._views = self._row_offsets.tolist()
        self._shapes = list(zip(self._num_seqs.tolist(), self._max_lens.tolist(), strict=True))
        self._write_frames()

    def _write_frames(self) -> None:
        lens, flat, out = self._lens, self._ragged.flat, self._data
        assert lens is not None
        num_frames = int(lens.sum())
        if not num_frames:
            return
        batch_of_item = numpy.repeat(numpy.arange(len(self._num_seqs)), self._num_seqs)
        in_batch = numpy.arange(len(lens), dtype=numpy.int64) - self._bounds[batch_of_item]
        dest = self._row_offsets[batch_of_item] + in_batch * self._max_lens[batch_of_item]
        src = self._ragged.offsets[self._source]
        if self._starts is not None:
            src = src + self._starts
        if num_frames * (flat.nbytes // max(len(flat), 1)) > _SCATTER_MAX_BYTES * len(lens):
            for d, s, n in zip(dest.tolist(), src.tolist(), lens.tolist(), strict=True):
                out[d : d + n] = flat[s : s + n]
            return
        before = numpy.cumsum(lens) - lens
        frame = numpy.arange(num_frames, dtype=numpy.int64)
        dest_frames = numpy.repeat(dest - before, lens) + frame
        if num_frames == len(flat) and numpy.array_equal(src, before):  # whole sequences, in order
            out[dest_frames] = flat
        else:
            out[dest_frames] = flat[numpy.repeat(src - before, lens) + frame]

    def add_to(self, batch: NumpyBatch, b: int, start: int, end: int) -> None:
        """
        :param batch: gets the entries of this key
        :param b: index of the batch
        :param start: its first item
        :param end: behind its last item
        """
        key = self.key
        if self.is_list:
            batch[key] = [self._value(i) for i in range(start, end)]
            return
        if self._lens is None:
            batch[key] = self._data[start:end]
        else:
            for axis, size in enumerate(self._sizes):
                batch[f"{key}:size{axis + 1}"] = size[start:end]
            rows = self._data[self._views[b] : self._views[b + 1]]
            batch[key] = rows.reshape(self._shapes[b] + rows.shape[1:])
        batch[f"{key}:size0"] = self._size0[b : b + 1].reshape(())

    def _value(self, item: int) -> numpy.ndarray:
        value = self._ragged[int(self._source[item])]
        if self._starts is not None and self._lens is not None:
            start = int(self._starts[item])
            value = value[start : start + int(self._lens[item])]
        return value


def iter_blocks_bulk(ctx: PassContext, keys: BulkKeys, alloc: Alloc) -> Iterator[Block]:
    """
    One pass, after ``ctx.start()``.

    :param ctx: started
    :param keys: from :func:`probe_bulk`
    :param alloc: called once per block
    """
    options = ctx.options
    reader = _BlockReader(ctx, keys, alloc)
    first_batch = 0
    max_batches = 1
    for items, ends in _Planner(ctx, keys).iter_plans():
        num_bytes = numpy.zeros(len(items), dtype=numpy.int64)
        for key in keys.keys:
            num_bytes += keys.frame_bytes[key] * (items.lens[key] if key in items.lens else 1)
        bytes_until = numpy.cumsum(num_bytes)
        starts = [0, *ends[:-1]]
        mine = [b for b in range(len(ends)) if options.takes_batch(first_batch + b)]
        first_batch += len(ends)
        i = 0
        while i < len(mine):
            # As many batches as fit into the bytes, at least one.
            block = [mine[i]]
            size = 0
            while True:
                b = block[-1]
                size += int(bytes_until[ends[b] - 1] - (bytes_until[starts[b] - 1] if starts[b] else 0))
                i += 1
                if i >= len(mine) or len(block) >= max_batches or size >= options.block_bytes:
                    break
                block.append(mine[i])
            max_batches = min(max_batches * 2, MAX_BLOCK_BATCHES)
            if ends[block[-1]] - starts[block[0]] == sum(ends[b] - starts[b] for b in block):
                part = items.take(slice(starts[block[0]], ends[block[-1]]))
            else:
                part = items.take(numpy.concatenate([numpy.arange(starts[b], ends[b]) for b in block]))
            block_ends = numpy.cumsum([ends[b] - starts[b] for b in block]).tolist()
            yield reader.read_block(part, block_ends)
