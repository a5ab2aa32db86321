"""Base of datasets that hand on one other dataset."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import numpy as np

from returnn.datasets._basic.epoch_lens import EpochLens, epoch_lens_of
from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError
from returnn.util.numbers_dict import NumbersDict

__all__ = ["ChildStreams", "DelegatingDataset"]


class ChildStreams:
    """Part of a dataset that has the streams of one other dataset."""

    num_inputs: int | None
    # Any: (dim, ndim) as tuple or list, or a dict in some classes.
    num_outputs: dict[str, Any] | None
    labels: dict[str, Sequence[str]]
    _child: Dataset

    def _take_info_of_child(self) -> None:
        """Copy what client code reads as attributes."""
        self.num_inputs = self._child.num_inputs
        self.num_outputs = dict(self._child.num_outputs or {})
        self.labels = dict(self._child.labels)

    def get_data_keys(self) -> list[str]:
        """:return: as the child says"""
        return list(self._child.get_data_keys())

    def get_target_list(self) -> list[str]:
        """:return: as the child says"""
        return list(self._child.get_target_list())

    def get_data_dim(self, key: str) -> int:
        """:return: as the child says"""
        return self._child.get_data_dim(key)

    def get_data_dtype(self, key: str) -> str:
        """:return: as the child says"""
        return self._child.get_data_dtype(key)

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: as the child says"""
        return self._child.get_data_shape(key)

    def is_data_sparse(self, key: str) -> bool:
        """:return: as the child says"""
        return self._child.is_data_sparse(key)

    def can_serialize_data(self, key: str) -> bool:
        """:return: as the child says"""
        return self._child.can_serialize_data(key)

    def serialize_data(self, key: str, data: np.ndarray) -> str:
        """:return: as the child says"""
        return self._child.serialize_data(key, data)


class DelegatingDataset(ChildStreams, CachedDataset2):
    """A subclass sets ``_child`` before it is used. All questions go there."""

    _getnewargs_remap: ClassVar[dict[str, str]] = {"random_seed_offset": "_given_random_seed_offset"}

    def __init__(self, **kwargs: Any) -> None:
        """
        :param kwargs: see Dataset. Any: each has its own type
        """
        super().__init__(**kwargs)
        self._given_random_seed_offset: int | None = kwargs.get("random_seed_offset")
        self._has_order = False

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: the dataset that is handed on"""
        return (self._child,)

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._child.init_seq_order(epoch=self.epoch, seq_list=seq_list, seq_order=seq_order)
        # A class of the user may have sharded by itself; the loader must know.
        self._sharding_applied = self._child._sharding_applied
        self._has_order = True
        return True

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`."""
        super().finish_epoch(free_resources=free_resources)
        self._has_order = False
        for child in self.child_datasets():
            child.finish_epoch(free_resources=free_resources)

    def check_corpus(self) -> None:
        """See :func:`Dataset.check_corpus`."""
        self._child.check_corpus()

    @property
    def num_seqs(self) -> int:
        """:return: as the child says; 0 before the first epoch"""
        return self._child.num_seqs if self._has_order else 0

    @property
    def estimated_num_seqs(self) -> int | None:
        """:return: as the child says, or the option"""
        estimate = self._child.estimated_num_seqs if self._has_order else None
        return self._estimated_num_seqs if estimate is None else estimate

    def is_less_than_num_seqs(self, n: int) -> bool:
        """See :func:`Dataset.is_less_than_num_seqs`."""
        return self._has_order and self._child.is_less_than_num_seqs(n)

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:return: as the child says"""
        return self._child.get_total_num_seqs()

    def get_all_tags(self) -> list[str]:
        """:return: as the child says"""
        return self._child.get_all_tags()

    def get_current_seq_order(self) -> Sequence[int] | np.ndarray:
        """:return: as the child says"""
        return self._child.get_current_seq_order()

    def have_corpus_seq_idx(self) -> bool:
        """:return: as the child says"""
        return self._child.have_corpus_seq_idx()

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: as the child says"""
        return self._child.get_corpus_seq_idx(sorted_seq_idx)

    def supports_seq_order_sorting(self) -> bool:
        """:return: as the child says"""
        return self._child.supports_seq_order_sorting()

    def supports_sharding(self) -> bool:
        """:return: as the child says"""
        return self._child.supports_sharding()

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: as the child says"""
        return self._child.get_estimated_seq_length(seq_idx)

    def get_num_timesteps(self) -> int | NumbersDict:
        """:return: as the child says"""
        return self._child.get_num_timesteps()

    def get_complete_frac(self, sorted_seq_idx: int, *, allow_only_lr_suitable: bool = False) -> float | None:
        """:return: as the child says"""
        return self._child.get_complete_frac(sorted_seq_idx, allow_only_lr_suitable=allow_only_lr_suitable)

    # ---- data

    def _features_of_child(self, seq_idx: int, tag: str) -> dict[str, np.ndarray]:
        """:return: data key -> data of a loaded sequence. To be extended. ``tag`` is that of the sequence"""
        return {key: self._child.get_data(seq_idx, key) for key in self._child.get_data_keys()}

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if not self._has_order:
            raise DatasetError(self._describe("the order of the epoch is not known", todo="Call init_seq_order first"))
        if not self._child.is_less_than_num_seqs(seq_idx):
            return None
        self._child.load_seqs(seq_idx, seq_idx + 1)
        tag = self._child.get_tag(seq_idx)
        return DatasetSeq(seq_idx=seq_idx, features=self._features_of_child(seq_idx, tag), seq_tag=tag)

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: as the child says"""
        seq = self._get_seq(sorted_seq_idx)
        return self._child.get_tag(sorted_seq_idx) if seq is None else seq.seq_tag

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. If the child does."""
        return reads_as_its_class(self) and self._child.supports_jump()

    def supports_bulk(self) -> bool:
        """:return: as the child says"""
        return super().supports_bulk() and self._child.supports_bulk()

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """:return: as the child says"""
        return self._child.get_epoch_seq_lens(key)

    def epoch_lens(self, key: str) -> EpochLens | None:
        """:return: as the child says"""
        return epoch_lens_of(self._child, key)

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: as the child says"""
        return self._child.get_estimated_seq_lengths()

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """:return: as the child says"""
        return self._child.read_seqs(seq_idxs, keys)

    def get_seq_tags(self, seq_idxs: np.ndarray | Sequence[int]) -> list[str]:
        """:return: as the child says"""
        return self._child.get_seq_tags(seq_idxs)
