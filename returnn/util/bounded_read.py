"""
Reading of compressed data that may be a bomb: small in the file, and more than the memory when it is unpacked.
"""

from __future__ import annotations

import gzip
import re
import zlib
from typing import IO

from returnn.errors import DataFileError

__all__ = ["max_unpacked_bytes", "read_all", "decompress", "packed_by"]

#: Up to this size, anything is unpacked. Above, only what is packed less than so many times: text reaches about 20.
_MIN_BYTES = 256 << 20
_MAX_RATIO = 500
_STEP_BYTES = 16 << 20


# First bytes, which no text has.
_FORMATS = {
    "gzip": re.compile(rb"\x1f\x8b"),
    "bzip2": re.compile(rb"BZh[1-9](?:1AY&SY|\x17rE8P\x90)"),
    "xz": re.compile(rb"\xfd7zXZ\0"),
    "zip": re.compile(rb"PK(?:\x03\x04|\x05\x06)"),
    "zstd": re.compile(rb"\x28\xb5\x2f\xfd"),
    "7-zip": re.compile(rb"7z\xbc\xaf\x27\x1c"),
}


def packed_by(start: bytes) -> str | None:
    """
    :param start: the first 10 bytes of a file
    :return: the program that its content is compressed by, e.g. "bzip2"; None if by none that is known, as text is
    """
    return next((name for name, magic in _FORMATS.items() if magic.match(start)), None)


def max_unpacked_bytes(packed_bytes: int) -> int:
    """:return: what so many bytes in the file may become"""
    return max(_MIN_BYTES, packed_bytes * _MAX_RATIO)


def read_all(file: IO[bytes] | gzip.GzipFile, *, packed_bytes: int, filename: str) -> bytes:
    """
    :param file: unpacks while it is read, e.g. of gzip
    :param packed_bytes: size of the file
    :param filename: for the error
    :return: the rest of the content
    :raises DataFileError: it grows too much
    """
    limit = max_unpacked_bytes(packed_bytes)
    parts: list[bytes] = []
    total = 0
    try:
        while part := file.read(_STEP_BYTES):
            parts.append(part)
            total += len(part)
            if total > limit:
                raise DataFileError(
                    f"File {filename!r} has {packed_bytes} bytes, and becomes more than {total} when it is unpacked: no real "
                    "data does that. If it is what you want, unpack it first."
                )
        return b"".join(parts)
    except MemoryError as exc:
        raise DataFileError(
            f"There is not enough memory to unpack file {filename!r}: it has {total} bytes or more."
        ) from exc


def decompress(data: bytes) -> bytes:
    """
    :param data: of zlib, without header
    :return: the content
    :raises ValueError: it grows too much, or there is not enough memory for it
    :raises zlib.error: broken
    """
    limit = max_unpacked_bytes(len(data))
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        content = unpacker.decompress(data, limit + 1)
    except MemoryError as exc:
        raise ValueError("there is not enough memory to unpack it") from exc
    if len(content) > limit:
        raise ValueError(
            f"it has {len(data)} bytes, and becomes more than {limit} when it is unpacked: no real data does that"
        )
    if not unpacker.eof:
        raise zlib.error("incomplete or truncated stream")
    return content
