"""VariableDataset: a function gives the dataset of each epoch."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from returnn.datasets._basic.data_dims import dim_and_ndim
from returnn.datasets._meta.children import make_child, warn_about_unused_options
from returnn.datasets._meta.delegating import DelegatingDataset
from returnn.datasets._meta.options import get_order_options
from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError, DatasetError, describe
from returnn.util.fwd_compat import get_fwd_compat_kwargs
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["VariableDataset"]


class VariableDataset(DelegatingDataset):
    """
    The function is called at the start of each epoch (and once for epoch 1 at the construction: streams, dims, labels).
    Where it returns the same options again, the dataset is used again.
    """

    _children_are_fixed = False

    def __init__(
        self,
        *,
        get_dataset: Callable[..., Any],
        dataset_lru_cache_size: int = 1,
        always_same_tags: bool = False,
        **kwargs: Any,
    ) -> None:
        """
        :param get_dataset: ``get_dataset(*, self, epoch, **_)`` returns the dict of options of a dataset.
            Any: it can return whatever init_dataset takes
        :param dataset_lru_cache_size: that many datasets are kept, the least recently used ones are dropped
        :param always_same_tags: all datasets have the same sequences, so that their tags can be listed
        :param kwargs: see Dataset. Any: each has its own type
        :raises ConfigError: for a wrong option
        """
        super().__init__(**kwargs)
        if not callable(get_dataset):
            raise ConfigError(
                describe(
                    'option "get_dataset" is invalid',
                    where=self._where(),
                    expected="function (*, self, epoch, **_) -> dataset dict",
                    got=get_dataset,
                )
            )
        size = dataset_lru_cache_size
        if not isinstance(size, int) or isinstance(size, bool) or size < 1:
            raise ConfigError(
                describe(
                    'option "dataset_lru_cache_size" is invalid', where=self._where(), expected="int >= 1", got=size
                )
            )
        self._get_dataset = get_dataset
        self._dataset_lru_cache_size = size
        self._always_same_tags = always_same_tags
        self._cache: dict[Hashable, Dataset] = {}  # least recently used first
        self._is_first = True
        self._child = self._dataset_of_epoch(1)
        self._take_info_of_child()
        self._is_first = False
        warn_about_unused_options(
            self, get_order_options(self), reason="the order comes from the dataset of each epoch, set them there"
        )

    @property
    def dataset(self) -> Dataset:
        """:return: of the current epoch"""
        return self._child

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: all that are kept"""
        return list(self._cache.values())

    def _dataset_of_epoch(self, epoch: int) -> Dataset:
        spec = self._get_dataset(self=self, epoch=epoch, **get_fwd_compat_kwargs())
        if not isinstance(spec, (Mapping, Dataset)):
            raise DatasetError(
                self._describe(
                    f"get_dataset returned something wrong for epoch {epoch}", expected="dict with a class", got=spec
                )
            )
        key = _hashable(spec)
        dataset = self._cache.pop(key, None)
        if dataset is None:
            while len(self._cache) >= self._dataset_lru_cache_size:
                self._cache.pop(next(iter(self._cache))).finish_epoch(free_resources=True)
            dataset = make_child(
                spec,
                name=f"{self.name}_epoch{epoch}",
                owner=self,
                seed_offset=self._given_random_seed_offset,
                shard=True,
            )
            dataset.set_random_per_seq(self._random_per_seq)
            if not self._is_first:
                self._check_same_streams(dataset, epoch)
        self._cache[key] = dataset
        return dataset

    def _check_same_streams(self, dataset: Dataset, epoch: int) -> None:
        first, now = _dims(self.num_outputs), _dims(dataset.num_outputs)
        if first != now:
            raise DatasetError(
                self._describe(
                    f"the dataset of epoch {epoch} has other streams than that of epoch 1",
                    expected=str(first),
                    got=now,
                    todo="get_dataset must return datasets with the same streams and dims",
                )
            )

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1. None: no sequences
        :param seq_list: tags, for the dataset of the epoch
        :param seq_order: corpus indices, likewise
        :raises DatasetError: (a ValueError) for a list or order without epoch
        """
        if epoch is None:
            if seq_list is not None or seq_order is not None:
                raise DatasetError(
                    self._describe(
                        "init_seq_order with seq_list or seq_order needs the epoch", expected="int", got=None
                    )
                )
            Dataset.init_seq_order(self, epoch=None)
            self._has_order = False
            self.added_data = []
            return True
        self._child = self._dataset_of_epoch(epoch)
        return super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)

    def get_all_tags(self) -> list[str]:
        """:return: of the current dataset, which stands for all"""
        if not self._always_same_tags:
            raise OptionalNotImplementedError(
                f"{self!r}: get_all_tags: the sequences may be others in each epoch. If they are not, set always_same_tags"
            )
        return super().get_all_tags()

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: of the current dataset"""
        return self._child.get_total_num_seqs()


def _dims(num_outputs: dict[str, Any] | None) -> dict[str, tuple[int, int]]:
    """:return: in one form. Any: (dim, ndim) or dict"""
    return {key: tuple(dim_and_ndim(entry)) for key, entry in (num_outputs or {}).items()}  # type: ignore[misc]


def _hashable(value: Any) -> Hashable:
    """
    :param value: an option. Any: all kinds
    :return: equal for equal dicts, lists and arrays; functions, classes and other objects as they are
    """
    if isinstance(value, Mapping):
        return frozenset((_hashable(key), _hashable(item)) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return tuple(_hashable(item) for item in value)
    if isinstance(value, (set, frozenset)):
        return frozenset(_hashable(item) for item in value)
    if isinstance(value, np.ndarray):
        return (value.shape, str(value.dtype), value.tobytes())
    return value if isinstance(value, Hashable) else ("id", id(value))
