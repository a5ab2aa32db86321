"""
Zip files for reading: the directory as columns, members by their position. Format: PKWARE APPNOTE 6.3.9.
"""

from __future__ import annotations

import dataclasses
import os
import struct
import zipfile
import zlib
from array import array
from collections.abc import Callable

import numpy

from returnn.errors import DataFileError, describe
from returnn.util.bounded_read import decompress

__all__ = ["ZipArchive", "ZipDirectory"]

_STORED = 0
_DEFLATED = 8
_FLAG_ENCRYPTED = 1
_FLAG_UTF8 = 0x800

_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
# Signature, flags, method, crc, sizes (in the file, of the data), lengths (name, extra, comment), offset.
_CENTRAL = struct.Struct("<4s4xHH4xLLLHHH8xL")
_LOCAL = struct.Struct("<4s22xHH")
_MAX_COMMENT_BYTES = 1 << 16
_IN_EXTRA = 0xFFFFFFFF
# The extra field of the local header can be longer than that of the central one, which we do not keep.
_LOCAL_SLACK_BYTES = 256


@dataclasses.dataclass
class ZipDirectory:
    """
    M members.

    :param index: name in UTF-8 -> m; the last one, if there are several
    :param offset: int64 [M], of the local header
    :param size: int64 [M], bytes in the file
    :param crc: uint32 [M], of the data
    :param method: uint8 [M], compression; 255: cannot be read
    """

    index: dict[bytes, int]
    offset: numpy.ndarray
    size: numpy.ndarray
    crc: numpy.ndarray
    method: numpy.ndarray

    def name_at(self, offset: int) -> str:
        """:return: name of the member with its header at this offset"""
        return next((name.decode("utf8", "replace") for name, m in self.index.items() if self.offset[m] == offset), "?")


class ZipArchive:
    """One zip file. Opened when needed, by each process for itself."""

    def __init__(self, filename: str) -> None:
        """
        :param filename: need not exist yet
        """
        self.filename = filename
        self._fd: int | None = None
        self._pid: int | None = None

    def __del__(self) -> None:
        self.close()

    def close(self) -> None:
        """Close the file. It is opened again when needed."""
        fd, self._fd = self._fd, None
        if fd is not None and self._pid == os.getpid():
            os.close(fd)

    def _open(self) -> int:
        if self._fd is None or self._pid != os.getpid():
            try:
                self._fd = os.open(self.filename, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            except OSError as exc:
                raise DataFileError(
                    f"Cannot open the zip file {self.filename!r}: {exc.strerror or exc}. Check the path."
                ) from exc
            self._pid = os.getpid()
        return self._fd

    def _pread(self, size: int, offset: int) -> bytes:
        """
        :return: less than size bytes only at the end of the file
        :raises ValueError: the place cannot be in a file
        """
        if size < 0 or not 0 <= offset < 2**63:
            raise ValueError(f"the directory of the zip is broken: it says {size} bytes at {offset}")
        fd = self._open()
        # Never more than there is: a broken directory may say any size.
        size = min(size, max(os.fstat(fd).st_size - offset, 0))
        data = os.pread(fd, size, offset)
        if len(data) == size or not data:
            return data
        parts = [data]
        missing = size - len(data)
        while missing and parts[-1]:
            offset += len(parts[-1])
            parts.append(os.pread(fd, missing, offset))
            missing -= len(parts[-1])
        return b"".join(parts)

    def read_directory(self, *, texts_only: bool = False) -> ZipDirectory:
        """
        :param texts_only: only the members ``*.txt`` at top level
        :raises DataFileError: missing or broken
        """
        fd = self._open()
        try:
            position = _find_directory(self._pread, os.fstat(fd).st_size)
            if position is not None:
                directory = _parse_directory(self._pread(position.size, position.start), position, texts_only)
                if directory is not None:
                    return directory
        except OSError as exc:
            raise DataFileError(f"Cannot read the zip file {self.filename!r}: {exc.strerror or exc}.") from exc
        except ValueError as exc:
            raise DataFileError(
                f"Cannot read the zip file {self.filename!r}: {exc}. Check that it was written or copied completely."
            ) from exc
        return self._read_directory_slowly()

    def _read_directory_slowly(self) -> ZipDirectory:
        """For what is unusual. Also words what is wrong with the file."""
        try:
            with zipfile.ZipFile(self.filename) as archive:
                infos = archive.infolist()
        except (zipfile.BadZipFile, OSError, ValueError, EOFError, NotImplementedError) as exc:
            raise DataFileError(
                f"Cannot read the zip file {self.filename!r}: {exc}. Check that it was written or copied completely."
            ) from exc
        return ZipDirectory(
            {info.filename.encode("utf8", "replace"): i for i, info in enumerate(infos)},
            numpy.array([info.header_offset for info in infos], dtype=numpy.int64),
            numpy.array([info.compress_size for info in infos], dtype=numpy.int64),
            numpy.array([info.CRC for info in infos], dtype=numpy.uint32),
            numpy.array([_method(info.flag_bits, info.compress_type) for info in infos], dtype=numpy.uint8),
        )

    def read(self, offset: int, size: int, crc: int, method: int, *, name_size: int = 64) -> bytes:
        """
        :param offset: of the local header
        :param size: bytes in the file
        :param crc: of the data
        :param method: see ZipDirectory
        :param name_size: about the number of bytes of the name
        :return: the data
        :raises ValueError: says what is wrong with the member
        """
        data = self._pread(_LOCAL.size + name_size + _LOCAL_SLACK_BYTES + size, offset)
        if len(data) < _LOCAL.size:
            raise ValueError("the file ends before it")
        signature, name_len, extra_len = _LOCAL.unpack_from(data)
        if signature != b"PK\3\4":
            raise ValueError("there is no header where the directory of the zip says; did the file change meanwhile?")
        start = _LOCAL.size + name_len + extra_len
        if len(data) < start + size:
            data = self._pread(size, offset + start)
            start = 0
        if len(data) < start + size:
            raise ValueError(f"the file ends in it, after {max(len(data) - start, 0)} of {size} bytes")
        data = data[start : start + size]
        if method == _DEFLATED:
            try:
                data = decompress(data)
            except zlib.error as exc:
                raise ValueError(f"its compressed data are broken ({exc})") from exc
        elif method != _STORED:
            raise ValueError("it is encrypted, or of another compression method than stored and deflated")
        if zlib.crc32(data) != crc:
            raise ValueError("its checksum is wrong")
        return data

    def read_member(self, directory: ZipDirectory, name: str) -> bytes:
        """
        :param directory: of this file
        :param name: must be in it
        :return: the data
        :raises DataFileError: broken
        """
        m = directory.index[name.encode("utf8")]
        d = directory
        try:
            return self.read(int(d.offset[m]), int(d.size[m]), int(d.crc[m]), int(d.method[m]))
        except ValueError as exc:
            raise DataFileError(
                describe(
                    f"Cannot read member {name!r} of the zip file {self.filename!r}: {exc}",
                    todo="Check that the file was written or copied completely",
                )
            ) from exc


@dataclasses.dataclass(frozen=True)
class _Position:
    """
    :param start: of the directory in the file
    :param size: bytes
    :param num: of members
    :param shift: bytes in front of the archive
    """

    start: int
    size: int
    num: int
    shift: int


def _find_directory(pread: Callable[[int, int], bytes], file_size: int) -> _Position | None:
    """
    :param pread: (size, offset) -> bytes
    :param file_size: of the zip file
    :return: None: unusual or broken
    """
    tail_start = max(file_size - _END.size - _MAX_COMMENT_BYTES, 0)
    tail = pread(_END.size, file_size - _END.size) if file_size >= _END.size else b""
    end_pos = file_size - _END.size
    if tail[:4] != b"PK\5\6" or tail[-2:] != b"\0\0":
        tail = pread(file_size - tail_start, tail_start)
        found = tail.rfind(b"PK\5\6")
        if found < 0 or len(tail) < found + _END.size:
            return None
        end_pos = tail_start + found
        tail = tail[found : found + _END.size]
    _, disk, start_disk, num_here, num, size, start, _ = _END.unpack(tail)
    directory_end = end_pos
    locator = pread(_END64_LOCATOR.size, end_pos - _END64_LOCATOR.size) if end_pos >= _END64_LOCATOR.size else b""
    if locator[:4] == b"PK\6\7":
        directory_end = end_pos - _END64_LOCATOR.size - _END64.size
        end64 = pread(_END64.size, directory_end) if directory_end >= 0 else b""
        if end64[:4] != b"PK\6\6":
            return None
        _, _, _, _, disk, start_disk, num_here, num, size, start = _END64.unpack(end64)
    shift = directory_end - size - start
    if disk or start_disk or num_here != num or shift < 0:
        return None
    return _Position(start + shift, size, num, shift)


def _method(flags: int, method: int) -> int:
    return 255 if flags & _FLAG_ENCRYPTED or method not in (_STORED, _DEFLATED) else method


def _parse_directory(data: bytes, position: _Position, texts_only: bool) -> ZipDirectory | None:
    """
    :param data: the directory
    :param position: of it
    :param texts_only: see :func:`ZipArchive.read_directory`
    :return: None: unusual or broken
    """
    unpack = _CENTRAL.unpack_from
    header_size = _CENTRAL.size
    index: dict[bytes, int] = {}
    offsets, sizes, crcs, methods = array("q"), array("q"), array("L"), array("B")
    pos = 0
    end = len(data) - header_size
    for _ in range(position.num):
        if pos > end:
            return None
        signature, flags, method, crc, size, data_size, name_len, extra_len, comment_len, offset = unpack(data, pos)
        if signature != b"PK\1\2":
            return None
        name_end = pos + header_size + name_len
        name = data[pos + header_size : name_end]
        pos = name_end + extra_len + comment_len
        if texts_only and (not name.endswith(b".txt") or b"/" in name):
            continue
        if size == _IN_EXTRA or data_size == _IN_EXTRA or offset == _IN_EXTRA:
            found = _from_extra(data[name_end : name_end + extra_len], (data_size, size, offset))
            if found is None:
                return None
            _, size, offset = found
        if not flags & _FLAG_UTF8 and not name.isascii():
            # The names of old zips are in code page 437; but some programs write UTF-8 without saying so.
            index[name.decode("cp437").encode("utf8")] = len(offsets)
        index[name] = len(offsets)
        offsets.append(offset)
        sizes.append(size)
        crcs.append(crc)
        methods.append(_method(flags, method))
    return ZipDirectory(
        index,
        numpy.array(offsets, dtype=numpy.int64) + position.shift,
        numpy.array(sizes, dtype=numpy.int64),
        numpy.array(crcs, dtype=numpy.uint32),
        numpy.array(methods, dtype=numpy.uint8),
    )


def _from_extra(extra: bytes, values: tuple[int, int, int]) -> list[int] | None:
    """
    :param extra: the extra fields of a member
    :param values: data size, size in the file, offset; those that are _IN_EXTRA are in the field of zip64, in this order
    :return: the values; None: not there
    """
    pos = 0
    while pos + 4 <= len(extra):
        kind, length = struct.unpack_from("<HH", extra, pos)
        if kind == 1:
            wanted = [i for i, value in enumerate(values) if value == _IN_EXTRA]
            if length < 8 * len(wanted) or pos + 4 + length > len(extra):
                return None
            result = list(values)
            for i, value in zip(wanted, struct.unpack_from(f"<{len(wanted)}Q", extra, pos + 4), strict=True):
                result[i] = value
            return result
        pos += 4 + length
    return None
