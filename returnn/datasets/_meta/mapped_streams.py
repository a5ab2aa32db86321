"""Streams of a MetaDataset: which stream of which child each one is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn.datasets._meta.children import dims_of_stream
from returnn.datasets.basic import Dataset, convert_data_dims
from returnn.errors import ConfigError, DatasetError, describe
from returnn.log import log

__all__ = ["MappedStreams"]


class MappedStreams:
    """Part of :class:`returnn.datasets._meta.by_seq_list.MetaDataset`, which sets the attributes."""

    data_map: dict[str, tuple[str, str]]  # own stream -> (key of the child, stream of the child)
    data_keys: set[str]
    datasets: dict[str, Dataset]
    target_list: list[str]
    num_outputs: dict[str, Any] | None
    labels: dict[str, Sequence[str]]
    _data_dims: Any  # see convert_data_dims
    _where_text: str

    def _take_dims(self, data_dims: Any) -> None:
        child_dims = {
            stream: dims_of_stream(
                self.datasets[key],
                sub_stream,
                what=f"data_map[{stream!r}] = {(key, sub_stream)}",
                where=self._where_text,
            )
            for stream, (key, sub_stream) in self.data_map.items()
        }
        self.num_outputs = child_dims
        if data_dims is not None:
            dims = convert_data_dims(data_dims)
            missing = sorted(self.data_keys - set(dims))
            if missing:
                raise ConfigError(
                    describe(
                        "data_dims has not all streams of data_map",
                        where=self._where_text,
                        expected=f"{sorted(self.data_keys)}",
                        got=sorted(dims),
                        todo="Remove data_dims, the datasets know their dims",
                    )
                )
            for stream, entry in child_dims.items():
                if not isinstance(entry, Mapping) and tuple(entry) != tuple(dims[stream]):
                    print(
                        f"Warning: {self._where_text}: data_dims[{stream!r}] = {dims[stream]} replaces {tuple(entry)}"
                        f" of dataset {self.data_map[stream][0]!r}. Remove data_dims, the datasets know their dims.",
                        file=log.v2,
                    )
            self.num_outputs = {stream: dims[stream] for stream in self.data_map}
        for stream, (key, sub_stream) in self.data_map.items():
            labels = self.datasets[key].labels
            if sub_stream in labels:
                self.labels[stream] = labels[sub_stream]

    def get_data_keys(self) -> list[str]:
        """:return: own streams, sorted"""
        return sorted(self.data_keys)

    def get_target_list(self) -> list[str]:
        """:return: own streams but "data", sorted"""
        return list(self.target_list)

    def _child_of(self, stream: str) -> tuple[Dataset, str]:
        if stream not in self.data_map:
            raise DatasetError(
                describe(
                    "No such data key", where=self._where_text, expected=f"one of {sorted(self.data_keys)}", got=stream
                )
            )
        key, sub_stream = self.data_map[stream]
        return self.datasets[key], sub_stream

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: as the child says"""
        child, sub_stream = self._child_of(key)
        return child.get_data_shape(sub_stream)

    def get_data_dtype(self, key: str) -> str:
        """:return: as the child says"""
        child, sub_stream = self._child_of(key)
        return child.get_data_dtype(sub_stream)

    def is_data_sparse(self, key: str) -> bool:
        """:return: as the child says"""
        child, sub_stream = self._child_of(key)
        return child.is_data_sparse(sub_stream)

    def get_data_dim(self, key: str) -> int:
        """:return: as the child says, or data_dims"""
        child, sub_stream = self._child_of(key)
        if self._data_dims is not None:
            return int((self.num_outputs or {})[key][0])
        return child.get_data_dim(sub_stream)

    def can_serialize_data(self, key: str) -> bool:
        """:return: as the child says"""
        child, sub_stream = self._child_of(key)
        return child.can_serialize_data(sub_stream)

    def serialize_data(self, key: str, data: np.ndarray) -> str:
        """:return: as the child says"""
        child, sub_stream = self._child_of(key)
        return child.serialize_data(sub_stream, data)
