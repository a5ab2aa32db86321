"""Whether a checkpoint file is complete, judged without loading it."""

from __future__ import annotations

import os
import re
import struct
import zipfile

__all__ = ["is_whole"]


def is_whole(path: str) -> bool:
    """
    Whether a file written by torch.save looks complete. Reads only its end and its table of contents.

    Detects files that are empty, truncated, or end in zeros (never flushed to disk). Files of other formats
    (safetensors: checked by the sizes in its header; old torch format: only not empty) cannot be judged by the end.

    :param path: existing or not
    """
    try:
        size = os.path.getsize(path)
        with open(path, "rb") as f:
            start = f.read(8)
    except OSError:
        return False
    if len(start) < 8 or not any(start):
        return False
    if start.startswith(b"PK"):
        return _is_whole_zip(path)
    if path.endswith(".safetensors"):
        return _is_whole_safetensors(path, size)
    return True


def _is_whole_zip(path: str) -> bool:
    try:
        with zipfile.ZipFile(path) as file:
            entries = file.infolist()
            # zipfile corrects all offsets if something is missing or added before the table of contents.
            return min((e.header_offset for e in entries), default=-1) == 0 and all(
                e.header_offset + e.compress_size <= file.start_dir for e in entries
            )
    except (zipfile.BadZipFile, OSError, ValueError, EOFError, struct.error, NotImplementedError):
        return False


def _is_whole_safetensors(path: str, size: int) -> bool:
    """The format: 8 bytes header length N (little endian), N bytes JSON with end offsets of all tensors, data."""
    with open(path, "rb") as f:
        (header_len,) = struct.unpack("<Q", f.read(8))
        if header_len > size - 8:
            return False
        header = f.read(header_len)
    ends = [int(m) for m in re.findall(rb'"data_offsets"\s*:\s*\[\s*\d+\s*,\s*(\d+)\s*\]', header)]
    return size >= 8 + header_len + max(ends, default=0)
