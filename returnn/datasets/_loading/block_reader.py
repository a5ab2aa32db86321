"""
Reads the data of some batches at once, and writes it into padded arrays.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from returnn.datasets._loading.collate import NumpyBatch, is_list_dtype, target_dtype
from returnn.datasets._loading.items import Items
from returnn.datasets._loading.plan import BulkKeys
from returnn.datasets._loading.source import Alloc, BatchInfo, Block, PassContext
from returnn.datasets._loading.status_page import current_page, knows_tags_before_data
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError

__all__ = ["BlockReader"]

#: Items with more bytes than this are copied one by one, others all at once with an index array.
_SCATTER_MAX_BYTES = 1024


class BlockReader:
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

    def read_block(self, items: Items, ends: Sequence[int]) -> Block:
        """
        :param items: of these batches only
        :param ends: of each batch
        """
        ctx = self._ctx
        positions = items.seq_idx * ctx.shard_count + ctx.shard_index
        source = numpy.arange(len(positions), dtype=numpy.int64)
        unique = positions
        if ctx.options.custom is not None:  # not in the order of the sequences
            unique, source = numpy.unique(positions, return_inverse=True)
        elif ctx.options.chunking is not None:
            is_new = numpy.ones(len(positions), dtype=bool)
            is_new[1:] = positions[1:] != positions[:-1]
            unique = positions[is_new]
            source = numpy.cumsum(is_new) - 1
        ctx.position, ctx.last_position, ctx.seq_tag = int(unique[0]), int(unique[-1]), None
        page = current_page()
        if page is not None:
            first_tag = ctx.dataset.get_seq_tags(unique[:1])[0] if knows_tags_before_data(ctx.dataset) else None
            page.at(ctx.position, first_tag, ctx.last_position)
        data = self._read(unique)
        tags = ctx.dataset.get_seq_tags(positions)
        ctx.position = ctx.last_position = None
        bounds = numpy.concatenate([[0], numpy.asarray(ends, dtype=numpy.int64)])
        parts = self._collate(data, items, source, bounds)
        seq_idxs = items.seq_idx.tolist()
        block = Block([], [])
        if ctx.options.custom is not None:
            lasts = numpy.maximum.reduceat(positions, bounds[:-1])
        else:
            lasts = positions[bounds[1:] - 1]
        fracs = ctx.complete_fracs(lasts, ctx.stats.num_seqs or 1)
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
            block.batches.append(batch)
            block.infos.append(BatchInfo(end - start, frames, padded, fracs[b]))
        return block

    def _collate(
        self, data: dict[str, Ragged], items: Items, source: numpy.ndarray, bounds: numpy.ndarray
    ) -> list[_Part]:
        parts = [_Part(key, data[key], items, source, bounds) for key in self._keys.keys]
        specs = [spec for part in parts for spec in part.specs]
        arrays = iter(self._alloc(specs))
        for part in parts:
            part.fill([next(arrays) for _ in part.specs])
        return parts


class _Part:
    """One data key of a block."""

    def __init__(self, key: str, ragged: Ragged, items: Items, source: numpy.ndarray, bounds: numpy.ndarray):
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
