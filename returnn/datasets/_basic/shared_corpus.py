"""
What is known of a corpus besides its data (lengths, tags, which sequences belong together), in memory that several processes
share: the main process puts it there when workers start, and goes over to that copy itself; the workers' datasets find it
there by a key that says what it is, e.g. which file in which state, instead of reading it.

The memory has no name in the file system. It is gone when the datasets of all processes are.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import mmap
import os
import pickle
import struct
from collections.abc import Callable, Iterator, Mapping, Sequence
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy

from returnn._state import state
from returnn.datasets._basic.shared_rooms import CAN_SHARE, Rooms, create_rooms

try:
    import fcntl
except ImportError:  # not on this system
    fcntl = None  # type: ignore[assignment]  # then there is no shared memory either

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["SharedPart", "Segment", "find_part", "part_key", "receive_shared_corpus", "share_corpus"]

_ALIGN = 64
#: Where the directory is: offset and size.
_HEAD = struct.Struct("<QQ")
#: os.pwrite takes no more at once.
_MAX_WRITE = 2**30

#: Name -> array.
Arrays = Mapping[str, numpy.ndarray]


@dataclasses.dataclass(frozen=True)
class SharedPart:
    """
    Something that is the same in all processes.

    :param key: by :func:`part_key`: equal only for equal content
    :param meta: small. Any: can be pickled
    :param arrays: without Python objects
    :param take_over: called with arrays of the same content, which are to be used from now on. They cannot be written to
    """

    key: str
    meta: Any
    arrays: Arrays
    take_over: Callable[[Arrays], None]


def part_key(kind: str, *content: Any) -> str:
    """
    :param kind: of the part, e.g. "hdf tags"
    :param content: what it depends on. Any: plain values
    """
    return f"{kind}:{hashlib.blake2b(repr(content).encode('utf8', 'surrogateescape'), digest_size=20).hexdigest()}"


class Segment:
    """Memory that holds parts."""

    def __init__(self, fd: int):
        """
        :param fd: of memory which :func:`create` made; closed with this object
        """
        self.fd = fd
        size = os.fstat(fd).st_size
        self._bytes = numpy.frombuffer(mmap.mmap(fd, size, access=mmap.ACCESS_READ), dtype=numpy.uint8)
        start, num_bytes = _HEAD.unpack_from(self._bytes.data)
        # Of our own parent process.
        self._directory: dict[str, tuple[Any, dict[str, tuple[int, str, tuple[int, ...]]]]] = pickle.loads(
            self._bytes[start : start + num_bytes].data
        )

    @classmethod
    def create(cls, parts: Sequence[SharedPart]) -> Segment:
        """
        :param parts: with different keys
        :raises OSError: no memory
        """
        directory: dict[str, tuple[Any, dict[str, tuple[int, str, tuple[int, ...]]]]] = {}
        fd = os.memfd_create("returnn-corpus", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
        try:
            pos, last_dtype = _HEAD.size, None
            for part in parts:
                places = {}
                for name, array in part.arrays.items():
                    # Arrays of one type lie one behind the other, so that they can be seen as one.
                    pos = pos if array.dtype == last_dtype else -(-pos // _ALIGN) * _ALIGN
                    last_dtype = array.dtype
                    places[name] = pos, array.dtype.str, array.shape
                    pos = _write(fd, pos, numpy.ascontiguousarray(array).reshape(-1).view(numpy.uint8).data)
                directory[part.key] = part.meta, places
            content = pickle.dumps(directory, protocol=pickle.HIGHEST_PROTOCOL)
            _write(fd, pos, memoryview(content))
            _write(fd, 0, memoryview(_HEAD.pack(pos, len(content))))
            with contextlib.suppress(OSError):  # it works without, too
                fcntl.fcntl(fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_WRITE)
            return cls(fd)
        except BaseException:
            os.close(fd)
            raise

    def __reduce__(self) -> tuple[Callable[[], list[Segment]], tuple[()]]:
        # A class of the user may pickle all attributes of a dataset. The handle means nothing, or something else, elsewhere.
        return list, ()

    def __contains__(self, key: str) -> bool:
        return key in self._directory

    def get(self, key: str) -> tuple[Any, dict[str, numpy.ndarray]] | None:
        """:return: meta and arrays of a part. Any: see :class:`SharedPart`"""
        found = self._directory.get(key)
        if found is None:
            return None
        meta, places = found
        arrays = {}
        for name, (pos, dtype, shape) in places.items():
            empty = 0 in shape  # the buffer interface refuses an offset at the very end
            arrays[name] = numpy.zeros(shape, dtype) if empty else numpy.ndarray(shape, dtype, self._bytes, pos)
        return meta, arrays

    def __del__(self, close: Callable[[int], None] = os.close) -> None:
        # At the end of the process modules may be gone. If the constructor failed, its caller closes the handle.
        if "_directory" in vars(self):
            close(self.fd)


def _write(fd: int, pos: int, data: memoryview) -> int:
    """:return: position behind the data"""
    while len(data):
        num = os.pwrite(fd, data[:_MAX_WRITE], pos)
        data, pos = data[num:], pos + num
    return pos


def find_part(key: str) -> tuple[Any, dict[str, numpy.ndarray]] | None:
    """
    :param key: by :func:`part_key`
    :return: meta and arrays, which cannot be written to; None: it is not shared. Any: see :class:`SharedPart`
    """
    for segment in state.shared_corpus:
        found: tuple[Any, dict[str, numpy.ndarray]] | None = segment.get(key)
        if found is not None:
            return found
    return None


class SharedCorpus:
    """All memory that a process shares with the workers of one dataset."""

    def __init__(self, dataset: Dataset, *, num_workers: int):
        """
        :param dataset: to be copied to other processes
        :param num_workers: how many
        """
        self._segments = share_corpus(dataset)
        self._rooms = create_rooms(list(_datasets_below(dataset))) if num_workers > 1 else None

    def send(self, conn: Connection) -> None:
        """
        :param conn: to another process, which need not have started yet, and receives this before anything else
        """
        rooms = self._rooms
        conn.send((len(self._segments), rooms.places if rooms is not None else None))
        for fd in [segment.fd for segment in self._segments] + ([rooms.fd] if rooms is not None else []):
            reduction.send_handle(conn, fd, 0)  # the process id matters on other systems only

    def close(self) -> None:
        """The workers are gone."""
        self._segments = []  # the dataset has them
        if self._rooms is not None:
            self._rooms.close()


def receive_shared_corpus(conn: Connection) -> None:
    """
    Take the memory of the parent process, so that :func:`find_part` and :func:`from_room` find it.

    :param conn: to the parent
    """
    num_segments, places = conn.recv()
    handles = [_receive_handle(conn) for _ in range(num_segments)]
    state.shared_rooms = Rooms(_receive_handle(conn), places) if places is not None else None
    state.shared_corpus = []
    for fd in handles:
        try:
            state.shared_corpus.append(Segment(fd))
        except OSError:  # e.g. a limit of the address space: this process reads for itself
            os.close(fd)


def _receive_handle(conn: Connection) -> int:
    fd = reduction.recv_handle(conn)
    os.set_inheritable(fd, False)  # programs that the process starts must not keep the memory
    return fd


def _datasets_below(dataset: Dataset) -> Iterator[Dataset]:
    """:return: the dataset itself, and all below, as far as they are in this process"""
    seen: set[int] = set()
    todo = [dataset]
    while todo:
        one = todo.pop()
        if id(one) in seen or not hasattr(one, "shared_parts"):  # a class of the user with the methods to read alone
            continue
        seen.add(id(one))
        yield one
        todo.extend(one.child_datasets())


def share_corpus(dataset: Dataset) -> list[Segment]:
    """
    Put what the datasets know into memory that can be passed on, and let them use that.

    :param dataset: to be copied to other processes
    :return: the memory; the dataset keeps it, for further processes. Empty: there is nothing, or this system cannot do it
    """
    if not CAN_SHARE:
        return []
    parts = {part.key: part for one in _datasets_below(dataset) for part in one.shared_parts()}
    if not parts:
        return []
    segments: list[Segment] = [
        segment for segment in vars(dataset).get("_shared_segments", ()) if any(key in segment for key in parts)
    ]
    new = [part for part in parts.values() if not any(part.key in segment for segment in segments)]
    if new:
        try:
            segment = Segment.create(new)
        except OSError:  # no memory for a copy: each process reads for itself
            return []
        segments.append(segment)
    # Twice below one dataset, or read again since the last time: each of them takes the same memory.
    for one in _datasets_below(dataset):
        for part in list(one.shared_parts()):
            found = next((found for segment in segments if (found := segment.get(part.key)) is not None), None)
            if found is not None and not _is_same_memory(part.arrays, found[1]):
                part.take_over(found[1])
    vars(dataset)["_shared_segments"] = segments
    return segments


def _is_same_memory(arrays: Arrays, other: Arrays) -> bool:
    """:param other: of the same names and sizes"""
    return all(
        array.__array_interface__["data"][0] == other[name].__array_interface__["data"][0]
        for name, array in arrays.items()
        if array.size
    )
