"""
Lines of a text file as columns: one buffer of bytes and the position of each line, without a Python object per line.
"""

from __future__ import annotations

import array
import gzip
import mmap
import os
import zlib
from collections.abc import Iterable, Iterator

import numpy

from returnn.errors import DataFileError
from returnn.util.bounded_read import packed_by, read_all

__all__ = ["TextLines"]

# Bytes, and lines, which are looked at together.
_CHUNK_BYTES = 1 << 24
_BLOCK_LINES = 1 << 16

_NEWLINE = 10
_GZIP_MAGIC = b"\x1f\x8b"
_BOM = b"\xef\xbb\xbf"
# All that str.strip() removes, in UTF-8, by number of bytes.
_SPACES = [
    sorted(encoded for char in map(chr, range(0x110000 >> 4)) if char.isspace() and len(encoded := char.encode()) == n)
    for n in (1, 2, 3)
]
_IS_ASCII_SPACE = numpy.isin(numpy.arange(256), [code[0] for code in _SPACES[0]])


class TextLines:
    """
    Stripped lines of one text. In UTF-8; a line that is not is taken as Latin-1.

    A plain file is mapped into memory, so that processes share it and only what is read needs memory.
    """

    def __init__(
        self,
        buffer: bytes | mmap.mmap,
        starts: numpy.ndarray,
        ends: numpy.ndarray,
        latin1: numpy.ndarray,
        name: str,
        *,
        has_newlines: bool,
    ) -> None:
        """
        :param buffer: the whole text
        :param starts: int64 [N], where the lines start
        :param ends: int64 [N]
        :param latin1: int64, sorted: which lines are not UTF-8
        :param name: file name
        :param has_newlines: the buffer is the file, with one text per line
        """
        self._buffer = buffer
        self._starts, self._ends = starts, ends
        self._latin1 = latin1
        self.name = name
        self._has_newlines = has_newlines

    @classmethod
    def from_file(cls, filename: str, *, keep_empty: bool = False) -> TextLines:
        """
        :param filename: plain text or compressed by gzip
        :param keep_empty: keep lines of white space only, as empty lines
        :raises DataFileError: missing, broken, or compressed by something else
        """
        buffer = _read_buffer(filename)
        packing = packed_by(buffer[:10])
        if packing is not None:
            raise DataFileError(
                f"Text file {filename!r} is no text: its content is compressed by {packing}. Plain text and text compressed once"
                " by gzip are read: unpack it, or compress it by gzip."
            )
        view = numpy.frombuffer(buffer, dtype=numpy.uint8)
        starts, ends = _find_lines(view)
        if len(starts) and buffer[:3] == _BOM:
            starts[0] = 3
        latin1 = _find_latin1(buffer, starts, ends)
        _strip_lines(buffer, view, starts, ends, latin1)
        if not keep_empty:
            keep = starts < ends
            if not keep.all():
                latin1 = (numpy.cumsum(keep) - 1)[latin1[keep[latin1]]]
                starts, ends = starts[keep], ends[keep]
        return cls(buffer, starts, ends, latin1, filename, has_newlines=True)

    @classmethod
    def from_texts(cls, texts: Iterable[str], *, name: str) -> TextLines:
        """
        :param texts: stripped
        :param name: file that they are from
        """
        buffer = bytearray()
        ends = array.array("q")
        for text in texts:
            buffer += text.encode("utf8", errors="surrogatepass")
            ends.append(len(buffer))
        bounds = numpy.zeros(len(ends) + 1, dtype=numpy.int64)
        bounds[1:] = ends
        return cls(bytes(buffer), bounds[:-1], bounds[1:], numpy.zeros(0, dtype=numpy.int64), name, has_newlines=False)

    def __len__(self) -> int:
        return len(self._starts)

    def __getitem__(self, idx: int) -> str:
        """
        :param idx: >= 0
        :return: the line
        """
        data = self._buffer[self._starts[idx] : self._ends[idx]]
        if len(self._latin1):
            place = int(numpy.searchsorted(self._latin1, idx))
            if place < len(self._latin1) and self._latin1[place] == idx:
                return data.decode("latin1")
        return data.decode("utf8", errors="surrogatepass")

    def __iter__(self) -> Iterator[str]:
        return (self[i] for i in range(len(self)))

    @property
    def num_bytes(self) -> int:
        """:return: of all lines"""
        return int((self._ends - self._starts).sum())

    @property
    def num_latin1(self) -> int:
        """:return: number of lines that are not UTF-8"""
        return len(self._latin1)

    def num_chars(self) -> numpy.ndarray:
        """:return: int64 [N], characters of each line"""
        lens = self._ends - self._starts
        view = numpy.frombuffer(self._buffer, dtype=numpy.uint8)
        for first, last, begin, end in _iter_blocks(self._starts, self._ends):
            if self._buffer[begin:end].isascii():
                continue
            # Bytes of UTF-8 that do not begin a character.
            is_tail = (view[begin:end] & 0xC0) == 0x80
            num_before = numpy.zeros(end - begin + 1, dtype=numpy.int64)
            numpy.cumsum(is_tail, out=num_before[1:])
            lens[first:last] -= (
                num_before[self._ends[first:last] - begin] - num_before[self._starts[first:last] - begin]
            )
        lens[self._latin1] = (self._ends - self._starts)[self._latin1]
        return lens

    def where(self, idx: int) -> str:
        """:return: file and line number, for messages"""
        if not self._has_newlines:
            return f"{self.name}, text {idx + 1}"
        num_before = self._buffer[: self._starts[idx]].count(b"\n")
        return f"{self.name}, line {num_before + 1}"


def _read_buffer(filename: str) -> bytes | mmap.mmap:
    try:
        with open(filename, "rb") as file:
            magic = file.read(2)
            file.seek(0)
            if magic == _GZIP_MAGIC:
                with gzip.open(file) as unzipped:
                    return read_all(unzipped, packed_bytes=os.path.getsize(filename), filename=filename)
            if not magic:
                return b""
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except DataFileError:
        raise
    except (OSError, EOFError, zlib.error, ValueError) as exc:
        reason = getattr(exc, "strerror", None) or f"{type(exc).__name__}: {exc}"
        raise DataFileError(f"Cannot read the text file {filename!r}: {reason}. Check the path and the file.") from exc


def _find_lines(view: numpy.ndarray) -> tuple[numpy.ndarray, numpy.ndarray]:
    """
    :param view: uint8, the text
    :return: int64 starts, ends
    """
    parts = [
        numpy.flatnonzero(view[pos : pos + _CHUNK_BYTES] == _NEWLINE) + pos for pos in range(0, len(view), _CHUNK_BYTES)
    ]
    if len(view) and view[-1] != _NEWLINE:
        parts.append(numpy.array([len(view)]))
    ends = numpy.concatenate(parts).astype(numpy.int64) if parts else numpy.zeros(0, dtype=numpy.int64)
    starts = numpy.zeros_like(ends)
    starts[1:] = ends[:-1] + 1
    return starts, ends


def _iter_blocks(starts: numpy.ndarray, ends: numpy.ndarray) -> Iterator[tuple[int, int, int, int]]:
    """:return: (first line, behind last line, first byte, behind last byte) of blocks of lines"""
    for first in range(0, len(starts), _BLOCK_LINES):
        last = min(first + _BLOCK_LINES, len(starts))
        yield first, last, int(starts[first]), int(ends[last - 1])


def _find_latin1(buffer: bytes | mmap.mmap, starts: numpy.ndarray, ends: numpy.ndarray) -> numpy.ndarray:
    """:return: int64, lines that are not UTF-8"""
    found = []
    for first, last, begin, end in _iter_blocks(starts, ends):
        if not _is_utf8(buffer[begin:end]):
            found += [i for i in range(first, last) if not _is_utf8(buffer[starts[i] : ends[i]])]
    return numpy.array(found, dtype=numpy.int64)


def _is_utf8(data: bytes) -> bool:
    if data.isascii():
        return True
    try:
        data.decode("utf8")
    except UnicodeDecodeError:
        return False
    return True


def _strip_lines(
    buffer: bytes | mmap.mmap, view: numpy.ndarray, starts: numpy.ndarray, ends: numpy.ndarray, latin1: numpy.ndarray
) -> None:
    """Move starts and ends (in place) such that each line is as ``str.strip()`` gives it."""
    bounds = [(int(starts[i]), int(ends[i])) for i in latin1]
    todo = numpy.flatnonzero(starts < ends)
    while len(todo):
        sizes = _space_sizes(view, starts[todo], ends[todo], at_end=False)
        todo, sizes = todo[sizes > 0], sizes[sizes > 0]
        starts[todo] += sizes
        todo = todo[starts[todo] < ends[todo]]
    todo = numpy.flatnonzero(starts < ends)
    while len(todo):
        sizes = _space_sizes(view, starts[todo], ends[todo], at_end=True)
        todo, sizes = todo[sizes > 0], sizes[sizes > 0]
        ends[todo] -= sizes
        todo = todo[starts[todo] < ends[todo]]
    for idx, (start, end) in zip(latin1.tolist(), bounds, strict=True):
        text = buffer[start:end].decode("latin1")
        starts[idx] = start + len(text) - len(text.lstrip())
        ends[idx] = starts[idx] + len(text.strip())


def _space_sizes(view: numpy.ndarray, starts: numpy.ndarray, ends: numpy.ndarray, *, at_end: bool) -> numpy.ndarray:
    """
    :param view: uint8, the text
    :param starts: int64 [n]
    :param ends: int64 [n], larger
    :param at_end: look at the last characters, not at the first
    :return: int64 [n], bytes of that character if it is white space, else 0
    """
    outer = view[ends - 1] if at_end else view[starts]
    sizes = _IS_ASCII_SPACE[outer].astype(numpy.int64)
    not_ascii = numpy.flatnonzero(outer >= 0x80)
    if not len(not_ascii):
        return sizes
    starts, ends = starts[not_ascii], ends[not_ascii]
    for size, codes in ((2, _SPACES[1]), (3, _SPACES[2])):
        fits = numpy.flatnonzero(ends - starts >= size)
        at = ends[fits] - size if at_end else starts[fits]
        value = numpy.zeros(len(at), dtype=numpy.int64)
        for i in range(size):
            value = (value << 8) | view[at + i]
        sizes[not_ascii[fits[numpy.isin(value, [int.from_bytes(code, "big") for code in codes])]]] = size
    return sizes
