"""
Base of datasets whose sequences come from datasets in other processes, which also know what the data is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn.datasets._procs.dataset_server import DatasetInfo, KeyInfo
from returnn.datasets.cached2 import CachedDataset2

__all__ = ["RemoteInfoDataset"]


class RemoteInfoDataset(CachedDataset2):
    """What the data is, is asked for at the first use; copies of this dataset get it with their options."""

    def __init__(self, *, _meta_info_cache: DatasetInfo | None = None, **kwargs: Any) -> None:
        """
        :param _meta_info_cache: set in copies
        :param kwargs: see Dataset. Any: each has its own type
        """
        self._meta_info_cache = _meta_info_cache
        super().__init__(**kwargs)

    def _fetch_info(self) -> DatasetInfo:
        """:return: from another process"""
        raise NotImplementedError(f"{type(self).__name__}._fetch_info")

    def _info(self) -> DatasetInfo:
        if self._meta_info_cache is None:
            self._meta_info_cache = self._fetch_info()
        return self._meta_info_cache

    # What the base sets in its constructor is ignored.

    @property  # type: ignore[override]
    def num_inputs(self) -> int | None:
        """:return: see Dataset"""
        return self._info().num_inputs

    @num_inputs.setter
    def num_inputs(self, value: int | None) -> None:
        pass

    @property  # type: ignore[override]
    def num_outputs(self) -> dict[str, Any]:
        """:return: see Dataset. Any: (dim, ndim) or a dict"""
        return self._info().num_outputs

    @num_outputs.setter
    def num_outputs(self, value: dict[str, Any] | None) -> None:
        pass

    @property  # type: ignore[override]
    def labels(self) -> dict[str, Sequence[str]]:
        """:return: see Dataset"""
        return self._info().labels

    @labels.setter
    def labels(self, value: dict[str, Sequence[str]]) -> None:
        pass

    def _key_info(self, key: str) -> KeyInfo | None:
        return self._info().keys.get(key)

    def get_data_keys(self) -> list[str]:
        """:return: of the loaded sequences, else as declared"""
        return list(self.added_data[0].features) if self.added_data else list(self._info().keys)

    def get_target_list(self) -> list[str]:
        """See :func:`Dataset.get_target_list`."""
        return list(self._info().target_list)

    def get_data_dim(self, key: str) -> int:
        """See :func:`Dataset.get_data_dim`."""
        info = self._key_info(key)
        return super().get_data_dim(key) if info is None else info.dim

    def is_data_sparse(self, key: str) -> bool:
        """See :func:`Dataset.is_data_sparse`."""
        info = self._key_info(key)
        return super().is_data_sparse(key) if info is None else info.sparse

    def get_data_dtype(self, key: str) -> str:
        """See :func:`Dataset.get_data_dtype`."""
        info = self._key_info(key)
        return super().get_data_dtype(key) if info is None else info.dtype

    def get_data_shape(self, key: str) -> list[int | None]:
        """See :func:`Dataset.get_data_shape`."""
        info = self._key_info(key)
        return super().get_data_shape(key) if info is None else list(info.shape)

    def supports_sharding(self) -> bool:
        """See :func:`Dataset.supports_sharding`: as the dataset in the other process."""
        return self._info().supports_sharding
