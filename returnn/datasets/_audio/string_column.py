"""A column of texts as one byte string and offsets, without a Python object per text."""

from __future__ import annotations

import mmap
from collections.abc import Iterable, Sequence
from typing import TypeAlias

import numpy

__all__ = ["Block", "StringColumn", "block_of", "outside_heap"]

#: UTF-8 of some texts, and their lengths in bytes, int64.
Block: TypeAlias = tuple["bytes | mmap.mmap", numpy.ndarray]


class StringColumn:
    """Texts in UTF-8."""

    def __init__(self, buf: bytes, offsets: numpy.ndarray) -> None:
        """
        :param buf: UTF-8 of all texts, concatenated
        :param offsets: int64 [N + 1], text i is ``buf[offsets[i]:offsets[i + 1]]``
        """
        self.buf = buf
        self.offsets = offsets

    @classmethod
    def from_blocks(cls, blocks: Sequence[Block]) -> StringColumn:
        """
        :param blocks: see there
        """
        lens = [lens for _, lens in blocks]
        offsets = numpy.zeros(sum(map(len, lens)) + 1, dtype=numpy.int64)
        if blocks:
            numpy.cumsum(numpy.concatenate(lens), out=offsets[1:])
        return cls(b"".join([buf for buf, _ in blocks]), offsets)

    @classmethod
    def from_bytes(cls, texts: Sequence[bytes]) -> StringColumn:
        """
        :param texts: UTF-8 each
        """
        return cls.from_blocks([block_of(texts)])

    @classmethod
    def concat(cls, columns: Sequence[StringColumn]) -> StringColumn:
        """:return: the texts of all columns; the column itself if it is only one"""
        if len(columns) == 1:
            return columns[0]
        return cls.from_blocks([(column.buf, numpy.diff(column.offsets)) for column in columns])

    def __len__(self) -> int:
        return len(self.offsets) - 1

    def get_bytes(self, idx: int) -> bytes:
        """:return: one text as UTF-8"""
        return self.buf[self.offsets[idx] : self.offsets[idx + 1]]

    def __getitem__(self, idx: int) -> str:
        return self.get_bytes(idx).decode("utf8")

    def take(self, idxs: Iterable[int]) -> StringColumn:
        """
        :param idxs: [M]
        :return: column of these M texts
        """
        return self.from_bytes([self.get_bytes(idx) for idx in idxs])

    @property
    def lens(self) -> numpy.ndarray:
        """:return: int64 [N], bytes per text"""
        return numpy.diff(self.offsets)

    @property
    def nbytes(self) -> int:
        """:return: memory of the column"""
        return len(self.buf) + self.offsets.nbytes


def block_of(texts: Sequence[bytes]) -> Block:
    """:return: see there"""
    return b"".join(texts), numpy.fromiter(map(len, texts), dtype=numpy.int64, count=len(texts))


def outside_heap(data: bytes | mmap.mmap | memoryview) -> bytes | mmap.mmap:
    """
    For many blocks that live for a short time. On the heap, the allocator would keep their memory when they are gone.

    :param data: contiguous
    :return: copy; its memory goes back to the system as soon as nobody uses it
    """
    view = memoryview(data)
    if not view.nbytes:
        return b""
    copy = mmap.mmap(-1, view.nbytes)
    copy[:] = view.cast("B")
    return copy
