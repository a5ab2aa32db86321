"""Sequence tags of a corpus as columns (bytes and offsets), with lookup by tag, without a Python object per sequence."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import chain

import h5py
import numpy as np

from returnn.datasets._hdf import tag_columns
from returnn.datasets._hdf.format import worded_hdf_errors
from returnn.datasets._hdf.tag_columns import TagColumns, check_utf8, columns_of_bytes, columns_of_fixed
from returnn.errors import UnknownSeqTagError

__all__ = ["TagTable", "UnknownSeqTagError"]

#: Tags that are read at a time, and bytes of them, if they have a fixed size in the file. Tags that are looked up at a time.
_READ_SIZE = 1 << 18
_READ_BYTES = 1 << 24
_FIND_SIZE = 1 << 16


class TagTable:
    """
    Tags of all sequences in corpus order.

    ``key`` says where they are from: tables with the same one have the same tags, in all processes. None: not known.
    """

    key: str | None

    def __init__(self, buf: bytes, offsets: np.ndarray):
        """
        :param buf: UTF-8 of all tags, concatenated
        :param offsets: int64 [N+1], tag i is buf[offsets[i]:offsets[i+1]]
        """
        self._columns = TagColumns(np.frombuffer(buf, dtype=np.uint8), len(offsets) - 1, None, offsets)
        self._index: _TagIndex | None = None
        self._num_duplicates: int | None = None
        self.key: str | None = None

    @classmethod
    def from_columns(
        cls, columns: TagColumns, *, num_duplicates: int | None = None, key: str | None = None
    ) -> TagTable:
        """
        :param columns: the memory of the table
        :param num_duplicates: if known
        :param key: see the class
        """
        table = cls.__new__(cls)
        table._columns, table._index, table._num_duplicates, table.key = columns, None, num_duplicates, key
        return table

    @classmethod
    def from_tags(cls, tags: Iterable[str | bytes]) -> TagTable:
        """
        :param tags: in corpus order
        """
        encoded = [tag if isinstance(tag, bytes) else tag.encode("utf8") for tag in tags]
        return cls.from_columns(columns_of_bytes(encoded))

    @classmethod
    def from_hdf(cls, datasets: Iterable[h5py.Dataset], counts: Iterable[int], *, start: int = 0) -> TagTable:
        """
        Reads in bulk, block by block.

        :param datasets: one per file, each [N_file] fixed-length bytes or variable-length strings
        :param counts: how many tags of each; a file may have grown meanwhile
        :param start: leave out the tags of each file before this one
        :raises DataFileError: broken file, or a tag is no UTF-8 text
        """
        pieces: list[TagColumns] = []
        for dataset, count in zip(datasets, counts, strict=True):
            pieces += _read_columns(dataset, start, count)
        return cls.from_columns(TagColumns.join(pieces))

    @property
    def columns(self) -> TagColumns:
        """:return: the memory of the table, do not modify"""
        return self._columns

    @property
    def known_duplicates(self) -> int | None:
        """:return: see :func:`num_duplicates`; None: not known yet"""
        return self._num_duplicates

    def move_to(self, columns: TagColumns) -> None:
        """:param columns: the same tags in other memory, to be used from now on"""
        self._columns = columns

    def forget_index(self) -> None:
        """Free what makes lookups fast. It is made again when needed."""
        self._index = None

    def __len__(self) -> int:
        return self._columns.num

    def __getitem__(self, idx: int) -> str:
        """
        :param idx: corpus index
        :return: its tag
        """
        columns = self._columns
        if idx >= columns.num:
            raise IndexError(f"tag {idx} of {columns.num}")
        if columns.width is not None:
            start = int(idx) * columns.width
            end = start + columns.width
        else:
            assert columns.offsets is not None
            start, end = int(columns.offsets[idx]), int(columns.offsets[idx + 1])
        return str(columns.buf[start:end].data, "utf8")

    def same_tags(self, other: TagTable) -> bool:
        """
        :param other: another table
        :return: whether both have the same tags in the same order
        """
        first, second = self._columns, other._columns
        if first is second:
            return True
        if first.num != second.num or len(first.buf) != len(second.buf):
            return False
        if first.width is None or second.width is None:
            bounds, other_bounds = (
                columns.bounds(0, columns.num) if columns.offsets is None else columns.offsets
                for columns in (first, second)
            )
            if not np.array_equal(bounds, other_bounds):
                return False
        return np.array_equal(first.buf, second.buf)

    def select(self, idxs: Sequence[int] | np.ndarray | range) -> list[str]:
        """
        :param idxs: corpus indices
        :return: their tags
        """
        if not isinstance(idxs, range):
            idxs = np.asarray(idxs, dtype=np.int64)
        return list(chain.from_iterable(self._columns.iter_texts(idxs)))

    def to_list(self) -> list[str]:
        """
        :return: all tags in corpus order
        """
        return self.select(range(len(self)))

    def find(self, tags: Iterable[str]) -> np.ndarray:
        """
        :param tags: any tags, repetitions allowed
        :return: int64 corpus index per tag, -1 where unknown. The last one wins if the corpus has a tag several times
        """
        return self.find_table(_table_of_texts(tags)).astype(np.int64)

    def find_table(self, other: TagTable) -> np.ndarray:
        """
        :param other: tags to look up
        :return: int32 (int64 if it must) [len(other)], index into self or -1, as in :func:`find`
        """
        result = np.full(len(other), -1, dtype=np.int32 if len(self) < 2**31 else np.int64)
        if not len(self) or not len(other):
            return result
        bits = max(_index_bits(len(self)), _index_bits(len(other)))
        index, queries = self._get_index(bits), other._get_index(bits)
        # Sorted queries walk through the index from its beginning to its end.
        for start in range(0, len(other), _FIND_SIZE):
            rows, hashes = queries.part(start, start + _FIND_SIZE)
            result[rows] = self._search(index, hashes, other._columns, rows)
        return result

    def lookup(self, tags: Sequence[str], *, dataset_name: str) -> np.ndarray:
        """
        :param tags: any tags
        :param dataset_name: for the error text
        :return: int64 corpus index per tag
        :raises UnknownSeqTagError: if a tag is unknown
        """
        idxs = self.find(tags)
        missing = np.flatnonzero(idxs < 0)
        if len(missing):
            shown = ", ".join(repr(tags[i]) for i in missing[:3].tolist())
            have = ", ".join(repr(tag) for tag in self.select(range(min(3, len(self)))))
            raise UnknownSeqTagError(
                f"{len(missing)} of {len(tags)} sequence tags are unknown in dataset {dataset_name!r}, first: {shown}."
                f" The dataset has {len(self)} sequences, first: {have}."
            )
        return idxs

    def contained_in(self, tags: Iterable[str]) -> np.ndarray:
        """
        :param tags: any tags
        :return: bool [N], whether the tag of each sequence is among them
        """
        return _table_of_texts(tags).find_table(self) >= 0

    def num_duplicates(self) -> int:
        """
        :return: number of sequences whose tag comes again later in the corpus
        """
        if self._num_duplicates is None:
            index = self._get_index(_index_bits(len(self)))
            rows, hashes = index.with_equal_hashes()
            self._num_duplicates = int(np.count_nonzero(self._search(index, hashes, self._columns, rows) != rows))
        return self._num_duplicates

    def _get_index(self, bits: int) -> _TagIndex:
        if self._index is not None and self._index.bits == bits:
            return self._index
        index = _TagIndex(self._columns, bits)
        if bits == _index_bits(len(self)):
            self._index = index
        return index

    def _search(self, index: _TagIndex, hashes: np.ndarray, columns: TagColumns, rows: np.ndarray) -> np.ndarray:
        """
        :param index: of self
        :param hashes: uint64 [n], by an index of as many bits
        :param columns: tags that are looked up
        :param rows: int64 [n], which ones
        :return: int64 [n], index into self or -1
        """
        result = np.full(len(rows), -1, dtype=np.int64)
        places = index.last_places(hashes)
        todo = np.arange(len(rows))
        while len(todo):
            # The last tag with this hash that was not compared yet.
            candidates = index.at(places[todo], hashes[todo])
            todo, candidates = todo[candidates >= 0], candidates[candidates >= 0]
            same = self._columns.equal(candidates, columns, rows[todo])
            result[todo[same]] = candidates[same]
            todo = todo[~same]
            places[todo] -= 1
        return result


def _index_bits(num: int) -> int:
    return max(num - 1, 1).bit_length()


class _TagIndex:
    """Of each tag the upper bits of its hash, with the corpus index in the lower bits, sorted."""

    def __init__(self, columns: TagColumns, bits: int):
        """
        :param columns: N tags
        :param bits: for the corpus index
        """
        self.bits = bits
        self._mask = np.uint64((1 << bits) - 1)
        self._entries = tag_columns.hash_tags(columns)
        self._entries &= ~self._mask
        self._entries |= np.arange(columns.num, dtype=np.uint64)
        self._entries.sort()

    def part(self, start: int, end: int) -> tuple[np.ndarray, np.ndarray]:
        """:return: of the entries [start, end): int64 corpus indices; hashes"""
        return self._split(self._entries[start:end])

    def _split(self, entries: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return (entries & self._mask).astype(np.int64), entries & ~self._mask

    def with_equal_hashes(self) -> tuple[np.ndarray, np.ndarray]:
        """:return: as :func:`part`, of the entries after which comes one with the same hash"""
        return self._split(self._entries[:-1][(self._entries[1:] ^ self._entries[:-1]) <= self._mask])

    def last_places(self, hashes: np.ndarray) -> np.ndarray:
        """:return: int64, the place of the last entry of each hash; if there is none, of any other"""
        return np.searchsorted(self._entries, hashes | self._mask, side="right") - 1

    def at(self, places: np.ndarray, hashes: np.ndarray) -> np.ndarray:
        """:return: int64, the corpus index of the entry at each place, -1 if it has another hash, or there is none"""
        entries = self._entries[np.maximum(places, 0)]
        found = (places >= 0) & ((entries ^ hashes) <= self._mask)
        return np.where(found, (entries & self._mask).astype(np.int64), -1)


def _table_of_texts(tags: Iterable[str]) -> TagTable:
    """:return: of texts which are not cut at NUL characters, so that such a text is in no corpus"""
    return TagTable.from_columns(columns_of_bytes([tag.encode("utf8") for tag in tags], cut=False))


def _read_columns(dataset: h5py.Dataset, start: int, count: int) -> list[TagColumns]:
    """:return: the tags [start, count) of a file"""
    pieces = []
    filename = dataset.file.filename
    step = max(min(_READ_SIZE, _READ_BYTES // max(dataset.dtype.itemsize, 1)), 1)
    for first in range(start, count, step):
        end = min(first + step, count)
        with worded_hdf_errors(filename, what="sequence tags"):
            values = dataset[first:end]
        if values.dtype.kind == "S":
            piece = columns_of_fixed(values)
        else:
            values_list = values.tolist()
            piece = columns_of_bytes(
                [value if isinstance(value, bytes) else str(value).encode("utf8") for value in values_list]
            )
        check_utf8(piece, first=first, filename=filename)
        pieces.append(piece)
    return pieces
