"""ConcatDataset: the sequences of one dataset, then those of the next one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from returnn.datasets._basic.data_dims import dim_and_ndim
from returnn.datasets._meta.children import (
    DatasetSpec,
    check_no_shared_dataset,
    known_num_seqs,
    make_child,
    warn_about_unused_options,
)
from returnn.datasets._meta.interleave import OnDemandOrder, default_order
from returnn.datasets._meta.options import get_order_options
from returnn.datasets._meta.union import UnionDataset
from returnn.errors import ConfigError, DatasetError, NotSupportedError, describe

__all__ = ["ConcatDataset"]


class ConcatDataset(UnionDataset):
    """
    Each child in its own order of the epoch, one after the other. All have the same streams.
    With shards, each child gives its shard.
    """

    def __init__(self, datasets: Sequence[DatasetSpec], **kwargs: Any) -> None:
        """
        :param datasets: children: dicts of options, datasets, or functions
        :param kwargs: see Dataset. Those about the order have no effect. Any: each has its own type
        :raises NotSupportedError: for another seq_ordering than "default"
        :raises ConfigError: if the children have different streams
        """
        super().__init__(**kwargs)
        if self.seq_ordering != "default":
            raise NotSupportedError(
                f"seq_ordering {self.seq_ordering} is not possible ({self._where()}): it gives one child after the other."
                " Set seq_ordering in the children, or use CombinedDataset."
            )
        if isinstance(datasets, (str, bytes)) or not isinstance(datasets, Sequence) or not datasets:
            raise ConfigError(
                describe(
                    'option "datasets" is invalid',
                    where=self._where(),
                    expected="nonempty list of dataset dicts",
                    got=datasets,
                )
            )
        self._datasets = list(datasets)
        self.datasets = [
            make_child(spec, name=f"{self.name}_{i}", owner=self, seed_offset=None, shard=True)
            for i, spec in enumerate(self._datasets)
        ]
        check_no_shared_dataset({f"{i}": child for i, child in enumerate(self.datasets)}, where=self._where())
        first = self.datasets[0]
        self.num_inputs = first.num_inputs
        self.num_outputs = dict(first.num_outputs or {})
        self._check_same_streams()
        keys = self._keys_of_first()
        self._set_children(self.datasets, [dict(zip(keys, keys, strict=True))] * len(self.datasets))
        self.target_list = list(first.get_target_list())
        self._on_demand: OnDemandOrder | None = None
        unused = get_order_options(self) + (["random_seed_offset"] if self._given_random_seed_offset else [])
        warn_about_unused_options(self, unused, reason="the order comes from the children, set them there")

    def _keys_of_first(self) -> list[str]:
        """:return: data keys, as the first child says"""
        return list(self.datasets[0].get_data_keys())

    def _check_same_streams(self) -> None:
        first = self.datasets[0]
        for i, child in enumerate(self.datasets[1:], 1):
            for what, expected, got in (
                ("num_inputs", first.num_inputs, child.num_inputs),
                ("num_outputs", _dims(first.num_outputs), _dims(child.num_outputs)),
                ("data keys", sorted(first.get_data_keys()), sorted(child.get_data_keys())),
            ):
                if expected != got:
                    raise ConfigError(
                        describe(
                            f"{what} of the children 0 ({first.name!r}) and {i} ({child.name!r}) are different",
                            where=self._where(),
                            expected=str(expected),
                            got=got,
                            todo="Use children with the same streams, or CombinedDataset",
                        )
                    )

    def _init_own_order(self) -> None:
        for child in self.datasets:
            child.init_seq_order(epoch=self.epoch)
        self._chain_children()

    def _chain_children(self) -> None:
        """All of the children's epochs, one after the other."""
        self._on_demand = None
        counts = [known_num_seqs(child) for child in self.datasets]
        if any(num is None for num in counts):
            self._on_demand = OnDemandOrder(self.datasets, "default", seed=0, gumbel_scale=0.0)
        else:
            self._set_child_of_seq(default_order([num or 0 for num in counts]))

    def _init_order_of_tags(self, seq_list: Sequence[str]) -> None:
        """The first tags go to the first child, as many as it has sequences; the next ones to the second; and so on."""
        start = 0
        for child in self.datasets:
            child.init_seq_order(epoch=self.epoch)
            num = known_num_seqs(child)
            if num is None:
                raise DatasetError(
                    self._describe(
                        f"init_seq_order with seq_list is not possible: child {child.name!r} does not know its number of"
                        " sequences"
                    )
                )
            tags = list(seq_list[start : start + num])
            start += num
            child.init_seq_order(epoch=self.epoch, seq_list=tags)
        if start < len(seq_list):
            raise DatasetError(
                self._describe(
                    "seq_list has more tags than the children have sequences",
                    expected=f"at most {start} tags",
                    got=len(seq_list),
                )
            )
        self._chain_children()

    def _init_order_of_corpus(self, idxs: np.ndarray) -> None:
        self._on_demand = None
        super()._init_order_of_corpus(idxs)

    def _locate(self, seq_idx: int) -> tuple[int, int] | None:
        if self._on_demand is not None:
            return self._on_demand.locate(seq_idx)
        return super()._locate(seq_idx)

    def get_data_keys(self) -> list[str]:
        """:return: as the first child says"""
        return self._keys_of_first()

    def get_target_list(self) -> list[str]:
        """:return: as the first child says"""
        return list(self.datasets[0].get_target_list())


def _dims(num_outputs: dict[str, Any] | None) -> dict[str, tuple[int, int]]:
    """:return: in one form. Any: (dim, ndim) or dict"""
    return {key: tuple(dim_and_ndim(entry)) for key, entry in (num_outputs or {}).items()}  # type: ignore[misc]
