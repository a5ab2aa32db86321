"""Parsers of the streams of StreamHDFDataset: from the array of one sequence to its data."""

from __future__ import annotations

from collections.abc import Sequence

import h5py
import numpy as np

from returnn.datasets._hdf.outside_links import check_array

__all__ = ["StreamParser", "FeatureSequenceStreamParser", "SparseStreamParser", "SegmentAlignmentStreamParser"]


class StreamParser:
    """One stream of one file. Arrays are checked when they are read."""

    def __init__(self, seq_names: Sequence[str], stream: h5py.Group):
        """
        :param seq_names: of the file
        :param stream: group with "data", and "feature_names" if sparse
        :raises ValueError: if the stream has not the form of this parser
        """
        self._stream = stream
        self._data = stream["data"]
        self.num_features: int = 0
        self.feature_type: int = 0  # 1 sparse, 2 dense
        self.dtype: str = ""

    def get_data(self, seq_name: str) -> np.ndarray:
        """:return: data of the sequence"""
        raise NotImplementedError

    def get_seq_length(self, seq_name: str) -> int:
        """:return: number of frames"""
        raise NotImplementedError

    def get_dtype(self) -> str:
        """:return: dtype name"""
        return self.dtype

    def _get_array(self, seq_name: str) -> h5py.Dataset:
        # "/" would mean a group.
        array = self._data[seq_name.replace("/", "\\")]
        if isinstance(array, h5py.Dataset):
            check_array(array, self._stream.file.filename)
        return array

    def _check(self, condition: bool, seq_name: str, expected: str, got: object) -> None:
        if not condition:
            raise ValueError(f"stream {self._stream.name!r}, sequence {seq_name!r}: expected {expected}, got {got}")


class FeatureSequenceStreamParser(StreamParser):
    """[T, num_features] per sequence."""

    def __init__(self, seq_names: Sequence[str], stream: h5py.Group):
        """
        :param seq_names: of the file
        :param stream: group
        """
        super().__init__(seq_names, stream)
        self.feature_type = 2
        if len(seq_names):
            first = self._get_array(seq_names[0])
            self._check(first.ndim == 2, seq_names[0], "2 axes", first.ndim)
            self.num_features = int(first.shape[1])
            self.dtype = first.dtype.name

    def get_data(self, seq_name: str) -> np.ndarray:
        """:return: [T, num_features]"""
        data = self._get_array(seq_name)[...]
        self._check(
            data.ndim == 2 and data.shape[1] == self.num_features and data.dtype.name == self.dtype,
            seq_name,
            f"{self.dtype} [T, {self.num_features}]",
            f"{data.dtype.name} {list(data.shape)}",
        )
        return data

    def get_seq_length(self, seq_name: str) -> int:
        """:return: T"""
        return int(self._get_array(seq_name).shape[0])


class SparseStreamParser(StreamParser):
    """[T] class indices per sequence."""

    def __init__(self, seq_names: Sequence[str], stream: h5py.Group):
        """
        :param seq_names: of the file
        :param stream: group
        """
        super().__init__(seq_names, stream)
        self.feature_type = 1
        self.num_features = int(stream["feature_names"].shape[0])
        if len(seq_names):
            first = self._get_array(seq_names[0])
            self._check(first.ndim == 1, seq_names[0], "1 axis", first.ndim)
            self.dtype = first.dtype.name

    def get_data(self, seq_name: str) -> np.ndarray:
        """:return: [T]"""
        data = self._get_array(seq_name)[...]
        self._check(
            data.ndim == 1 and data.dtype.name == self.dtype,
            seq_name,
            f"{self.dtype} [T]",
            f"{data.dtype.name} {list(data.shape)}",
        )
        return data

    def get_seq_length(self, seq_name: str) -> int:
        """:return: T"""
        return int(self._get_array(seq_name).shape[0])


class SegmentAlignmentStreamParser(StreamParser):
    """[S, 2] rows (class, duration) per sequence; becomes (class, end flag) per frame, flattened."""

    def __init__(self, seq_names: Sequence[str], stream: h5py.Group):
        """
        :param seq_names: of the file
        :param stream: group
        """
        super().__init__(seq_names, stream)
        self.feature_type = 1
        self.num_features = int(stream["feature_names"].shape[0])
        if len(seq_names):
            self.dtype = self._get_segments(seq_names[0]).dtype.name

    def _get_segments(self, seq_name: str) -> np.ndarray:
        segments = self._get_array(seq_name)[...]
        self._check(segments.ndim == 2 and segments.shape[1] == 2, seq_name, "[segments, 2]", list(segments.shape))
        return segments

    def get_data(self, seq_name: str) -> np.ndarray:
        """:return: [2 * sum of durations]"""
        segments = self._get_segments(seq_name)
        self._check(segments.dtype.name == self.dtype, seq_name, self.dtype, segments.dtype.name)
        durations = segments[:, 1].astype(np.int64)
        self._check(bool((durations >= 0).all()), seq_name, "durations >= 0", durations.tolist()[:10])
        frames = np.zeros((int(durations.sum()), 2), dtype=segments.dtype)
        frames[:, 0] = np.repeat(segments[:, 0], durations)
        frames[np.cumsum(durations)[durations > 0] - 1, 1] = 1
        return frames.reshape(-1)

    def get_seq_length(self, seq_name: str) -> int:
        """:return: twice the number of frames"""
        return 2 * int(self._get_segments(seq_name)[:, 1].sum())
