"""Streams of a union of datasets: dims, dtypes, and what stands for a stream that a sequence does not have."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from returnn.datasets.basic import Dataset
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError, UnknownDataKeyError, describe

__all__ = ["UnionStreams"]


class UnionStreams:
    """Part of :class:`returnn.datasets._meta.union.UnionDataset`, which sets the attributes."""

    num_outputs: dict[str, Any] | None
    _sources: dict[str, list[tuple[Dataset, str]]]  # own stream -> children that have it
    _dtypes: dict[str, np.dtype]
    _dtype_options: dict[str, str]
    _has_order: bool

    if TYPE_CHECKING:

        def _where(self) -> str: ...  # noqa: D102
        def _describe(  # noqa: D102
            self, what: str, *, expected: str | None = None, got: object = None, todo: str | None = None
        ) -> str: ...

    def _require_stream(self, stream: str) -> tuple[Dataset, str]:
        """:return: the last child that has it, and its name there"""
        if stream not in self._sources:
            raise UnknownDataKeyError(
                describe("No such data key", where=self._where(), expected=f"one of {self.get_data_keys()}", got=stream)
            )
        return self._sources[stream][-1]

    def _dtype(self, stream: str) -> np.dtype:
        """:return: one dtype for all children: the option, or what holds the dtypes of all children"""
        if stream not in self._dtypes:
            names: list[Any] = [self._dtype_options[stream]] if stream in self._dtype_options else []
            names = names or [child.get_data_dtype(sub_stream) for child, sub_stream in self._sources[stream]]
            dtypes = [np.dtype("U") if name == "string" else np.dtype(name) for name in names]
            is_text = [dtype.kind in "OSU" for dtype in dtypes]
            dtype = dtypes[-1] if any(is_text) else np.result_type(*dtypes)
            if not self._has_order:
                return dtype  # it may be known better with loaded data
            self._dtypes[stream] = dtype
        return self._dtypes[stream]

    def _cast(self, stream: str, data: np.ndarray, child: Dataset) -> np.ndarray:
        dtype = self._dtype(stream)
        if data.dtype == dtype or dtype.kind in "OSU":
            return data
        if not np.can_cast(data.dtype, dtype, "same_kind"):
            raise DatasetError(
                self._describe(
                    f"stream {stream!r} of the child {child.name!r} has another dtype",
                    expected=str(dtype),
                    got=str(data.dtype),
                    todo="Set it in data_dtypes" if hasattr(self, "_data_dtypes") else None,
                )
            )
        return data.astype(dtype)

    def _is_scalar(self, stream: str) -> bool:
        """:return: whether it has no time axis. Only declared by ndim 0"""
        entry = (self.num_outputs or {}).get(stream)
        return isinstance(entry, (tuple, list)) and len(entry) == 2 and entry[1] == 0

    def _empty(self, stream: str) -> np.ndarray:
        """:return: what a sequence without this stream has: no frames; 0 if the stream has no time axis"""
        if self._is_scalar(stream):
            return np.zeros((), self._dtype(stream))
        return np.zeros((0, *(dim or 0 for dim in self.get_data_shape(stream))), self._dtype(stream))

    def _empty_ragged(self, stream: str, num: int, trail: tuple[int, ...] | None) -> Ragged:
        example = self._empty(stream)
        if not example.ndim:
            return Ragged(np.zeros(num, example.dtype), None)
        shape = example.shape if trail is None else (0, *trail)
        return Ragged(np.zeros(shape, example.dtype), np.zeros(num, np.int64))

    def get_data_keys(self) -> list[str]:
        """:return: "data" if there is one, then the others, sorted"""
        return sorted(self._sources, key=lambda key: (key != "data", key))

    def get_target_list(self) -> list[str]:
        """:return: all but "data", sorted"""
        return sorted(key for key in self._sources if key != "data")

    def get_data_dtype(self, key: str) -> str:
        """:return: dtype of all children"""
        child, sub_stream = self._require_stream(key)
        if child.get_data_dtype(sub_stream) == "string":
            return "string"
        return str(self._dtype(key))

    def is_data_sparse(self, key: str) -> bool:
        """:return: as the child says"""
        child, sub_stream = self._require_stream(key)
        return child.is_data_sparse(sub_stream)

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: as the child says"""
        child, sub_stream = self._require_stream(key)
        return child.get_data_shape(sub_stream)

    def get_data_dim(self, key: str) -> int:
        """:return: as the child says"""
        child, sub_stream = self._require_stream(key)
        return child.get_data_dim(sub_stream)

    def can_serialize_data(self, key: str) -> bool:
        """:return: as the child says"""
        child, sub_stream = self._require_stream(key)
        return child.can_serialize_data(sub_stream)

    def serialize_data(self, key: str, data: np.ndarray) -> str:
        """:return: as the child says"""
        child, sub_stream = self._require_stream(key)
        return child.serialize_data(sub_stream, data)
