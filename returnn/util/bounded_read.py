"""
Reading of compressed data that may be a bomb: small in the file, and more than the memory when it is unpacked.
"""

from __future__ import annotations

import gzip
import zlib
from typing import IO

from returnn.errors import DataFileError

__all__ = ["max_unpacked_bytes", "read_all", "decompress"]

#: Up to this size, anything is unpacked. Above, only what is packed less than so many times: text reaches about 20.
_MIN_BYTES = 256 << 20
_MAX_RATIO = 500
_STEP_BYTES = 16 << 20


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
