"""
The part of Dataset that describes its data keys: by ``num_outputs`` and ``labels``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType
from typing import Any

import numpy

from returnn.datasets._basic.data_dims import dim_and_ndim, dtype_of_dict, shape_of
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DatasetError

__all__ = ["DataInfoMixin"]


class DataInfoMixin:
    """Data key methods of Dataset, which sets the attributes."""

    # Any: (dim, ndim) as tuple or list, or a dict in some classes.
    num_outputs: dict[str, Any] | None
    labels: dict[str, Sequence[str]]
    #: Of the keys that were serialised: the labels then, and the vocabulary made of them. Replaced, never changed.
    _vocabs: Mapping[str, tuple[Sequence[str], Vocabulary]] = MappingProxyType({})

    def _entry(self, key: str) -> Any:
        """:return: entry of num_outputs or None. Any: (dim, ndim) or dict"""
        return (self.num_outputs or {}).get(key)

    def get_data_dim(self, key: str) -> int:
        """:return: feature size, or number of classes if sparse; 1 for an unknown key"""
        entry = self._entry(key)
        return 1 if entry is None else dim_and_ndim(entry)[0]

    def is_data_sparse(self, key: str) -> bool:
        """:return: whether the data are class indices"""
        entry = self._entry(key)
        if entry is None:
            return key != "data"
        if isinstance(entry, Mapping) and "sparse" in entry:
            return bool(entry["sparse"])
        if dtype_of_dict(entry) == "string":
            return False
        return dim_and_ndim(entry)[1] <= 1

    def get_data_dtype(self, key: str) -> str:
        """:return: name of the numpy dtype, or "string" """
        return dtype_of_dict(self._entry(key)) or ("int32" if self.is_data_sparse(key) else "float32")

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: shape without the first (time) axis; None for further dynamic axes"""
        entry = self._entry(key)
        if entry is None:
            return [] if self.is_data_sparse(key) else [self.get_data_dim(key)]
        dim, ndim = dim_and_ndim(entry)
        return shape_of(dim, ndim, self.is_data_sparse(key))

    def can_serialize_data(self, key: str) -> bool:
        """:return: whether serialize_data works"""
        return key in self.labels

    def serialize_data(self, key: str, data: numpy.ndarray) -> str:
        """
        :param key: with labels
        :param data: class indices, 0-d or [T]
        :return: labels as text
        """
        if key not in self.labels:
            raise DatasetError(f"{self!r}: no labels for key {key!r}, only for {sorted(self.labels)}.")
        labels, vocab = self._vocabs.get(key, (None, None))
        if vocab is None or labels is not self.labels[key]:
            vocab = Vocabulary.create_vocab_from_labels(self.labels[key])
            self._vocabs = {**self._vocabs, key: (self.labels[key], vocab)}
        return vocab.serialize_labels(data)
