"""A growing HDF dataset that is written in large blocks."""

from __future__ import annotations

import math

import h5py
import numpy as np

__all__ = ["GrowingDataset"]

_MIN_CHUNK_BYTES = 16 << 10
_MAX_CHUNK_BYTES = 128 << 10


class GrowingDataset:
    """Collects frames in memory; :func:`flush` appends them. The HDF dataset is created at the first flush."""

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
        self._pending: list[np.ndarray] = []
        self.num_pending = 0
        self.num_frames = 0 if existing is None else int(existing.shape[0])

    @property
    def pending_bytes(self) -> int:
        """:return: memory in use"""
        return self.num_pending * self.frame_bytes

    def append(self, frames: np.ndarray) -> None:
        """
        :param frames: [T, *frame_shape], is kept, so it must not change later
        """
        if len(frames):
            self._pending.append(frames)
            self.num_pending += len(frames)

    def flush(self) -> None:
        """Write all collected frames; create the HDF dataset if there is none yet, even for no frames."""
        frames = np.concatenate(self._pending) if self._pending else None
        if self._dataset is None:
            num = 0 if frames is None else len(frames)
            self._dataset = self._parent.create_dataset(
                self._name,
                shape=(num, *self.frame_shape),
                maxshape=self._maxshape,
                dtype=self.dtype,
                chunks=self._get_chunks(num),
            )
            if frames is not None:
                self._dataset[...] = frames
        elif frames is not None:
            start = self.num_frames
            self._dataset.resize(start + len(frames), axis=0)
            self._dataset[start:] = frames
        self.num_frames += self.num_pending
        self._pending = []
        self.num_pending = 0

    def _get_chunks(self, num_frames: int) -> tuple[int, ...]:
        """Small files stay small; otherwise a size that costs little per read."""
        lower = max(1, _MIN_CHUNK_BYTES // self.frame_bytes)
        upper = max(1, _MAX_CHUNK_BYTES // self.frame_bytes)
        return (min(max(num_frames, lower), upper), *(max(1, size) for size in self.frame_shape))
