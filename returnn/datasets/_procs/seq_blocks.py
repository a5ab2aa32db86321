"""
Several sequences as one message between processes: their data as few flat arrays in shared memory.
"""

from __future__ import annotations

import dataclasses
import pickle
import time
from collections.abc import Iterator, Mapping, Sequence
from multiprocessing.connection import Connection
from typing import Any

import numpy

from returnn.datasets._loading.shared_slots import CAN_SHARE, ReadSlot, WriteSlot
from returnn.datasets.ragged import Ragged

__all__ = ["SeqBlock", "BlockBuilder", "BlockSender", "BlockReceiver", "BlockSize"]

#: Data of one sequence.
Features = Mapping[str, numpy.ndarray]
# Text and objects are pickled.
_PICKLED_KINDS = "OUS"
_MAX_BLOCK_BYTES = 4 << 20
# Up to this, more than the asked number of sequences are put into a block.
_SMALL_BLOCK_BYTES = 128 << 10
_MAX_BLOCK_SEQS = 1024
_MAX_BLOCK_SECS = 0.05


@dataclasses.dataclass(frozen=True)
class SeqBlock:
    """
    :param tags: of the sequences
    :param fracs: float64 [number of sequences]: how much of the epoch is done after each; nan: not known
    :param data: per key, flat, or as list if the sequences differ in more than the length
    """

    tags: list[str]
    fracs: numpy.ndarray
    data: dict[str, Ragged | list[numpy.ndarray]]

    def __len__(self) -> int:
        return len(self.tags)

    def features(self, i: int) -> dict[str, numpy.ndarray]:
        """:return: data of one sequence; views"""
        return {key: column[i] for key, column in self.data.items()}

    def frac(self, i: int) -> float | None:
        """:return: how much of the epoch is done after this sequence; None: not known"""
        frac = float(self.fracs[i])
        return None if numpy.isnan(frac) else frac


class BlockSize:
    """
    How many sequences go into the next block: at first one, so that it comes soon, then twice as many each time, up
    to a limit; of small sequences more than that, since each message has its cost.
    """

    def __init__(self, buffer_size: int):
        """
        :param buffer_size: sequences that may be on their way, in all blocks
        """
        self._max_seqs = max(1, (buffer_size + 1) // 2)
        self._growing = 1

    def is_full(self, num_seqs: int, num_bytes: int) -> bool:
        """:return: whether such a block is to be sent"""
        if num_bytes >= _MAX_BLOCK_BYTES or num_seqs >= self._growing:
            return True
        return num_seqs >= self._max_seqs and num_bytes >= _SMALL_BLOCK_BYTES

    def num_seqs(self, seq_bytes: numpy.ndarray) -> int:
        """
        :param seq_bytes: int64 [N], N > 0: sizes of the next sequences
        :return: how many of them are a full block
        """
        until = numpy.cumsum(seq_bytes)
        count = min(int(numpy.searchsorted(until, _MAX_BLOCK_BYTES)) + 1, self._growing, len(seq_bytes))
        if count > self._max_seqs:
            count = min(count, max(self._max_seqs, int(numpy.searchsorted(until, _SMALL_BLOCK_BYTES)) + 1))
        return count

    def grow(self) -> None:
        """A block was sent."""
        self._growing = min(self._growing * 2, _MAX_BLOCK_SEQS)


class BlockBuilder:
    """Collects sequences for a block."""

    def __init__(self, buffer_size: int):
        """
        :param buffer_size: see :class:`BlockSize`
        """
        self._size = BlockSize(buffer_size)
        self._tags: list[str] = []
        self._fracs: list[float] = []
        self._seqs: list[Features] = []
        self._num_bytes = 0
        self._since = 0.0

    def __len__(self) -> int:
        return len(self._tags)

    def add(self, features: Features, tag: str, frac: float | None) -> Iterator[SeqBlock]:
        """
        :param features: data of the next sequence
        :param tag: of it
        :param frac: how much of the epoch is done after it
        :return: blocks that are full now
        """
        if self._seqs and self._seqs[0].keys() != features.keys():
            yield self.take()
        if not self._seqs:
            self._since = time.monotonic()
        self._tags.append(tag)
        self._fracs.append(numpy.nan if frac is None else frac)
        self._seqs.append(features)
        self._num_bytes += sum(v.nbytes for v in features.values())
        if self._size.is_full(len(self), self._num_bytes) or time.monotonic() - self._since > _MAX_BLOCK_SECS:
            yield self.take()

    def take(self) -> SeqBlock:
        """:return: what was collected, at least one sequence"""
        keys = list(self._seqs[0])
        data = {key: _column([seq[key] for seq in self._seqs]) for key in keys}
        block = SeqBlock(self._tags, numpy.array(self._fracs, dtype=numpy.float64), data)
        self._tags, self._fracs, self._seqs, self._num_bytes = [], [], [], 0
        self._size.grow()
        return block


def _column(arrays: list[numpy.ndarray]) -> Ragged | list[numpy.ndarray]:
    first = arrays[0]
    if first.dtype.kind in _PICKLED_KINDS:
        return arrays
    if all(a.dtype == first.dtype and a.ndim == first.ndim and a.shape[1:] == first.shape[1:] for a in arrays):
        return Ragged.from_list(arrays) if len(arrays) > 1 else _single(first)
    return arrays


def _single(array: numpy.ndarray) -> Ragged:
    """Without a copy."""
    if array.ndim == 0:
        return Ragged(array.reshape(1), None)
    return Ragged(array, numpy.array([len(array)]))


class BlockSender:
    """Sends blocks through a few slots of shared memory. A slot is free again when the receiver says so."""

    def __init__(self, conn: Connection, num_slots: int = 2):
        """
        :param conn: to the receiver
        :param num_slots: blocks on their way
        """
        self._conn = conn
        self._slots = [WriteSlot(i) for i in range(num_slots)]
        self._free = list(range(num_slots))

    @property
    def has_free(self) -> bool:
        """:return: whether a block can be sent"""
        return bool(self._free)

    @property
    def num_free(self) -> int:
        """:return: blocks that can be sent now"""
        return len(self._free)

    def free(self, slot: int) -> None:
        """:param slot: of a message ("free", slot)"""
        self._free.append(slot)

    def send(self, pass_id: int, block: SeqBlock) -> None:
        """
        Needs a free slot.

        :param pass_id: for the receiver
        :param block: to copy
        """
        slot = self._slots[self._free.pop()]
        slot.clear()
        arrays: list[numpy.ndarray] = []
        columns: list[tuple[str, str, Any]] = []  # Any: see BlockReceiver
        for key, column in block.data.items():
            first = column.flat if isinstance(column, Ragged) else column[0]
            if first.dtype.kind in _PICKLED_KINDS or any(a.dtype != first.dtype for a in _arrays_of(column)):
                columns.append((key, "pickled", list(column)))
            elif isinstance(column, Ragged):
                columns.append((key, "flat", column.lens))
                arrays.append(column.flat)
            else:
                columns.append((key, "each", [a.shape for a in column]))
                arrays.append(numpy.concatenate([a.ravel() for a in column]))
        # The rest too: a long message could block both sides.
        rest = pickle.dumps((block.tags, block.fracs, columns), protocol=pickle.HIGHEST_PROTOCOL)
        arrays.append(numpy.frombuffer(rest, dtype=numpy.uint8))
        places = []
        for array, target in zip(arrays, slot.alloc([(a.shape, a.dtype) for a in arrays]), strict=True):
            target[...] = array
            places.append((slot.offset_of(target), array.shape, array.dtype.str))
        if slot.fd >= 0:
            self._conn.send(("memory", slot.index, slot.size))
            slot.send_memory(self._conn)
        self._conn.send(("block", pass_id, slot.index, slot.used, places))
        if not CAN_SHARE:
            self._conn.send_bytes(slot.content())


class BlockReceiver:
    """The other side of :class:`BlockSender`. Messages are received by the caller."""

    def __init__(self, conn: Connection):
        """
        :param conn: to the sender
        """
        self._conn = conn
        self._slots: dict[int, ReadSlot] = {}

    def on_memory(self, message: tuple[Any, ...]) -> None:
        """:param message: ("memory", slot, size), just received"""
        self._slots[message[1]] = ReadSlot(self._conn, message[2])

    def on_block(self, message: tuple[Any, ...]) -> SeqBlock:
        """
        :param message: ("block", pass_id, slot, ...), just received; then ("free", slot) is to be sent
        :return: own copy
        """
        _, _, slot, used, places = message
        if CAN_SHARE:
            content = self._slots[slot].copy(used) if used else numpy.zeros(0, numpy.uint8)
        else:
            content = numpy.frombuffer(bytearray(self._conn.recv_bytes()), dtype=numpy.uint8)
        *arrays, rest = [_array(content, *place) for place in places]
        tags, fracs, columns = pickle.loads(rest.data)  # from our own process
        column_arrays = iter(arrays)
        data: dict[str, Ragged | list[numpy.ndarray]] = {}
        for key, kind, info in columns:
            if kind == "flat":
                data[key] = Ragged(next(column_arrays), info)
            elif kind == "each":
                sizes = numpy.cumsum([int(numpy.prod(shape)) for shape in info])
                parts = numpy.split(next(column_arrays), sizes[:-1])
                data[key] = [part.reshape(shape) for part, shape in zip(parts, info, strict=True)]
            else:
                data[key] = info
        return SeqBlock(tags, fracs, data)


def _arrays_of(column: Ragged | list[numpy.ndarray]) -> list[numpy.ndarray]:
    return [] if isinstance(column, Ragged) else column


def _array(content: numpy.ndarray, offset: int, shape: Sequence[int], dtype: str) -> numpy.ndarray:
    # The buffer interface refuses an offset at its very end, so empty arrays are made new.
    if 0 in shape:
        return numpy.zeros(shape, dtype)
    return numpy.ndarray(tuple(shape), numpy.dtype(dtype), content, offset)  # type: ignore[arg-type]
