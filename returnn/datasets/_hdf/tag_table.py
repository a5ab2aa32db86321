"""Sequence tags of a corpus as columns (bytes and offsets), with lookup by tag, without a Python object per sequence."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence

import h5py
import numpy as np

from returnn.datasets._hdf.format import worded_hdf_errors
from returnn.errors import DataFileError, UnknownSeqTagError, describe

__all__ = ["TagTable", "UnknownSeqTagError"]

_BLOCK_SIZE = 1 << 16


class TagTable:
    """Tags of all sequences in corpus order."""

    def __init__(self, buf: bytes, offsets: np.ndarray):
        """
        :param buf: UTF-8 of all tags, concatenated
        :param offsets: int64 [N+1], tag i is buf[offsets[i]:offsets[i+1]]
        """
        self._buf = buf
        self._offsets = offsets
        self._sorted_hashes: np.ndarray | None = None
        self._hash_order: np.ndarray | None = None

    @classmethod
    def from_tags(cls, tags: Iterable[str | bytes]) -> TagTable:
        """
        :param tags: in corpus order
        """
        encoded = [tag if isinstance(tag, bytes) else tag.encode("utf8") for tag in tags]
        return cls._from_blocks([_columns_of_bytes(encoded)])

    @classmethod
    def from_hdf(cls, datasets: Iterable[h5py.Dataset], counts: Iterable[int], *, start: int = 0) -> TagTable:
        """
        Reads in bulk, block by block.

        :param datasets: one per file, each [N_file] fixed-length bytes or variable-length strings
        :param counts: how many tags of each; a file may have grown meanwhile
        :param start: leave out the tags of each file before this one
        :raises DataFileError: broken file, or a tag is no UTF-8 text
        """
        blocks: list[tuple[bytes, np.ndarray]] = []
        for dataset, count in zip(datasets, counts, strict=True):
            for first in range(start, count, _BLOCK_SIZE):
                with worded_hdf_errors(dataset.file.filename, what="sequence tags"):
                    values = dataset[first : min(first + _BLOCK_SIZE, count)]
                if values.dtype.kind == "S":
                    blocks.append(_columns_of_fixed(values))
                else:
                    values_list = values.tolist()
                    encoded = [
                        value if isinstance(value, bytes) else str(value).encode("utf8") for value in values_list
                    ]
                    blocks.append(_columns_of_bytes(encoded))
                _check_utf8(*blocks[-1], first=first, filename=dataset.file.filename)
        return cls._from_blocks(blocks)

    @classmethod
    def _from_blocks(cls, blocks: list[tuple[bytes, np.ndarray]]) -> TagTable:
        num = sum(len(lens) for _, lens in blocks)
        offsets = np.zeros(num + 1, dtype=np.int64)
        if blocks:
            np.cumsum(np.concatenate([lens for _, lens in blocks]), out=offsets[1:])
        return cls(b"".join(buf for buf, _ in blocks), offsets)

    def __len__(self) -> int:
        return len(self._offsets) - 1

    def __getitem__(self, idx: int) -> str:
        """
        :param idx: corpus index
        :return: its tag
        """
        return self._buf[self._offsets[idx] : self._offsets[idx + 1]].decode("utf8")

    def same_tags(self, other: TagTable) -> bool:
        """
        :param other: another table
        :return: whether both have the same tags in the same order
        """
        return np.array_equal(self._offsets, other._offsets) and self._buf == other._buf

    def select(self, idxs: Sequence[int] | np.ndarray | range) -> list[str]:
        """
        :param idxs: corpus indices
        :return: their tags
        """
        return [tag.decode("utf8") for tag in self._iter_encoded(idxs)]

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
        return self._find_encoded([tag.encode("utf8") for tag in tags])

    def find_table(self, other: TagTable) -> np.ndarray:
        """
        :param other: tags to look up
        :return: int64 [len(other)], index into self or -1
        """
        res = np.empty(len(other), dtype=np.int64)
        for start in range(0, len(other), _BLOCK_SIZE):
            end = min(start + _BLOCK_SIZE, len(other))
            res[start:end] = self._find_encoded(list(other._iter_encoded(range(start, end))))
        return res

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
        wanted = {tag.encode("utf8") for tag in tags}
        return np.fromiter(map(wanted.__contains__, self._iter_encoded(range(len(self)))), dtype=bool, count=len(self))

    def num_duplicates(self) -> int:
        """
        :return: number of sequences whose tag comes again later in the corpus
        """
        hashes, order = self._hash_index()
        equal = np.flatnonzero(hashes[1:] == hashes[:-1])
        if not len(equal):
            return 0
        canonical = self._find_encoded(list(self._iter_encoded(order[equal])))
        return int(np.count_nonzero(canonical != order[equal]))

    def _iter_encoded(self, idxs: Sequence[int] | np.ndarray | range) -> Iterator[bytes]:
        buf = self._buf
        if isinstance(idxs, range) and idxs.step == 1:
            bounds = self._offsets[idxs.start : idxs.stop + 1].tolist()
            return (buf[start:end] for start, end in zip(bounds[:-1], bounds[1:], strict=True)) if bounds else iter(())
        idxs = np.asarray(idxs, dtype=np.int64)
        starts = self._offsets[idxs].tolist()
        ends = self._offsets[idxs + 1].tolist()
        return (buf[start:end] for start, end in zip(starts, ends, strict=True))

    def _hash_index(self) -> tuple[np.ndarray, np.ndarray]:
        """
        :return: (hashes sorted, corpus indices in this order; equal hashes stay in corpus order)
        """
        if self._sorted_hashes is None or self._hash_order is None:
            num = len(self)
            hashes = np.empty(num, dtype=np.int64)
            for start in range(0, num, _BLOCK_SIZE):
                end = min(start + _BLOCK_SIZE, num)
                hashes[start:end] = np.fromiter(
                    map(hash, self._iter_encoded(range(start, end))), dtype=np.int64, count=end - start
                )
            self._hash_order = np.argsort(hashes, kind="stable")
            self._sorted_hashes = hashes[self._hash_order]
        return self._sorted_hashes, self._hash_order

    def _find_encoded(self, tags: list[bytes]) -> np.ndarray:
        hashes, order = self._hash_index()
        queries = np.fromiter(map(hash, tags), dtype=np.int64, count=len(tags))
        places = np.searchsorted(hashes, queries, side="right") - 1
        res = np.full(len(tags), -1, dtype=np.int64)
        if not len(order):
            return res
        candidates = order[np.maximum(places, 0)]
        found = np.fromiter(map(bytes.__eq__, tags, self._iter_encoded(candidates)), dtype=bool, count=len(tags)) & (
            places >= 0
        )
        res[found] = candidates[found]
        for i in np.flatnonzero(~found).tolist():
            # Either unknown, or another tag with the same hash comes after it.
            place = int(places[i]) - 1
            while place >= 0 and hashes[place] == queries[i]:
                idx = int(order[place])
                if self._buf[self._offsets[idx] : self._offsets[idx + 1]] == tags[i]:
                    res[i] = idx
                    break
                place -= 1
        return res


def _check_utf8(buf: bytes, lens: np.ndarray, *, first: int, filename: str) -> None:
    """:param first: index of the first of these tags in the file"""
    if buf.isascii():
        return
    pos = 0
    for i, length in enumerate(lens.tolist()):
        try:
            buf[pos : pos + length].decode("utf8")
        except UnicodeDecodeError as exc:
            raise DataFileError(
                describe(
                    f"Tag {first + i} in 'seqTags' of HDF file {filename!r} is no UTF-8 text",
                    expected="UTF-8",
                    got=buf[pos : pos + length],
                    todo="Write the file again with tags in UTF-8",
                )
            ) from exc
        pos += length


def _columns_of_bytes(tags: list[bytes]) -> tuple[bytes, np.ndarray]:
    buf = b"".join(tags)
    if b"\0" in buf:
        tags = [tag.partition(b"\0")[0] for tag in tags]
        buf = b"".join(tags)
    return buf, np.fromiter(map(len, tags), dtype=np.int64, count=len(tags))


def _columns_of_fixed(values: np.ndarray) -> tuple[bytes, np.ndarray]:
    """
    :param values: [n] dtype S<k>
    """
    width = values.dtype.itemsize
    matrix = np.ascontiguousarray(values).view(np.uint8).reshape(len(values), width)
    is_nul = matrix == 0
    lens = np.where(is_nul.any(axis=1), is_nul.argmax(axis=1), width).astype(np.int64)
    keep = np.arange(width) < lens[:, None]
    return matrix[keep].tobytes(), lens
