"""A growing HDF dataset that is written in large blocks."""

from __future__ import annotations

import math
from collections.abc import Iterator

import h5py
import numpy as np

__all__ = ["GrowingDataset", "DIRECT_BYTES"]

_MIN_CHUNK_BYTES = 16 << 10
_MAX_CHUNK_BYTES = 128 << 10
#: Frames of this size in one call are written at once, without a copy. Below, a copy costs less than a call of h5py.
DIRECT_BYTES = 256 << 10
# What is collected is joined to parts of about this size: memory of some MiB would come new from the system each time.
_JOIN_BYTES = 1 << 20


class GrowingDataset:
    """
    Collects frames in memory; :func:`flush` appends them. The HDF dataset is created at the first write.
    Large arrays are written at once.
    """

    def __init__(
        self,
        parent: h5py.Group,
        name: str,
        dtype: np.dtype,
        frame_shape: tuple[int, ...],
        *,
        maxshape: tuple[int | None, ...] | None = None,
        existing: h5py.Dataset | None = None,
    ):
        """
        :param parent: group to create it in
        :param name: in the group
        :param dtype: numpy dtype, or h5py string dtype
        :param frame_shape: shape without the first axis
        :param maxshape: limit of each axis, None for unlimited. Default: only the first axis grows
        :param existing: append to this one
        """
        self._parent = parent
        self._name = name
        self.dtype = dtype
        self.frame_shape = frame_shape
        #: at least 1
        self.frame_bytes = max(1, dtype.itemsize * math.prod(frame_shape))
        self._maxshape = maxshape or (None, *frame_shape)
        self._dataset = existing
        # Frames as bytes, or arrays if they have no bytes of their own (texts).
        self._pending_raw: list[bytes | bytearray] = []
        self._pending_arrays: list[np.ndarray] = []
        self._num_pending = 0
        self.num_frames = 0 if existing is None else int(existing.shape[0])

    def append(self, frames: np.ndarray) -> int:
        """
        :param frames: [T, *frame_shape], may change after the call
        :return: bytes of memory that this takes until the next flush
        """
        num = len(frames)
        if not num:
            return 0
        if self.dtype.hasobject:
            self._pending_arrays.append(frames.copy())
            self._num_pending += num
        elif num * self.frame_bytes >= DIRECT_BYTES:
            if self._num_pending:
                self.flush()
            self._write_blocks(num, iter([np.asarray(frames, dtype=self.dtype)]))
            return 0
        else:
            self.append_raw(frames.astype(self.dtype, copy=False).tobytes(), num)
        return num * self.frame_bytes

    def append_raw(self, raw: bytes | bytearray, num_frames: int) -> None:
        """
        :param raw: frames of our dtype, in memory order C; is kept. Of texts, there may be none
        :param num_frames: their number
        """
        if raw:
            self._pending_raw.append(raw)
        self._num_pending += num_frames

    def is_consistent(self) -> bool:
        """:return: whether there are as many frames as were said. Not after an interrupt (Ctrl-C) within append"""
        num_bytes = sum(map(len, self._pending_raw))
        return (
            num_bytes + self.frame_bytes * sum(map(len, self._pending_arrays)) == self.frame_bytes * self._num_pending
        )

    def flush(self) -> None:
        """Write all collected frames; create the HDF dataset if there is none yet, even for no frames."""
        if self._num_pending or self._dataset is None:
            self._write_blocks(self._num_pending, self._iter_pending())
        self._pending_raw = []
        self._pending_arrays = []
        self._num_pending = 0

    def _iter_pending(self) -> Iterator[np.ndarray]:
        if self._pending_arrays:
            yield np.concatenate(self._pending_arrays)
        group: list[bytes | bytearray] = []
        num_bytes = 0
        for part in self._pending_raw:
            if group and len(part) >= _JOIN_BYTES // 4:
                yield self._join(group)
                group, num_bytes = [], 0
            group.append(part)
            num_bytes += len(part)
            if num_bytes >= _JOIN_BYTES:
                yield self._join(group)
                group, num_bytes = [], 0
        if group:
            yield self._join(group)

    def _join(self, group: list[bytes | bytearray]) -> np.ndarray:
        raw = group[0] if len(group) == 1 else b"".join(group)
        return np.frombuffer(raw, dtype=self.dtype).reshape(-1, *self.frame_shape)

    def _write_blocks(self, num_frames: int, blocks: Iterator[np.ndarray]) -> None:
        start = self.num_frames
        if self._dataset is None:
            self._dataset = self._parent.create_dataset(
                self._name,
                shape=(num_frames, *self.frame_shape),
                maxshape=self._maxshape,
                dtype=self.dtype,
                chunks=self._get_chunks(num_frames),
            )
        else:
            self._dataset.resize(start + num_frames, axis=0)
        for block in blocks:
            self._dataset[start : start + len(block)] = block
            start += len(block)
        self.num_frames += num_frames

    def _get_chunks(self, num_frames: int) -> tuple[int, ...]:
        """Small files stay small; otherwise a size that costs little per read."""
        lower = max(1, _MIN_CHUNK_BYTES // self.frame_bytes)
        upper = max(1, _MAX_CHUNK_BYTES // self.frame_bytes)
        return (min(max(num_frames, lower), upper), *(max(1, size) for size in self.frame_shape))
