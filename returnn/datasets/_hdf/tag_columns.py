"""
Texts of many tags in one array of bytes, and numpy operations on them: read, cut, compare, hash. No Python object per tag.
"""

from __future__ import annotations

import dataclasses
import hashlib
import secrets
from collections.abc import Iterator, Sequence

import numpy as np

from returnn.errors import DataFileError, describe

__all__ = ["TagColumns", "hash_tags", "check_utf8", "columns_of_fixed", "columns_of_bytes"]

#: Tags at a time: temporary arrays stay in the processor's cache.
_BLOCK_SIZE = 1 << 14
#: Bytes of them, where they are long.
_BLOCK_BYTES = 1 << 22
#: Longer tags are hashed and compared one by one: by words, each step over the tags would do the work of a few bytes.
_LONG_TAG = 1 << 11
#: Of each process, so that nobody can make files whose tags have equal hashes.
_SEED = secrets.randbits(128)
_LOW_HALF = np.uint64(0xFFFFFFFF)
_HALF = np.uint64(32)


@dataclasses.dataclass(frozen=True)
class TagColumns:
    """
    :param buf: uint8: UTF-8 of all tags, concatenated
    :param num: number of tags
    :param width: length of each tag, > 0; None: they have different lengths
    :param offsets: then uint32 or int64 [num+1], tag i is buf[offsets[i]:offsets[i+1]]
    """

    buf: np.ndarray
    num: int
    width: int | None
    offsets: np.ndarray | None

    @classmethod
    def join(cls, pieces: Sequence[TagColumns]) -> TagColumns:
        """
        :param pieces: in order
        :return: all tags, in as little memory as possible
        """
        if len(pieces) == 1:
            return pieces[0]
        num = sum(piece.num for piece in pieces)
        buf = np.concatenate([piece.buf for piece in pieces] or [np.zeros(0, dtype=np.uint8)])
        widths = {piece.width for piece in pieces if piece.num}
        if len(widths) == 1 and None not in widths:
            return cls(buf, num, widths.pop(), None)
        offsets = np.empty(num + 1, dtype=_offset_dtype(len(buf)))
        offsets[0] = 0
        pos = start = 0
        for piece in pieces:
            offsets[pos + 1 : pos + piece.num + 1] = piece.bounds(0, piece.num)[1:]
            offsets[pos + 1 : pos + piece.num + 1] += offsets.dtype.type(start)
            pos, start = pos + piece.num, start + len(piece.buf)
        return cls(buf, num, None, offsets)

    @classmethod
    def of_lens(cls, buf: np.ndarray, lens: np.ndarray) -> TagColumns:
        """
        :param buf: uint8
        :param lens: int [num] of the tags
        """
        if len(lens) and lens[0] > 0 and bool((lens == lens[0]).all()):
            return cls(buf, len(lens), int(lens[0]), None)
        offsets = np.zeros(len(lens) + 1, dtype=_offset_dtype(len(buf)))
        np.cumsum(lens, out=offsets[1:], dtype=offsets.dtype)
        return cls(buf, len(lens), None, offsets)

    @property
    def _block_size(self) -> int:
        """:return: how many tags are gone through at a time"""
        return min(_BLOCK_SIZE, max(_BLOCK_BYTES // (self.width or 1), 1))

    @property
    def nbytes(self) -> int:
        """:return: memory"""
        return self.buf.nbytes + (0 if self.offsets is None else self.offsets.nbytes)

    def bounds(self, start: int, end: int) -> np.ndarray:
        """:return: int64 [end - start + 1], where these tags start, and the last one ends"""
        if self.offsets is None:
            return np.arange(start, end + 1, dtype=np.int64) * (self.width or 0)
        return self.offsets[start : end + 1].astype(np.int64)

    def ranges(self, idxs: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """:return: int64: where each of these tags starts, and ends"""
        idxs = np.asarray(idxs, dtype=np.int64)
        if self.offsets is None:
            width = self.width or 0
            starts = idxs * width
            return starts, starts + width
        return self.offsets[idxs].astype(np.int64), self.offsets[idxs + 1].astype(np.int64)

    def fixed(self) -> np.ndarray:
        """:return: [num] dtype S<width>, the same memory. Only with width"""
        assert self.width is not None, "tags of different lengths"
        return self.buf[: self.num * self.width].view(f"S{self.width}")

    def iter_texts(self, idxs: np.ndarray | range) -> Iterator[list[str]]:
        """:return: tags, in several lists"""
        for start in range(0, len(idxs), _BLOCK_SIZE):
            yield self._texts(idxs[start : start + _BLOCK_SIZE])

    def _texts(self, idxs: np.ndarray | range) -> list[str]:
        if isinstance(idxs, range) and idxs.step == 1:
            bounds = self.bounds(idxs.start, idxs.stop)
            return _cut(self.buf[int(bounds[0]) : int(bounds[-1])], bounds - bounds[0])
        idxs = np.asarray(idxs, dtype=np.int64)
        if self.width is not None:
            return _cut(self.fixed()[idxs].view(np.uint8), np.arange(len(idxs) + 1) * self.width)
        starts, ends = self.ranges(idxs)
        view = self.buf.data
        return [str(view[start:end], "utf8") for start, end in zip(starts.tolist(), ends.tolist(), strict=True)]

    def equal(self, idxs: np.ndarray, other: TagColumns, other_idxs: np.ndarray) -> np.ndarray:
        """
        :param idxs: int [n]
        :param other: no two tags of both that are different have only NUL characters at the end as difference
        :param other_idxs: int [n]
        :return: bool [n], whether the tags are equal
        """
        result = np.empty(len(idxs), dtype=bool)
        step = min(self._block_size, other._block_size)
        for start in range(0, len(idxs), step):
            block = slice(start, start + step)
            result[block] = self._equal(idxs[block], other, other_idxs[block])
        return result

    def _equal(self, idxs: np.ndarray, other: TagColumns, other_idxs: np.ndarray) -> np.ndarray:
        if self.width is not None and other.width is not None:
            if self.width != other.width:
                return np.zeros(len(idxs), dtype=bool)
            same: np.ndarray = self.fixed()[idxs] == other.fixed()[other_idxs]
            return same
        starts, ends = self.ranges(idxs)
        other_starts, other_ends = other.ranges(other_idxs)
        lens = ends - starts
        result: np.ndarray = lens == other_ends - other_starts
        lens[~result] = 0
        for row in np.flatnonzero(lens > _LONG_TAG).tolist():
            first_tag = self.buf[starts[row] : ends[row]].data
            result[row] = first_tag == other.buf[other_starts[row] : other_ends[row]].data
            lens[row] = 0
        for pos in range(0, int(lens.max(initial=0)), 8):
            rows = np.flatnonzero(lens > pos)
            rest = lens[rows] - pos
            first = _words(self.buf, starts[rows] + pos, rest)
            result[rows] &= first == _words(other.buf, other_starts[rows] + pos, rest)
        return result


def _offset_dtype(num_bytes: int) -> type[np.unsignedinteger | np.signedinteger]:
    return np.uint32 if num_bytes < 2**32 else np.int64


def _cut(buf: np.ndarray, bounds: np.ndarray) -> list[str]:
    """:return: texts of these bytes"""
    edges = bounds.tolist()
    if not len(buf) or int(buf.max()) < 128:
        text = str(buf.data, "ascii")
        return [text[start:end] for start, end in zip(edges[:-1], edges[1:], strict=True)]
    data = buf.tobytes()
    return [data[start:end].decode("utf8") for start, end in zip(edges[:-1], edges[1:], strict=True)]


def _words(buf: np.ndarray, starts: np.ndarray, lens: np.ndarray) -> np.ndarray:
    """
    :param buf: uint8
    :param starts: int64 [n] in buf
    :param lens: int64 [n], > 0, number of bytes; those behind the eighth are left out
    :return: uint64 [n], the bytes from there on, the first one lowest, zeros behind the last one
    """
    if len(buf) < 8:
        buf = np.concatenate([buf, np.zeros(8, dtype=np.uint8)])
    # At the very end of the buffer: the word that ends there, without its first bytes.
    last = len(buf) - 8
    words: np.ndarray = np.ndarray((last + 1,), "<u8", buf.data, 0, (1,))[np.minimum(starts, last)]
    words = words.astype(np.uint64, copy=False)
    if len(starts) and int(starts.max()) > last:
        words >>= (np.maximum(starts - last, 0) * 8).astype(np.uint64)
    if len(lens) and int(lens.min()) < 8:
        unwanted = (8 - np.minimum(lens, 8)).astype(np.uint64) * np.uint64(8)
        words = (words << unwanted) >> unwanted
    return words


def _factors(num: int) -> np.ndarray:
    """:return: uint64 [num]: random, and the same ones each time in this process"""
    return np.random.PCG64(_SEED).random_raw(num)


def hash_tags(tags: TagColumns) -> np.ndarray:
    """
    Sums of 32-bit pieces times random 64-bit factors: two given tags have the same upper 32 bits with probability 2 ** -32,
    over the choice of the factors. Long tags: by a keyed hash function.

    :param tags: N of them
    :return: uint64 [N], to be compared within this process only. The upper bits are the good ones
    """
    result = np.empty(tags.num, dtype=np.uint64)
    step = tags._block_size
    for start in range(0, tags.num, step):
        end = min(start + step, tags.num)
        bounds = tags.bounds(start, end)
        lens = np.diff(bounds)
        long_rows = np.flatnonzero(lens > _LONG_TAG)
        long_hashes = [_hash_long_tag(tags.buf[bounds[row] : bounds[row + 1]]) for row in long_rows.tolist()]
        lens[long_rows] = 0
        factors = _factors(2 + 2 * (int(lens.max()) // 8 + 1))
        sums = lens.astype(np.uint64)
        sums *= factors[1]
        sums += factors[0]
        if tags.width is None or len(long_rows):
            _add_words(sums, tags.buf, bounds[:-1], lens, factors[2:])
        else:
            _add_words_of_fixed(sums, tags.buf[bounds[0] : bounds[-1]], tags.width, factors[2:])
        sums[long_rows] = long_hashes
        result[start:end] = sums
    return result


def _hash_long_tag(tag: np.ndarray) -> int:
    key = _SEED.to_bytes(16, "little")
    return int.from_bytes(hashlib.blake2b(tag.data, digest_size=8, key=key).digest(), "little")


def _add_words(sums: np.ndarray, buf: np.ndarray, starts: np.ndarray, lens: np.ndarray, factors: np.ndarray) -> None:
    for pos in range(0, int(lens.max()), 8):
        rows: np.ndarray | slice = slice(None) if int(lens.min()) > pos else np.flatnonzero(lens > pos)
        words = _words(buf, starts[rows] + pos, lens[rows] - pos)
        sums[rows] += (words & _LOW_HALF) * factors[pos // 4] + (words >> _HALF) * factors[pos // 4 + 1]


def _add_words_of_fixed(sums: np.ndarray, buf: np.ndarray, width: int, factors: np.ndarray) -> None:
    scratch = np.zeros(len(buf) + 8, dtype=np.uint8)
    scratch[: len(buf)] = buf
    for pos in range(0, width, 4):
        pieces = np.ndarray((len(sums),), "<u4", scratch.data, pos, (width,)).astype(np.uint64)
        if width - pos < 4:
            pieces &= np.uint64((1 << 8 * (width - pos)) - 1)
        pieces *= factors[pos // 4]
        sums += pieces


def check_utf8(tags: TagColumns, *, first: int, filename: str) -> None:
    """
    :param tags: of a part of a file
    :param first: index of the first of them in the file
    :param filename: for the error text
    :raises DataFileError: one is no UTF-8 text
    """
    if not len(tags.buf) or int(tags.buf.max()) < 128:
        return
    for start in range(0, tags.num, _BLOCK_SIZE):
        end = min(start + _BLOCK_SIZE, tags.num)
        bounds = tags.bounds(start, end)
        part = tags.buf[bounds[0] : bounds[-1]]
        # All at once: valid, and no tag begins within a character.
        heads = part[(bounds[:-1] - bounds[0])[bounds[1:] > bounds[:-1]]]
        try:
            str(part.data, "utf8")
            if not ((heads & 0xC0) == 0x80).any():
                continue
        except UnicodeDecodeError:
            pass
        data = part.tobytes()
        edges = (bounds - bounds[0]).tolist()
        for i, (pos, stop) in enumerate(zip(edges[:-1], edges[1:], strict=True)):
            try:
                data[pos:stop].decode("utf8")
            except UnicodeDecodeError as exc:
                raise DataFileError(
                    describe(
                        f"Tag {first + start + i} in 'seqTags' of HDF file {filename!r} is no UTF-8 text",
                        expected="UTF-8",
                        got=data[pos:stop],
                        todo="Write the file again with tags in UTF-8",
                    )
                ) from exc


def columns_of_bytes(tags: list[bytes], *, cut: bool = True) -> TagColumns:
    """
    :param tags: encoded
    :param cut: each one ends before its first NUL character, as in HDF files
    """
    text = b"".join(tags)
    if cut and b"\0" in text:
        tags = [tag.partition(b"\0")[0] for tag in tags]
        text = b"".join(tags)
    lens = np.fromiter(map(len, tags), dtype=np.int64, count=len(tags))
    return TagColumns.of_lens(np.frombuffer(text, dtype=np.uint8), lens)


def columns_of_fixed(values: np.ndarray) -> TagColumns:
    """
    :param values: [n] dtype S<k>, own memory
    """
    width = values.dtype.itemsize
    flat = np.ascontiguousarray(values).view(np.uint8).reshape(-1)
    if not len(values) or not width or int(flat.min()):
        return (
            TagColumns(flat, len(values), width, None)
            if width and len(values)
            else columns_of_bytes([b""] * len(values))
        )
    matrix = flat.reshape(len(values), width)
    pieces = []
    for start in range(0, len(values), _BLOCK_SIZE):
        block = matrix[start : start + _BLOCK_SIZE]
        is_nul = block == 0
        lens = np.where(is_nul.any(axis=1), is_nul.argmax(axis=1), width)
        pieces.append(TagColumns.of_lens(block[np.arange(width) < lens[:, None]], lens))
    return TagColumns.join(pieces)
