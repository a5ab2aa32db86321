"""Several HDF files as one corpus: columns of lengths and tags, and block reads bounded in bytes."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Iterator, Sequence

import h5py
import numpy as np
from h5py import h5d, h5s

from returnn.datasets._basic.shared_corpus import SharedPart, part_key
from returnn.datasets._basic.shared_rooms import array_from_room
from returnn.datasets._hdf.file_index import FileIndex, StreamInfo, read_file_index
from returnn.datasets._hdf.format import HDF_ERRORS, SEQ_TAGS_KEY, worded_hdf_errors
from returnn.datasets._hdf.handles import HandleCache
from returnn.datasets._hdf.known_files import KnownFiles
from returnn.datasets._hdf.shared_files import (
    find_index,
    find_tags,
    index_part,
    join_columns,
    tags_in_room,
    tags_key,
    tags_part,
    tags_room_size,
)
from returnn.datasets._hdf.similar_files import FileForm
from returnn.datasets._hdf.tag_table import TagTable
from returnn.errors import DataFileError, describe

__all__ = ["CorpusReader"]

# Neighbouring ranges of a file are read at once if at most this many bytes lie between them.
_MAX_GAP_BYTES = 64 << 10
# What is needed for the first batches is read alone. All tags, or a whole stream that is kept in memory, only when more than
# this many ranges, or this part of all, were asked for. Small data is read whole at once.
_MAX_FIRST_RANGES = 256
_MAX_FIRST_PART = 1 / 16
_SMALL_BYTES = 1 << 20
_SMALL_NUM_SEQS = 1 << 12
# Tags between two wanted ones that are read rather than skipped.
_MAX_TAG_GAP = 256
# Where few sequences of so many blocks at most start is found from sums over blocks of this many sequences.
_OFFSET_BLOCK = 1 << 12
_MAX_OFFSET_BLOCKS = 128
# Files in a row may differ so often, before all others are read in the general way.
_MAX_FORMS = 20
# Sequences of at least this mean size are copied one by one; shorter ones through one index array.
_MIN_BYTES_FOR_COPY = 4096


#: Begin, end, index of the file.
_Range = tuple[int, int, int]


class CorpusReader:
    """
    All streams of all files. Per data key, the frames of all files form one virtual array in the order of the files,
    so the sequence i of the corpus is the range offsets(key)[i]:offsets(key)[i+1] of it.
    """

    def __init__(self, *, max_memory_bytes: int = 256 << 20, max_open_files: int = 64):
        """
        :param max_memory_bytes: if all streams together are not larger, a stream is read whole soon, and kept
        :param max_open_files: number of files that stay open
        """
        self._known_files = KnownFiles()
        self._forms = _Forms()
        self.handles = HandleCache(max_open_files, on_open=self._known_files)
        self.files: list[FileIndex] = []
        self.file_start: list[int] = [0]
        self._max_memory_bytes = max_memory_bytes
        self._num_bytes = 0  # of all streams
        self._frame_start: dict[str, np.ndarray] = {}
        self._offsets: dict[str, np.ndarray] = {}
        self._block_starts: dict[str, np.ndarray] = {}
        self._lens: dict[str, np.ndarray] = {}
        self._in_memory: dict[str, np.ndarray] = {}
        self._tags: TagTable | None = None
        self._first_reads: dict[str, _FirstReads] = {}

    def inspect(self, filename: str) -> FileIndex:
        """
        :param filename: path
        :return: its metadata, checked
        :raises DataFileError: names the file
        """
        self._known_files.look_at(filename)
        shared = find_index(filename)
        return self._read_index(filename) if shared is None else shared

    def _read_index(self, filename: str) -> FileIndex:
        similar = self._forms.read(filename, self)
        if similar is not None:
            return similar
        with self.handles.use(filename) as h5_file, worded_hdf_errors(filename):
            return read_file_index(h5_file, filename)

    def add(self, index: FileIndex) -> None:
        """
        :param index: of the next file, checked to fit to the earlier ones
        """
        self.files.append(index)
        self._known_files.add(index)
        self.file_start.append(self.file_start[-1] + index.num_seqs)
        self._num_bytes += sum(stream.num_frames * stream.frame_bytes for stream in index.streams.values())
        for cache in (self._frame_start, self._offsets, self._block_starts, self._lens):
            cache.clear()
        self._in_memory.clear()
        self._first_reads.clear()
        self._tags = None

    @property
    def num_seqs(self) -> int:
        """:return: of all files"""
        return self.file_start[-1]

    @property
    def tags(self) -> TagTable:
        """:return: of all files, read at the first use"""
        if self._tags is None:
            key = tags_key(self._known_files.keys(self.files))
            tags = find_tags(key)
            if tags is None:
                size = tags_room_size(self.num_seqs, self._known_files.num_bytes(self.files))
                tags = tags_in_room(key, size, self.num_seqs, self._read_all_tags)
                tags.key = key
            self._tags = tags
        return self._tags

    def _read_all_tags(self) -> TagTable:
        return TagTable.from_hdf(_TagDatasets(self), [index.num_seqs for index in self.files])

    @property
    def tags_key(self) -> str:
        """:return: the key that the table of tags has, or would have"""
        return tags_key(self._known_files.keys(self.files)) if self._tags is None else str(self._tags.key)

    def forget_tags(self) -> None:
        """Free the tags if they take much memory. They are read again when needed."""
        if self._tags is not None and self._tags.columns.nbytes > _SMALL_BYTES:
            self._tags = None

    def shared_parts(self) -> Iterator[SharedPart]:
        """:return: lengths, and tags if they were read"""
        for i, key in enumerate(self._known_files.keys(self.files)):
            yield index_part(self.files[i], key, functools.partial(self._move_lens, i))
        if self._tags is not None and self._tags.key is not None:
            yield tags_part(self._tags, self._tags.key)

    def _move_lens(self, file_idx: int, lens: np.ndarray) -> None:
        """:param lens: of this file, in other memory"""
        self.files[file_idx] = index = dataclasses.replace(self.files[file_idx], lens=lens)
        self._known_files.move(index)
        self._lens.clear()

    def select_tags(self, seq_idxs: np.ndarray) -> list[str]:
        """
        :param seq_idxs: int64 [B] corpus indices
        :return: their tags; the first ones are read alone
        """
        if self._tags is None and self.num_seqs > _SMALL_NUM_SEQS and len(seq_idxs):
            ranges = self._tag_ranges(np.unique(seq_idxs))
            if self._first_reads.setdefault(SEQ_TAGS_KEY, _FirstReads(self.num_seqs)).allow(len(ranges), len(seq_idxs)):
                return self._read_tags(ranges, seq_idxs)
        return self.tags.select(seq_idxs)

    def _tag_ranges(self, wanted: np.ndarray) -> list[_Range]:
        """
        :param wanted: sorted corpus indices
        :return: ranges that have all of them: first corpus index, behind the last one, file
        """
        file_idxs = np.searchsorted(self.file_start, wanted, side="right") - 1
        is_new = (wanted[1:] - wanted[:-1] > _MAX_TAG_GAP) | (file_idxs[1:] != file_idxs[:-1])
        firsts = np.concatenate([[0], np.flatnonzero(is_new) + 1])
        lasts = np.concatenate([firsts[1:], [len(wanted)]]) - 1
        ends = wanted[lasts] + 1
        return list(zip(wanted[firsts].tolist(), ends.tolist(), file_idxs[firsts].tolist(), strict=True))

    def _read_tags(self, ranges: list[_Range], seq_idxs: np.ndarray) -> list[str]:
        found: dict[int, str] = {}
        for start, end, file_idx in self._open_files_first(ranges):
            index = self.files[file_idx]
            offset = self.file_start[file_idx]
            with self.handles.use(index.filename) as h5_file:
                table = TagTable.from_hdf([h5_file[SEQ_TAGS_KEY]], [end - offset], start=start - offset)
            found.update(zip(range(start, end), table.to_list(), strict=True))
        return [found[i] for i in seq_idxs.tolist()]

    def lens(self, key: str) -> np.ndarray:
        """
        :param key: data key, or the phantom target
        :return: integers [num_seqs] in the dtype of the files (usually int32), do not modify
        """
        lens = self._lens.get(key)
        if lens is None:
            columns = [index.column(key) for index in self.files]
            # With one file, or in shared memory, a view without copy.
            lens = join_columns(columns or [np.zeros(0, dtype=np.int32)])
            self._lens[key] = lens
        return lens

    def offsets(self, key: str) -> np.ndarray:
        """
        :param key: data key
        :return: uint32 or int64 [num_seqs+1], positions in the virtual array of this key
        """
        offsets = self._offsets.get(key)
        if offsets is None:
            offsets = array_from_room(
                lambda: self._room_key("offsets", key),
                (self.num_seqs + 1,),
                self._offset_dtype(key),
                lambda out: self._add_up(key, out),
            )
            self._offsets[key] = offsets
        return offsets

    def _offset_dtype(self, key: str) -> np.dtype:
        num_frames = sum(index.streams[key].num_frames for index in self.files if key in index.streams)
        return np.dtype(np.uint32 if num_frames < 2**32 else np.int64)

    def _add_up(self, key: str, out: np.ndarray) -> None:
        out[0] = 0
        np.cumsum(self.lens(key), dtype=out.dtype, out=out[1:])

    def _room_key(self, kind: str, key: str) -> str:
        return part_key(f"hdf {kind}", key, *self._known_files.keys(self.files))

    def shared_rooms(self) -> dict[str, int]:
        """:return: bytes of the arrays that processes share if they come to need them, see :mod:`shared_rooms`"""
        tags = self.tags_key
        rooms = {tags: tags_room_size(self.num_seqs, self._known_files.num_bytes(self.files))}
        for key, stream in self.files[0].streams.items() if self.files else ():
            rooms[self._room_key("offsets", key)] = (self.num_seqs + 1) * self._offset_dtype(key).itemsize
            if stream.dtype.kind != "O" and _SMALL_BYTES < self._num_bytes <= self._max_memory_bytes:
                rooms[self._room_key("stream", key)] = self._num_frames(key) * stream.frame_bytes
        return rooms

    def _starts(self, key: str, seq_idxs: np.ndarray) -> np.ndarray:
        """
        :return: offsets(key)[seq_idxs]. For few sequences of a large corpus at first without making them all
        """
        offsets = self._offsets.get(key)
        if not len(seq_idxs):
            return np.zeros(0, dtype=np.int64)
        if offsets is None and self.num_seqs > _OFFSET_BLOCK * _MAX_OFFSET_BLOCKS:
            blocks, block_of_seq = np.unique(seq_idxs // _OFFSET_BLOCK, return_inverse=True)
            if len(blocks) <= _MAX_OFFSET_BLOCKS:
                return self._starts_in_blocks(key, seq_idxs, blocks, block_of_seq.reshape(-1))
        return (self.offsets(key) if offsets is None else offsets)[seq_idxs].astype(np.int64, copy=False)

    def _starts_in_blocks(
        self, key: str, seq_idxs: np.ndarray, blocks: np.ndarray, block_of_seq: np.ndarray
    ) -> np.ndarray:
        lens = self.lens(key)
        block_starts = self._block_starts.get(key)
        last_block = int(blocks[-1])
        if block_starts is None or len(block_starts) <= last_block:
            # Where the last block starts, its own sum is not needed. With some room for blocks that are asked for later.
            num = min(2 * last_block, (len(lens) - 1) // _OFFSET_BLOCK)
            sums = lens[: num * _OFFSET_BLOCK].reshape(num, _OFFSET_BLOCK).sum(axis=1, dtype=np.int64)
            block_starts = self._block_starts[key] = np.concatenate([[0], np.cumsum(sums)])
        local = np.zeros((len(blocks), _OFFSET_BLOCK + 1), dtype=np.int64)
        for row, block in zip(local, blocks.tolist(), strict=True):
            part = lens[block * _OFFSET_BLOCK : (block + 1) * _OFFSET_BLOCK]
            np.cumsum(part, dtype=np.int64, out=row[1 : 1 + len(part)])
        return block_starts[blocks[block_of_seq]] + local[block_of_seq, seq_idxs % _OFFSET_BLOCK]

    def frame_bytes(self, key: str) -> int:
        """
        :param key: data key
        :return: size of one frame in memory
        """
        return self._stream(key).frame_bytes

    def read(self, key: str, seq_idxs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """
        :param key: data key
        :param seq_idxs: int64 [B] corpus indices, in any order
        :return: (frames of these sequences in this order [sum T, ...], own memory; their lengths int64 [B])
        """
        lens = self.lens(key)[seq_idxs].astype(np.int64)
        starts = self._starts(key, seq_idxs)
        if self._keeps_in_memory(key, starts, int(lens.sum())):
            return _gather(self._load_stream(key), starts, lens), lens
        return self._read_ranges(key, starts, lens), lens

    def close(self) -> None:
        """Close all files; they are opened again when needed."""
        self.handles.close()

    def _stream(self, key: str) -> StreamInfo:
        for index in self.files:
            if key in index.streams:
                return index.streams[key]
        raise KeyError(key)

    def _keeps_in_memory(self, key: str, starts: np.ndarray, num_frames: int) -> bool:
        """
        :param key: data key
        :param starts: of the ranges that are wanted now
        :param num_frames: of them in sum
        :return: whether they are to be taken from the whole stream
        """
        if key in self._in_memory:
            return True
        stream = self._stream(key)
        if stream.dtype.kind == "O" or self._num_bytes > self._max_memory_bytes:
            return False
        if self._num_bytes <= _SMALL_BYTES:
            return True
        first_reads = self._first_reads.get(key)
        if first_reads is None:
            first_reads = self._first_reads[key] = _FirstReads(self._num_frames(key))
        max_gap = _MAX_GAP_BYTES // max(stream.frame_bytes, 1)
        num_ranges = 1 + int(np.count_nonzero(np.diff(np.sort(starts)) > max_gap))
        return not first_reads.allow(num_ranges, num_frames)

    def _num_frames(self, key: str) -> int:
        return sum(index.streams[key].num_frames for index in self.files)

    def _load_stream(self, key: str) -> np.ndarray:
        data = self._in_memory.get(key)
        if data is None:
            stream = self._stream(key)
            data = array_from_room(
                lambda: self._room_key("stream", key),
                (self._num_frames(key), *stream.shape),
                stream.dtype,
                lambda out: self._read_stream(key, out),
            )
            self._in_memory[key] = data
        return data

    def _read_stream(self, key: str, out: np.ndarray) -> None:
        pos = 0
        for index in self.files:
            count = index.streams[key].num_frames
            self._read_direct(index, key, 0, out[pos : pos + count])
            pos += count

    def _read_direct(self, index: FileIndex, key: str, start: int, out: np.ndarray) -> None:
        """
        :param index: file
        :param key: data key
        :param start: frame in this file
        :param out: to be filled
        """
        if not out.size:
            return
        path = index.streams[key].path
        with self.handles.use(index.filename) as h5_file:
            try:
                if out.dtype.kind == "O":
                    out[...] = h5_file[path][start : start + len(out)]
                else:
                    # What h5py's objects do with a slice takes longer than short sequences.
                    array = h5d.open(h5_file.id, path.encode("utf8"))
                    space = array.get_space()
                    space.select_hyperslab((start, *(0,) * (out.ndim - 1)), out.shape)
                    array.read(h5s.create_simple(out.shape), space, out)
            except HDF_ERRORS as exc:
                raise DataFileError(
                    describe(
                        f"Cannot read frames {start} to {start + len(out)} of {path!r} from HDF file {index.filename!r}"
                        f" ({type(exc).__name__}: {exc})",
                        todo="The file is broken or was changed since the start; copy or write it again",
                    )
                ) from exc

    def _open_files_first(self, ranges: list[_Range]) -> list[_Range]:
        """
        :param ranges: the last item of each is the index of its file
        :return: those of open files first. The streams of a batch are read one after the other; if each went through all its files
            in the same order, and not all can be open, each file would be opened for each stream
        """
        if len(ranges) < 2 or ranges[0][-1] == ranges[-1][-1]:
            return ranges
        is_open = self.handles.open_names()
        return sorted(ranges, key=lambda item: self.files[item[-1]].filename not in is_open)

    def _frame_starts(self, key: str) -> np.ndarray:
        """:return: int64 [num files + 1], where the frames of each file start in the virtual array"""
        starts = self._frame_start.get(key)
        if starts is None:
            starts = np.cumsum([0, *(index.streams[key].num_frames for index in self.files)], dtype=np.int64)
            self._frame_start[key] = starts
        return starts

    def _read_ranges(self, key: str, starts: np.ndarray, lens: np.ndarray) -> np.ndarray:
        """
        Read ranges in file order, neighbours at once, and put them into the asked order.

        :param starts: int64 [B] positions in the virtual array
        :param lens: int64 [B]
        :return: [sum lens, ...]
        """
        stream = self._stream(key)
        out_offsets = np.zeros(len(lens) + 1, dtype=np.int64)
        np.cumsum(lens, out=out_offsets[1:])
        try:
            out = np.empty((int(out_offsets[-1]), *stream.shape), dtype=stream.dtype)
        except (MemoryError, ValueError) as exc:  # ValueError: more than an address can be
            raise DataFileError(
                describe(
                    f"There is not enough memory for {len(lens)} sequences of {int(lens.max())} frames at most, of data key {key!r}",
                    where=f"HDF files {self.files[0].filename!r}, ...",
                    todo="Check the lengths in the file",
                )
            ) from exc
        order = np.argsort(starts, kind="stable")
        order = order[lens[order] > 0]
        if not len(order):
            return out
        sorted_starts = starts[order]
        sorted_ends = sorted_starts + lens[order]
        frame_starts = self._frame_starts(key)
        # Last file that starts at or before: empty files before it share the start.
        file_idxs = np.searchsorted(frame_starts, sorted_starts, side="right") - 1
        reached = np.maximum.accumulate(sorted_ends)
        max_gap = _MAX_GAP_BYTES // max(stream.frame_bytes, 1)
        new_group = (sorted_starts[1:] - reached[:-1] > max_gap) | (file_idxs[1:] != file_idxs[:-1])
        bounds = [0, *(np.flatnonzero(new_group) + 1).tolist(), len(order)]
        groups = list(zip(bounds[:-1], bounds[1:], file_idxs[bounds[:-1]].tolist(), strict=True))
        for first, end, file_idx in self._open_files_first(groups):
            start = int(sorted_starts[first])
            stop = int(reached[end - 1])
            file_frame = start - int(frame_starts[file_idx])
            if end == first + 1:
                pos = int(out_offsets[order[first]])
                self._read_direct(self.files[file_idx], key, file_frame, out[pos : pos + stop - start])
                continue
            block = np.empty((stop - start, *stream.shape), dtype=stream.dtype)
            self._read_direct(self.files[file_idx], key, file_frame, block)
            seqs = order[first:end]
            for seq_start, length, pos in zip(
                (starts[seqs] - start).tolist(), lens[seqs].tolist(), out_offsets[seqs].tolist(), strict=True
            ):
                out[pos : pos + length] = block[seq_start : seq_start + length]
        return out


class _Forms:
    """The form of the file before, like which the next one probably is."""

    def __init__(self) -> None:
        self._form: FileForm | None = None
        self._is_old = True
        self._num_left = _MAX_FORMS

    def read(self, filename: str, reader: CorpusReader) -> FileIndex | None:
        """
        :param filename: of the next file
        :param reader: with the files before
        :return: see :func:`FileForm.read`
        """
        if self._is_old and reader.files and self._num_left:
            self._is_old = False
            self._num_left -= 1
            index = reader.files[-1]
            # Whether that one is still as it was, is not asked here: its data may be in memory.
            with contextlib.suppress(DataFileError), reader.handles.use(index.filename) as h5_file:
                self._form = FileForm.of(h5_file, index) or self._form
        if self._form is None:
            return None
        similar = self._form.read(filename)
        self._is_old = similar is None
        return similar


class _FirstReads:
    """Counts what was read of something that is not in memory yet."""

    def __init__(self, total: int):
        """:param total: number of all items"""
        self._max_items = total * _MAX_FIRST_PART
        self._num_ranges = 0
        self._num_items = 0

    def allow(self, num_ranges: int, num_items: int) -> bool:
        """:return: whether it is better to read these ranges with so many items than everything. If so they are counted"""
        num_ranges, num_items = self._num_ranges + num_ranges, self._num_items + num_items
        if num_ranges > _MAX_FIRST_RANGES or num_items > self._max_items:
            return False
        self._num_ranges, self._num_items = num_ranges, num_items
        return True


class _TagDatasets:
    """The tag datasets of all files, one after the other, so that not all files need to be open."""

    def __init__(self, reader: CorpusReader):
        self._reader = reader
        self._next = 0

    def __iter__(self) -> _TagDatasets:
        return self

    def __next__(self) -> h5py.Dataset:
        if self._next >= len(self._reader.files):
            raise StopIteration
        index = self._reader.files[self._next]
        self._next += 1
        with self._reader.handles.use(index.filename) as h5_file:
            return h5_file[SEQ_TAGS_KEY]


def _gather(data: np.ndarray, starts: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """
    :param data: [frames, ...]
    :param starts: int64 [B]
    :param lens: int64 [B]
    :return: [sum lens, ...], the ranges one after the other, own memory
    """
    num_seqs = len(starts)
    if not num_seqs:
        return data[:0].copy()
    out_offsets = np.zeros(num_seqs + 1, dtype=np.int64)
    np.cumsum(lens, out=out_offsets[1:])
    total = int(out_offsets[-1])
    if np.array_equal(starts[1:], starts[:-1] + lens[:-1]):
        return data[int(starts[0]) : int(starts[0]) + total].copy()
    frame_bytes = data.dtype.itemsize * int(np.prod(data.shape[1:], dtype=np.int64))
    if total * frame_bytes >= _MIN_BYTES_FOR_COPY * num_seqs:
        out = np.empty((total, *data.shape[1:]), dtype=data.dtype)
        positions: Sequence[int] = out_offsets.tolist()
        for pos, start, length in zip(positions, starts.tolist(), lens.tolist(), strict=False):
            out[pos : pos + length] = data[start : start + length]
        return out
    idxs = np.repeat(starts - out_offsets[:-1], lens)
    idxs += np.arange(total)
    return data[idxs]
