"""The short way for sequences that come one by one: what fits to the form of those before is taken at once, and joined later."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
from numpy import ndarray

from returnn.datasets._hdf.batch_to_frames import cast_numbers, to_numpy
from returnn.datasets._hdf.growing import DIRECT_BYTES

__all__ = ["StreamForm", "CollectedSeqs", "SingleSeqs", "SEQ_BYTES"]

#: memory for a sequence without its data: tag, lengths, objects
SEQ_BYTES = 256

# No array has it: always the long way.
_NO_SHAPE: tuple[int, ...] = (-1,)


@dataclasses.dataclass(frozen=True)
class StreamForm:
    """How the data of a stream is stored."""

    key: str
    dtype: np.dtype
    frame_shape: tuple[int, ...]


@dataclasses.dataclass
class CollectedSeqs:
    """Some sequences in the order of their calls."""

    tags: list[str]
    data: bytearray  # of the main stream
    lens: list[int]
    extra_data: dict[str, bytearray]
    extra_lens: dict[str, list[int]]


class SingleSeqs:
    """
    Collects single sequences. It holds no reference to the file, so that a warning about lost sequences can count on it.

    All checks of the long way are made here, too, but only for what is common; for the rest :func:`add` answers False.
    """

    def __init__(self) -> None:
        #: memory that may still be used before the next flush
        self.room = 0
        #: sequences of the file without those collected here
        self.num_before = 0
        # Per sequence: length, tag, length of each extra stream. Flat, so that there are no tuples for the garbage collector,
        # and extended in one step, the last one: what an interrupt (Ctrl-C) leaves before it is no sequence.
        self._items: list[Any] = []  # Any: int, str in turn
        self._step = 2
        self._data = bytearray()
        self._dtype = np.dtype(np.float32)
        self._frame_shape = _NO_SHAPE
        # Key, dtype, shape without batch and time, data
        self._extras: list[tuple[str, np.dtype, tuple[int, ...], bytearray]] = []

    @property
    def num_collected(self) -> int:
        """:return: number of sequences collected here"""
        return len(self._items) // self._step

    @property
    def num_seqs(self) -> int:
        """:return: of the file, with those collected here"""
        return self.num_before + self.num_collected

    def start(self, main: StreamForm, extras: list[StreamForm]) -> None:
        """
        From now on take what has this form. Nothing may be collected.

        :param main: at most one axis after the time
        :param extras: all extra streams
        """
        if main.dtype.hasobject:
            self.stop()
            return
        self._dtype = main.dtype
        self._frame_shape = main.frame_shape
        self._extras = [
            (
                form.key,
                form.dtype,
                _NO_SHAPE if form.dtype.hasobject or len(form.frame_shape) > 1 else form.frame_shape,
                bytearray(),
            )
            for form in extras
        ]
        self._step = 2 + len(extras)

    def stop(self) -> None:
        """Take nothing any more."""
        self._frame_shape = _NO_SHAPE

    def add(self, inputs: Any, seq_len: Any, seq_tag: Any, extra: Any, extra_seq_len: Any) -> bool:
        """
        :param inputs: as for ``SimpleHDFWriter.insert_batch``, as all others. Any: as there
        :param seq_len: Any: as there
        :param seq_tag: Any: as there
        :param extra: Any: as there
        :param extra_seq_len: Any: as there
        :return: whether it was taken. If not, nothing was done: it needs the long way
        """
        if type(inputs) is not ndarray:
            inputs = self._from_tensor(inputs)
            if inputs is None:
                return False
        shape = inputs.shape
        if shape[2:] != self._frame_shape or len(shape) < 2 or shape[0] != 1:
            return False
        if type(seq_len) is list and len(seq_len) == 1:
            length = seq_len[0]
            if type(length) is not int:
                length = _single_int(seq_len)
        else:
            length = _single_int(seq_len)
        if type(seq_tag) is not list and type(seq_tag) is not tuple or len(seq_tag) != 1:
            return False
        tag = seq_tag[0]
        if type(tag) is not str or not tag.isprintable():  # NUL and half surrogates are not printable
            return False
        if inputs.dtype is not self._dtype and inputs.dtype != self._dtype:
            inputs = cast_numbers(inputs, self._dtype)
            if inputs is None:
                return False
        if length != shape[1]:
            if not 0 <= length < shape[1]:
                return False
            inputs = inputs[0, :length]
        num_bytes = inputs.nbytes
        if num_bytes >= DIRECT_BYTES:
            return False
        if not self._extras and not extra and not extra_seq_len:
            self._data += inputs.tobytes()
            self.room -= num_bytes + SEQ_BYTES
            self._items += (length, tag)
            return True
        item = [length, tag]
        num_extra_bytes = self._add_extras(item, extra, extra_seq_len)
        if num_extra_bytes < 0:
            self._undo_extras(item)
            return False
        self._data += inputs.tobytes()
        self.room -= num_bytes + num_extra_bytes + SEQ_BYTES
        self._items += item
        return True

    def _from_tensor(self, inputs: Any) -> np.ndarray | None:
        """
        :param inputs: Any: of the user
        :return: array; None if it is no tensor of one sequence: then it is not worth a copy
        """
        if not hasattr(inputs, "detach") or not isinstance(getattr(inputs, "shape", None), tuple):
            return None
        return to_numpy(inputs) if inputs.shape[:1] == (1,) and inputs.shape[2:] == self._frame_shape else None

    def get_all(self) -> CollectedSeqs:
        """:return: all that is collected"""
        items, step = self._items, self._step
        return CollectedSeqs(
            tags=items[1::step],
            data=self._data,
            lens=items[0::step],
            extra_data={key: data for key, _, _, data in self._extras},
            extra_lens={key: items[2 + i :: step] for i, (key, _, _, _) in enumerate(self._extras)},
        )

    def drop_half(self) -> None:
        """After an interrupt within :func:`add`: drop the data of a sequence that was not added."""
        collected = self.get_all()
        num_left = sum(collected.lens) * _frame_bytes(self._dtype, self._frame_shape)
        del self._data[num_left:]
        for key, dtype, frame_shape, data in self._extras:
            del data[sum(collected.extra_lens[key]) * _frame_bytes(dtype, frame_shape) :]

    def clear(self) -> None:
        """Forget what is collected."""
        self._items = []
        # What get_all gave is still in use.
        self._data = bytearray()
        self._extras = [(key, dtype, frame_shape, bytearray()) for key, dtype, frame_shape, _ in self._extras]

    def _undo_extras(self, item: list[Any]) -> None:
        """:param item: with the lengths of the first extra streams, whose data is dropped. Any: int, str"""
        for length, (_, dtype, frame_shape, data) in zip(item[2:], self._extras, strict=False):
            del data[len(data) - length * _frame_bytes(dtype, frame_shape) :]

    def _add_extras(self, item: list[Any], extra: Any, extra_seq_len: Any) -> int:
        """
        :param item: lengths of the extra streams are appended, as soon as the data is taken. Any: int, str
        :param extra: Any: of the user
        :param extra_seq_len: Any: of the user
        :return: number of bytes; -1 if they need the long way
        """
        if type(extra) is not dict:
            if extra:
                return -1
            extra = {}
        num_bytes = num_missing = 0
        for key, dtype, frame_shape, data in self._extras:
            value = extra.get(key)
            if type(value) is not ndarray:
                if value is None:
                    num_missing += 1
                    item.append(0)
                    continue
                value = _single_entry(value)
                if value is None:
                    return -1
            shape = value.shape
            if len(shape) == 2 and not frame_shape:
                num_entries, length = shape
            elif shape and shape[2:] == frame_shape:
                num_entries, length = shape[0], (shape[1] if len(shape) > 1 else 1)
            else:
                return -1
            if num_entries != 1 or value.nbytes >= DIRECT_BYTES:
                return -1
            if value.dtype is not dtype and value.dtype != dtype:
                value = cast_numbers(value, dtype)
                if value is None:
                    return -1
            if extra_seq_len and key in extra_seq_len:
                cut = extra_seq_len[key]
                cut = -1 if type(cut) is dict else _single_int(cut)
                if not 0 <= cut <= length:
                    return -1
                if cut < length:
                    value = value[0, :cut] if len(shape) > 1 else value[:cut]
                    length = cut
            data += value.tobytes()
            num_bytes += value.nbytes
            item.append(length)
        if len(extra) + num_missing != len(self._extras):
            return -1  # unknown keys, or no value
        if extra_seq_len and (type(extra_seq_len) is not dict or not extra_seq_len.keys() <= extra.keys()):
            return -1
        return num_bytes


def _frame_bytes(dtype: np.dtype, frame_shape: tuple[int, ...]) -> int:
    return dtype.itemsize * math.prod(frame_shape)


def _single_entry(value: Any) -> np.ndarray | None:
    """
    :param value: of an extra stream, no array. Any: of the user
    :return: [B, ...]; None if it needs the long way
    """
    if type(value) is list or type(value) is tuple:
        return to_numpy(value[0])[None] if len(value) == 1 else None
    return to_numpy(value) if hasattr(value, "detach") else None


def _single_int(lens: Any) -> int:
    """
    :param lens: Any: lengths as the user gives them
    :return: the only one; -1 if it needs the long way
    """
    if type(lens) is dict:
        lens = lens.get(0) if len(lens) == 1 else None
    if type(lens) is not list and type(lens) is not tuple:
        if not isinstance(lens, ndarray) and not hasattr(lens, "detach"):
            return -1
        lens = lens.tolist()
        if type(lens) is not list:
            return -1
    if len(lens) != 1:
        return -1
    value = lens[0]
    if type(value) is int:
        return value
    if isinstance(value, np.integer):
        return int(value)
    if (hasattr(value, "detach") or type(value) is ndarray) and value.shape == ():
        value = value.item()
    return value if type(value) is int else -1
