"""
Room in memory that several processes share, for large arrays which the first process that needs one makes for all of them.

A room that nobody needs takes no memory. The memory has no name in the file system: it is gone when all processes are that
have it.
"""

from __future__ import annotations

import math
import mmap
import os
import sys
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import numpy

from returnn._state import state

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]  # then there is no shared memory either

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["CAN_SHARE", "Rooms", "array_from_room", "create_rooms", "from_room"]

#: Whether memory without a name can be passed on as file handle.
CAN_SHARE = sys.platform.startswith("linux") and hasattr(os, "memfd_create")
#: More are not worth their entries in the message to each process.
_MAX_ROOMS = 500
#: Smaller arrays each process has for itself.
_MIN_BYTES = 2**20

#: Key -> number of the room, where it starts, bytes.
Places = Mapping[str, tuple[int, int, int]]


class Rooms:
    """All rooms for the workers of one dataset. Byte i of the memory tells whether room i is furnished."""

    def __init__(self, fd: int, places: Places):
        """
        :param fd: of the memory. Owned
        :param places: of the rooms
        """
        self.fd = fd
        self.places = places
        self._bytes: numpy.ndarray | None = None

    @classmethod
    def create(cls, sizes: Mapping[str, int]) -> Rooms:
        """
        :param sizes: key -> bytes
        :raises OSError: no memory
        """
        places = {}
        pos = _round_up(len(sizes))
        for number, (key, num_bytes) in enumerate(sizes.items()):
            places[key] = number, pos, num_bytes
            pos += _round_up(num_bytes)
        fd = os.memfd_create("returnn-rooms", os.MFD_CLOEXEC)
        try:
            os.ftruncate(fd, pos)
        except OSError:
            os.close(fd)
            raise
        return cls(fd, places)

    def get(self, key: str, num_bytes: int, make: Callable[[numpy.ndarray], None]) -> numpy.ndarray | None:
        """
        :param key: of the room
        :param num_bytes: of the array
        :param make: writes it into uint8 [num_bytes]; not called if another process did it. Others wait meanwhile
        :return: uint8 [num_bytes], cannot be written to; None: there is no such room
        """
        number, start, size = self.places.get(key, (0, 0, -1))
        if size != num_bytes:
            return None
        if self._bytes is None:
            try:
                memory = mmap.mmap(self.fd, os.fstat(self.fd).st_size)
            except (OSError, ValueError):  # e.g. a limit of the address space
                return None
            self._bytes = numpy.frombuffer(memory, dtype=numpy.uint8)
        room = self._bytes[start : start + num_bytes]
        # This lock is let go also if the process is killed.
        fcntl.lockf(self.fd, fcntl.LOCK_EX, 1, number)
        try:
            if not self._bytes[number]:
                make(room)
                self._bytes[number] = 1
        finally:
            fcntl.lockf(self.fd, fcntl.LOCK_UN, 1, number)
        room.flags.writeable = False
        return room

    def close(self, close: Callable[[int], None] = os.close) -> None:
        """
        This process does not need them any more.

        :param close: of a handle. An argument, since at the end of the process modules may be gone
        """
        fd, self.fd = self.fd, -1
        if fd >= 0:
            close(fd)

    def __del__(self) -> None:
        self.close()


def _round_up(num_bytes: int) -> int:
    return -(-num_bytes // mmap.PAGESIZE) * mmap.PAGESIZE


def from_room(key: Callable[[], str], num_bytes: int, make: Callable[[numpy.ndarray], None]) -> numpy.ndarray | None:
    """
    :param key: gives the key of the room; called only if there are any
    :param num_bytes: see :func:`Rooms.get`
    :param make: see :func:`Rooms.get`
    :return: see :func:`Rooms.get`
    """
    if state.shared_rooms is None or num_bytes < _MIN_BYTES:
        return None
    array: numpy.ndarray | None = state.shared_rooms.get(key(), num_bytes, make)
    return array


def array_from_room(
    key: Callable[[], str], shape: tuple[int, ...], dtype: numpy.dtype, fill: Callable[[numpy.ndarray], None]
) -> numpy.ndarray:
    """
    :param key: see :func:`from_room`
    :param shape: of the array
    :param dtype: without Python objects, if there can be a room
    :param fill: writes all of an array of that form; not called if another process did it
    :return: the array, in its room if there is one (then it cannot be written to), else in memory of this process
    """
    num_bytes = math.prod(shape) * dtype.itemsize
    room = from_room(key, num_bytes, lambda room: fill(room.view(dtype).reshape(shape)))
    if room is not None:
        return room.view(dtype).reshape(shape)
    array = numpy.empty(shape, dtype=dtype)
    fill(array)
    return array


def create_rooms(datasets: list[Dataset]) -> Rooms | None:
    """
    :param datasets: which several processes will have
    :return: for the large arrays that they may need; None: there are none, or this system cannot share them
    """
    if not CAN_SHARE:
        return None
    sizes = {key: size for dataset in datasets for key, size in dataset.shared_rooms().items() if size >= _MIN_BYTES}
    if not sizes or len(sizes) > _MAX_ROOMS:
        return None
    try:
        return Rooms.create(sizes)
    except OSError:  # no memory: each process has its own arrays
        return None
