"""The short way for sequences that come one by one: what fits to the form of those before is taken at once, and joined later."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from returnn.datasets._hdf.batch_to_frames import to_numpy
from returnn.datasets._hdf.growing import DIRECT_BYTES

__all__ = ["StreamForm", "CollectedSeqs", "SingleSeqs", "SEQ_BYTES"]

#: memory for a sequence without its data: tag, lengths, objects
SEQ_BYTES = 256


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
    data: list[bytes]  # of the main stream
    lens: list[int]
    extra_data: dict[str, list[bytes]]
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
        # Per sequence: data, length, tag, then data and length of each extra stream. Flat, and extended in one step:
        # an interrupt (Ctrl-C) leaves no half of a sequence, and there are no tuples for the garbage collector.
        self._items: list[Any] = []  # Any: bytes, int, str in turn
        self._step = 3
        self._dtype: np.dtype | None = None
        self._frame_shape: tuple[int, ...] | None = None
        # Key, dtype, and shape without batch and time; None: always the long way.
        self._extras: list[tuple[str, np.dtype, tuple[int, ...] | None]] = []

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
            (form.key, form.dtype, None if form.dtype.hasobject or len(form.frame_shape) > 1 else form.frame_shape)
            for form in extras
        ]
        self._step = 3 + 2 * len(extras)

    def stop(self) -> None:
        """Take nothing any more."""
        self._frame_shape = None

    def add(self, inputs: Any, seq_len: Any, seq_tag: Any, extra: Any, extra_seq_len: Any) -> bool:
        """
        :param inputs: as for ``SimpleHDFWriter.insert_batch``, as all others. Any: as there
        :param seq_len: Any: as there
        :param seq_tag: Any: as there
        :param extra: Any: as there
        :param extra_seq_len: Any: as there
        :return: whether it was taken. If not, nothing was done: it needs the long way
        """
        if type(inputs) is not np.ndarray:
            if not hasattr(inputs, "detach") or self._frame_shape is None:
                return False
            inputs = to_numpy(inputs)
        shape = inputs.shape
        if shape[2:] != self._frame_shape or len(shape) < 2 or shape[0] != 1 or inputs.dtype != self._dtype:
            return False
        if type(seq_len) is dict:
            seq_len = seq_len.get(0) if len(seq_len) == 1 else None
        length = seq_len[0] if type(seq_len) is list and len(seq_len) == 1 else _single_int(seq_len)
        if type(length) is not int:
            length = _plain_int(length)
        if type(seq_tag) is not list and type(seq_tag) is not tuple or len(seq_tag) != 1:
            return False
        tag = seq_tag[0]
        if type(tag) is not str or not tag.isprintable():  # NUL and half surrogates are not printable
            return False
        if length == shape[1]:
            if inputs.nbytes >= DIRECT_BYTES:
                return False
            data = inputs.tobytes()
        elif 0 <= length < shape[1]:
            frames = inputs[0, :length]
            if frames.nbytes >= DIRECT_BYTES:
                return False
            data = frames.tobytes()
        else:
            return False
        if self._extras or extra or extra_seq_len:
            more = self._get_extras(extra or {}, extra_seq_len or {})
            if more is None:
                return False
            self.room -= len(data) + sum(map(len, more[::2])) + SEQ_BYTES
            self._items.extend((data, length, tag, *more))
        else:
            self.room -= len(data) + SEQ_BYTES
            self._items.extend((data, length, tag))
        return True

    def get_all(self) -> CollectedSeqs:
        """:return: all that is collected"""
        items, step = self._items, self._step
        columns = [items[i::step] for i in range(step)]
        return CollectedSeqs(
            tags=columns[2],
            data=columns[0],
            lens=columns[1],
            extra_data={key: columns[3 + 2 * i] for i, (key, _, _) in enumerate(self._extras)},
            extra_lens={key: columns[4 + 2 * i] for i, (key, _, _) in enumerate(self._extras)},
        )

    def clear(self) -> None:
        """Forget what is collected."""
        self._items = []

    def _get_extras(self, extra: Mapping[str, Any], extra_seq_len: Mapping[str, Any]) -> list[Any] | None:
        """:return: data and length of each extra stream in turn; None if they need the long way"""
        if not isinstance(extra, dict) or not isinstance(extra_seq_len, dict):
            return None
        parts: list[Any] = []  # Any: bytes, int in turn
        num_found = num_cut = 0
        for key, dtype, frame_shape in self._extras:
            value = extra.get(key)
            if value is None:
                parts += (b"", 0)
                continue
            num_found += 1
            if type(value) is np.ndarray:
                shape = value.shape
                if not shape or shape[0] != 1:
                    return None
            else:
                if type(value) is list or type(value) is tuple:
                    if len(value) != 1:
                        return None
                    value = to_numpy(value[0])[None]
                elif hasattr(value, "detach"):
                    value = to_numpy(value)
                else:
                    return None
                shape = value.shape
            if shape[2:] != frame_shape or value.dtype != dtype or value.nbytes >= DIRECT_BYTES:
                return None
            length = shape[1] if len(shape) > 1 else 1
            if extra_seq_len and key in extra_seq_len:
                num_cut += 1
                cut = _plain_int(_single_int(extra_seq_len[key]))
                if not 0 <= cut <= length:
                    return None
                if cut < length:
                    length = cut
                    value = value[0, :length] if len(shape) > 1 else value[:length]
            parts += (value.tobytes(), length)
        if num_found != len(extra) or num_cut != len(extra_seq_len):
            return None
        return parts


def _single_int(lens: Any) -> Any:
    """
    :param lens: Any: lengths as the user gives them
    :return: the only one, Any: of the type it has; -1 if there is another number of them, or it needs the long way
    """
    if type(lens) is not list and type(lens) is not tuple:
        if not isinstance(lens, np.ndarray) and not hasattr(lens, "detach"):
            return -1
        lens = lens.tolist()
        if type(lens) is not list:
            return -1
    return lens[0] if len(lens) == 1 else -1


def _plain_int(value: Any) -> int:
    """
    :param value: Any: of the user
    :return: as int; -1 if it is none
    """
    if type(value) is int:
        return value
    if isinstance(value, np.integer):
        return int(value)
    if hasattr(value, "detach") or type(value) is np.ndarray:
        value = value.item() if value.shape == () else -1
        return value if type(value) is int else -1
    return -1
