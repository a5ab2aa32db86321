"""A column of texts as one byte string and offsets, without a Python object per text."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy

__all__ = ["StringColumn"]


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
    def from_blocks(cls, blocks: Sequence[tuple[bytes, numpy.ndarray]]) -> StringColumn:
        """
        :param blocks: (UTF-8 of some texts, their lengths in bytes)
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


def block_of(texts: Sequence[bytes]) -> tuple[bytes, numpy.ndarray]:
    """:return: see :func:`StringColumn.from_blocks`"""
    return b"".join(texts), numpy.fromiter(map(len, texts), dtype=numpy.int64, count=len(texts))
