"""What is known of HDF files, in the form in which processes share it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from returnn._state import state
from returnn.datasets._basic.shared_corpus import SharedPart, find_part, part_key
from returnn.datasets._basic.shared_rooms import from_room
from returnn.datasets._hdf.file_index import FileIndex
from returnn.datasets._hdf.tag_columns import TagColumns
from returnn.datasets._hdf.tag_table import TagTable

__all__ = [
    "get_signature",
    "index_key",
    "index_part",
    "find_index",
    "tags_key",
    "tags_part",
    "find_tags",
    "tags_room_size",
    "tags_in_room",
    "join_columns",
]


#: Of the room for tags: int64 for the bytes of the text (-1: it does not fit), the width, the bytes of an offset.
_HEADER_BYTES = 24
_MAX_MEAN_TAG = 256


def get_signature(filename: str) -> tuple[int, ...]:
    """:return: changes whenever the file is replaced or written to"""
    stat = os.stat(filename)
    return stat.st_ino, stat.st_size, stat.st_mtime_ns


def index_key(filename: str, signature: tuple[int, ...]) -> str:
    """
    :param filename: path
    :param signature: of the file when it was read
    """
    return part_key("hdf index", os.path.abspath(filename), signature)


def index_part(index: FileIndex, key: str, take_over: Callable[[np.ndarray], None]) -> SharedPart:
    """
    :param index: of a file
    :param key: see :func:`index_key`
    :param take_over: called with the lengths in other memory
    """
    meta = dataclasses.replace(index, lens=index.lens[:0])
    return SharedPart(key, meta, {"lens": index.lens}, lambda arrays: take_over(arrays["lens"]))


def find_index(filename: str) -> FileIndex | None:
    """
    :param filename: path
    :return: what the parent process read, if the file is still as it was then
    """
    if not state.shared_corpus:
        return None
    try:
        found = find_part(index_key(filename, get_signature(filename)))
    except OSError:  # whoever opens it says what is wrong
        return None
    if found is None:
        return None
    meta, arrays = found
    return dataclasses.replace(meta, filename=filename, lens=arrays["lens"])


def tags_key(index_keys: Sequence[str]) -> str:
    """:param index_keys: of the files of the corpus, in order"""
    return part_key("hdf tags", *index_keys)


def tags_part(table: TagTable, key: str) -> SharedPart:
    """
    :param table: of a corpus
    :param key: see :func:`tags_key`
    """
    columns = table.columns
    arrays = {"buf": columns.buf}
    if columns.offsets is not None:
        arrays["offsets"] = columns.offsets
    meta = columns.num, columns.width, table.known_duplicates
    return SharedPart(key, meta, arrays, lambda arrays: table.move_to(_columns_of(meta, arrays)))


def find_tags(key: str) -> TagTable | None:
    """
    :param key: see :func:`tags_key`
    :return: what the parent process read
    """
    found = find_part(key)
    return None if found is None else TagTable.from_columns(_columns_of(*found), num_duplicates=found[0][2], key=key)


def tags_room_size(num_seqs: int, num_file_bytes: int) -> int:
    """
    :param num_seqs: of the corpus
    :param num_file_bytes: size of its files
    :return: bytes of the room for the tags (which takes as much memory as they need), enough unless they are very long
    """
    return _HEADER_BYTES + min(num_file_bytes, num_seqs * _MAX_MEAN_TAG) + 8 * (num_seqs + 2)


def tags_in_room(key: str, size: int, num_seqs: int, read: Callable[[], TagTable]) -> TagTable:
    """
    :param key: see :func:`tags_key`
    :param size: see :func:`tags_room_size`
    :param num_seqs: of the corpus
    :param read: reads the tags
    :return: tags, in memory that the processes share if they can
    """
    own: list[TagTable] = []

    def make(room: np.ndarray) -> None:
        own.append(read())
        columns = own[0].columns
        text_end = _HEADER_BYTES + len(columns.buf)
        offsets = np.zeros(0, dtype=np.uint32) if columns.offsets is None else columns.offsets
        start = -(-text_end // 8) * 8
        fits = start + offsets.nbytes <= len(room)
        header = room[:_HEADER_BYTES].view(np.int64)
        header[:] = len(columns.buf) if fits else -1, columns.width or 0, offsets.itemsize
        if fits:
            room[_HEADER_BYTES:text_end] = columns.buf
            room[start : start + offsets.nbytes] = offsets.view(np.uint8)

    room = from_room(lambda: key, size, make)
    if room is None:
        return read()
    num_text, width, itemsize = room[:_HEADER_BYTES].view(np.int64).tolist()
    if num_text < 0:
        return own[0] if own else read()
    text_end = _HEADER_BYTES + num_text
    offsets = None
    if not width:
        start = -(-text_end // 8) * 8
        dtype = np.uint32 if itemsize == 4 else np.int64
        offsets = room[start : start + (num_seqs + 1) * itemsize].view(dtype)
    return TagTable.from_columns(TagColumns(room[_HEADER_BYTES:text_end], num_seqs, width or None, offsets))


def _columns_of(meta: Any, arrays: Any) -> TagColumns:
    return TagColumns(arrays["buf"], meta[0], meta[1], arrays.get("offsets"))


def join_columns(columns: Sequence[np.ndarray]) -> np.ndarray:
    """
    :param columns: one axis, at least one
    :return: one behind the other; without a copy if they are parts of one column in memory already
    """
    first = columns[0]
    if len(columns) == 1:
        return first
    place = first.__array_interface__["data"][0]
    if first.base is None or first.flags.writeable or first.strides[0] <= 0:
        return np.concatenate(columns)
    for column in columns:
        if len(column) and (
            column.__array_interface__["data"][0] != place
            or column.dtype != first.dtype
            or column.strides != first.strides
            or _memory_of(column) is not _memory_of(first)
        ):
            return np.concatenate(columns)
        place += len(column) * first.strides[0]
    joined: np.ndarray = np.lib.stride_tricks.as_strided(
        first, (sum(map(len, columns)),), first.strides, writeable=False
    )
    return joined


def _memory_of(array: np.ndarray) -> object:
    owner: Any = array
    while isinstance(owner, np.ndarray) and owner.base is not None:
        owner = owner.base
    return owner
