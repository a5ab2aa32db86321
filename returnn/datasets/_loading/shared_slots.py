"""
Shared memory between a worker and its parent: a few slots, each holding the arrays of one block of batches.

The memory has no name in the file system and needs no tracker: it is gone when both processes are.
"""

from __future__ import annotations

import mmap
import os
from collections.abc import Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

import numpy

from returnn.datasets._basic.shared_rooms import CAN_SHARE  # elsewhere the arrays go through the pipe
from returnn.datasets._loading.collate import NumpyBatch

__all__ = ["CAN_SHARE", "WriteSlot", "ReadSlot", "BlockLayout", "pack_batches", "unpack_batches"]

_ALIGN = 64
_MIN_SIZE = 2**20

#: Per kind of batch: names with dtype (None: list). Per batch: index of its kind, then per name (offset, shape) or the list.
BlockLayout = tuple[list[list[tuple[str, "str | None"]]], list[tuple[int, list[Any]]]]


def _aligned(num_bytes: int) -> int:
    return -(-num_bytes // _ALIGN) * _ALIGN


class WriteSlot:
    """The worker's side of a slot. One block at a time."""

    def __init__(self, index: int):
        """
        :param index: of the slot
        """
        self.index = index
        self.used = 0
        self.fd = -1  # of new memory that the parent does not know yet
        self._size = 0
        self._array = numpy.zeros(0, dtype=numpy.uint8)
        self._address = 0

    def clear(self) -> None:
        """Begin a new block."""
        self.used = 0

    def _reserve(self, num_bytes: int) -> None:
        """Make room. Only while the slot is empty, or before anything refers to its memory."""
        if num_bytes <= self._size:
            return
        assert self.used == 0, f"slot {self.index} grows while {self.used} bytes are in use"
        size = max(_MIN_SIZE, num_bytes + num_bytes // 4)
        size = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        if CAN_SHARE:
            if self.fd >= 0:
                os.close(self.fd)
            self.fd = os.memfd_create("returnn-loader", os.MFD_CLOEXEC)
            os.ftruncate(self.fd, size)
            self._array = numpy.frombuffer(mmap.mmap(self.fd, size), dtype=numpy.uint8)
        else:
            self._array = numpy.zeros(size, dtype=numpy.uint8)
        self._size = size
        self._address = self._array.__array_interface__["data"][0]

    def alloc(self, specs: Sequence[tuple[tuple[int, ...], numpy.dtype]]) -> list[numpy.ndarray]:
        """:return: zeroed arrays in the slot"""
        sizes = [int(numpy.prod(shape)) * dtype.itemsize for shape, dtype in specs]
        self._reserve(self.used + sum(map(_aligned, sizes)))
        arrays = []
        for (shape, dtype), size in zip(specs, sizes, strict=True):
            raw = self._array[self.used : self.used + size]
            raw[:] = 0
            arrays.append(raw.view(dtype).reshape(shape))
            self.used += _aligned(size)
        return arrays

    def offset_of(self, array: numpy.ndarray) -> int | None:
        """:return: where the array starts in the slot; None: it is somewhere else"""
        offset = array.__array_interface__["data"][0] - self._address
        return offset if self._size and 0 <= offset < self.used else None

    def content(self) -> memoryview:
        """:return: the used bytes"""
        return self._array[: self.used].data

    def send_memory(self, conn: Connection) -> None:
        """Pass the handle of new memory on. :param conn: to the parent, which expects it now"""
        reduction.send_handle(conn, self.fd, os.getppid())
        os.close(self.fd)
        self.fd = -1

    @property
    def size(self) -> int:
        """:return: bytes of the memory"""
        return self._size


class ReadSlot:
    """The parent's side of a slot."""

    def __init__(self, conn: Connection, size: int):
        """
        :param conn: to the worker, which sends the handle now
        :param size: bytes
        """
        fd = reduction.recv_handle(conn)
        try:
            self._array = numpy.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_READ), dtype=numpy.uint8)
        finally:
            os.close(fd)

    def copy(self, num_bytes: int) -> numpy.ndarray:
        """:return: uint8 [num_bytes]: own copy of the content"""
        return self._array[:num_bytes].copy()


def pack_batches(batches: Sequence[NumpyBatch], slot: WriteSlot) -> BlockLayout:
    """
    Describe where the arrays are. Arrays which are not in the slot yet are copied into it.

    :param batches: arrays and lists
    :param slot: empty, or holding (some of) the arrays
    """
    outside = [
        v for batch in batches for v in batch.values() if isinstance(v, numpy.ndarray) and slot.offset_of(v) is None
    ]
    copies = {
        id(v): copy for v, copy in zip(outside, slot.alloc([(v.shape, v.dtype) for v in outside]), strict=True)
    } if outside else {}  # fmt: skip
    for v in outside:
        copies[id(v)][...] = v
    kinds: dict[tuple[tuple[str, str | None], ...], int] = {}
    layout: list[tuple[int, list[Any]]] = []
    for batch in batches:
        kind = tuple((k, v.dtype.str if isinstance(v, numpy.ndarray) else None) for k, v in batch.items())
        entries: list[Any] = []
        for value in batch.values():
            if isinstance(value, numpy.ndarray):
                value = copies.get(id(value), value)
                entries.append((slot.offset_of(value), value.shape))
            else:
                entries.append(value)
        layout.append((kinds.setdefault(kind, len(kinds)), entries))
    return [list(kind) for kind in kinds], layout


def unpack_batches(layout: BlockLayout, content: numpy.ndarray) -> list[NumpyBatch]:
    """
    :param layout: from :func:`pack_batches`
    :param content: uint8: the bytes of the slot
    :return: arrays which are views of content
    """
    kinds = [[(name, numpy.dtype(d) if d is not None else None) for name, d in kind] for kind in layout[0]]
    batches = []
    for kind, entries in layout[1]:
        batch: NumpyBatch = {}
        for (name, dtype), entry in zip(kinds[kind], entries, strict=True):
            if dtype is None:
                batch[name] = entry
            else:
                # The buffer interface refuses an offset at its very end, so empty arrays are made new.
                offset, shape = entry
                empty = 0 in shape
                batch[name] = numpy.zeros(shape, dtype) if empty else numpy.ndarray(shape, dtype, content, offset)
        batches.append(batch)
    return batches
