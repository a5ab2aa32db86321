"""CombinedDataset: union of datasets with different sequences, each of which may have only some of the streams."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

import numpy as np

from returnn.datasets import seq_order as seq_order_
from returnn.datasets._basic.data_dims import dim_and_ndim
from returnn.datasets._meta.children import (
    DatasetSpec,
    check_no_shared_dataset,
    dims_of_stream,
    init_child_by_positions,
    known_num_seqs,
    lens_to_order_by,
    make_child,
    tags_of_epoch,
    warn_about_unused_options,
)
from returnn.datasets._meta.combined_options import (
    check_data_map,
    check_no_parts,
    check_same_dims,
    check_sampling_sizes,
)
from returnn.datasets._meta.interleave import (
    ON_DEMAND_ORDERINGS,
    GumbelScale,
    OnDemandOrder,
    default_order,
    gumbel_order,
    interleaved_order,
    shuffled_order,
)
from returnn.datasets._meta.union import UnionDataset
from returnn.datasets.basic import Dataset, convert_data_dims
from returnn.datasets.seq_lists import load_seq_lens_file
from returnn.datasets.seq_order import SeqOrder
from returnn.errors import ConfigError, DatasetError, NotSupportedError, UnknownSeqTagError, describe
from returnn.log import log
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["CombinedDataset"]

# Orderings that go by child: each child is read in its own order.
_BY_CHILD = ("reversed", "random_dataset", "interleave")


class CombinedDataset(UnionDataset):
    """
    Each sequence is one of one child; streams that this child does not have are empty.

    Orderings: those of Dataset over all sequences together; "random_dataset": each child in its own order, which child
    is next is random; "interleave": likewise, but all children are used up evenly; "reversed": the last child first.
    If a child does not know its number of sequences, "default" and these three decide step by step.
    """

    _custom_seq_orderings: ClassVar[tuple[str, ...]] = _BY_CHILD

    def __init__(
        self,
        datasets: Mapping[str, DatasetSpec],
        data_map: Mapping[tuple[str, str], str],
        sampling_sizes: int | Mapping[str, int] | None = None,
        data_dims: Any = None,
        data_dtypes: Mapping[str, str] | None = None,
        window: int = 1,
        interleave_gumbel_scale: GumbelScale | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param datasets: key -> child (dict of options, dataset, or function). Only those in data_map are constructed
        :param data_map: (key of the child, stream of the child) -> own stream
        :param sampling_sizes: per epoch that many sequences of each child, going on where the last epoch ended
        :param data_dims: replaces the dims of the children. Any: see convert_data_dims
        :param data_dtypes: own stream -> dtype. Default: what the children have
        :param window: only 1
        :param interleave_gumbel_scale: "interleave" with random choices: scale of the noise;
            "remaining": from 1 at the start to 0 at the end
        :param kwargs: see Dataset; about the order of all children together. Any: each has its own type
        :raises ConfigError: if the options do not fit together
        """
        super().__init__(window=window, **kwargs)
        self._data_map = dict(check_data_map(datasets, data_map, where=self._where()))
        self.dataset_keys: list[str] = sorted({key for key, _ in self._data_map})
        # Only what a copy in another process needs.
        self._datasets = {key: datasets[key] for key in self.dataset_keys}
        self._sampling_sizes = sampling_sizes
        self._data_dims = data_dims
        self._data_dtypes = data_dtypes
        self._interleave_gumbel_scale = interleave_gumbel_scale
        self.window = window
        self.datasets: dict[str, Dataset] = {
            key: make_child(
                spec, name=f"{self.name}_{key}", owner=self, seed_offset=self._given_random_seed_offset, shard=False
            )
            for key, spec in self._datasets.items()
        }
        check_no_shared_dataset(self.datasets, where=self._where())
        self._set_children(
            list(self.datasets.values()),
            [{own: sub for (key, sub), own in self._data_map.items() if key == k} for k in self.datasets],
        )
        self.target_list = self.get_target_list()
        self._dtype_options = dict(data_dtypes or {})
        self._take_dims()
        self._sizes = check_sampling_sizes(self, sampling_sizes, self.dataset_keys, unused=datasets)
        self._check_orderings()
        self._on_demand: OnDemandOrder | None = None
        self._ordering = ""  # of this epoch
        self._pool_counts: list[int] = []
        self._seq_lens_by_tag: Mapping[str, float] | None = None

    # ---- checks of options

    def _take_dims(self) -> None:
        dims: dict[str, Any] = {}
        for (key, sub_stream), stream in self._data_map.items():
            entry = dims_of_stream(
                self.datasets[key], sub_stream, what=f"data_map[{(key, sub_stream)!r}]", where=self._where()
            )
            if stream in dims:
                check_same_dims(stream, key, dims[stream], entry, where=self._where())
            dims[stream] = entry
        if self._data_dims is not None:
            given = convert_data_dims(self._data_dims)
            missing = sorted(set(dims) - set(given))
            if missing:
                raise ConfigError(
                    describe(
                        "data_dims has not all streams of data_map",
                        where=self._where(),
                        expected=f"{sorted(dims)}",
                        got=sorted(given),
                        todo="Remove data_dims, the datasets know their dims",
                    )
                )
            for stream, entry in dims.items():
                if not isinstance(entry, Mapping) and tuple(dim_and_ndim(entry)) != tuple(given[stream]):
                    print(
                        f"Warning: {self._where()}: data_dims[{stream!r}] = {given[stream]} replaces"
                        f" {tuple(dim_and_ndim(entry))} of the children. Remove data_dims.",
                        file=log.v2,
                    )
            dims = {stream: given[stream] for stream in dims}
        self.num_outputs = dims
        self.num_inputs = dim_and_ndim(dims["data"])[0] if "data" in dims else 0

    def _check_orderings(self) -> None:
        scale = self._interleave_gumbel_scale
        is_number = isinstance(scale, (int, float, np.number)) and not isinstance(scale, bool) and scale >= 0
        if scale is not None and scale != "remaining" and not is_number:
            raise ConfigError(
                describe(
                    'option "interleave_gumbel_scale" is invalid',
                    where=self._where(),
                    expected='a number >= 0, or "remaining"',
                    got=scale,
                )
            )
        if callable(self.seq_ordering):
            return
        if self.seq_ordering not in _BY_CHILD:
            seq_order_.parse_seq_ordering(self.seq_ordering, where=self._where())
        if self.seq_ordering == "interleave":
            check_no_parts(self, "interleave")
        elif scale is not None:
            warn_about_unused_options(
                self, ["interleave_gumbel_scale"], reason=f'seq_ordering is "{self.seq_ordering}", not "interleave"'
            )
        if self.seq_ordering in _BY_CHILD and self._seq_order_seq_lens_file:
            warn_about_unused_options(
                self, ["seq_order_seq_lens_file"], reason=f'seq_ordering "{self.seq_ordering}" uses no lengths'
            )

    # ---- order

    def _ordering_text(self) -> str:
        if not callable(self.seq_ordering):
            return self.seq_ordering
        text = self.seq_ordering(epoch=self.epoch, **get_fwd_compat_kwargs())
        return text if text in _BY_CHILD else self._get_seq_ordering_for_epoch(self.epoch).text

    def _init_own_order(self) -> None:
        self._on_demand = None
        ordering = self._ordering = self._ordering_text()
        for child in self._children:
            child.init_seq_order(epoch=self.epoch)
        nums = [known_num_seqs(child) for child in self._children]
        counts = [num for num in nums if num is not None]
        if len(counts) < len(nums):
            self._init_on_demand(ordering, [k for k, num in zip(self.dataset_keys, nums, strict=True) if num is None])
            return
        self._pool_counts = counts
        pool, sizes = self._sample(counts)
        order = self._order_of_pool(ordering, pool, sizes)
        bounds = np.cumsum([0, *counts])
        child_of_seq = _parts_of(order, bounds)
        for i, child in enumerate(self._children):
            positions = order[child_of_seq == i] - bounds[i]
            if len(positions):
                init_child_by_positions(child, positions, counts[i], epoch=self.epoch, where=self._where())
        self._set_child_of_seq(child_of_seq)

    def _sample(self, counts: list[int]) -> tuple[np.ndarray | None, list[int]]:
        """
        :param counts: number of sequences per child in this epoch
        :return: indices in the concatenation of the children's epochs, child after child, None: all of them; how many
            there are per child
        """
        if self._sizes is None:
            return None, counts
        bounds = np.cumsum([0, *counts])
        parts = []
        for i, size in enumerate(self._sizes):
            if size and not counts[i]:
                raise DatasetError(
                    f"{self._where()}: sampling_sizes wants {size} sequences of {self.dataset_keys[i]!r}, which has none"
                    f" in epoch {self.epoch}."
                )
            start = ((self.epoch or 1) - 1) * size
            parts.append((start + np.arange(size)) % max(counts[i], 1) + bounds[i])
        return np.concatenate(parts), self._sizes

    def _order_of_pool(self, ordering: str, pool: np.ndarray | None, sizes: list[int]) -> np.ndarray:
        """
        :param ordering: of this epoch
        :param pool: see :func:`_sample`
        :param sizes: see there
        :return: entries of pool in the order of the epoch
        """
        num = sum(sizes)
        if ordering not in _BY_CHILD:
            order = seq_order_.order_to_array(self.get_seq_order_for_epoch(self.epoch, num, self._lens_of_pool(pool)))
            return order if pool is None else pool[order]
        seed = int(self._get_random_seed_for_epoch(self.epoch))
        if ordering == "interleave":
            check_no_parts(self, "interleave")
            scale = self._interleave_gumbel_scale
            by_child = gumbel_order(sizes, seed, scale) if scale else interleaved_order(sizes)
        elif ordering == "random_dataset":
            by_child = shuffled_order(sizes, seed)
        else:
            by_child = default_order(sizes, reverse=True)
        order = np.empty(num, dtype=np.int64)
        pool = np.arange(num) if pool is None else pool
        bounds = np.cumsum([0, *sizes])
        for i in range(len(sizes)):
            order[by_child == i] = pool[bounds[i] : bounds[i + 1]]
        if self.unique_seq_tags:
            order = seq_order_.unique_seqs(order, self._get_tags_to_order())
        full_order: SeqOrder = order
        part = seq_order_.part_of_order(
            order,
            epoch=self.epoch,
            partition_epoch=self.partition_epoch,
            num_shards=self._num_shards,
            shard_index=self._shard_index,
        )
        part = np.tile(np.asarray(part, dtype=np.int64), self.repeat_epoch)
        if self.seq_tags_filter is not None:
            part = np.asarray(self._filter_order(part, full_order, num), dtype=np.int64)
        return part

    def _lens_of_pool(self, pool: np.ndarray | None) -> np.ndarray | None:
        """
        :param pool: see :func:`_sample`
        :return: lengths of these, if the ordering needs them
        """
        if not self._get_seq_ordering_for_epoch(self.epoch).needs_seq_lens or self._seq_order_seq_lens_file:
            return None
        lens = [
            lens_to_order_by(child, num) for child, num in zip(self._children, self._pool_counts, strict=True) if num
        ]
        if not lens:
            return np.zeros(0, np.int64)
        return self._lens_for_order_of_epoch(np.concatenate(lens) if pool is None else np.concatenate(lens)[pool])

    def _get_tags_to_order(self) -> list[str]:
        tags = []
        for child, num in zip(self._children, self._pool_counts, strict=True):
            tags += tags_of_epoch(child, num) if num else []
        return tags

    def _filter_order(self, order: SeqOrder, full_order: SeqOrder, num_seqs: int) -> SeqOrder:
        tags = self._get_tags_to_order()
        filtered = seq_order_.filter_seqs(order, tags, self.seq_tags_filter or ())
        if not len(filtered):
            raise self._empty_by_filter(len(order), num_seqs, tags)
        return filtered

    def _get_seq_lens_of_file(self, num_seqs: int) -> np.ndarray:
        assert self._seq_order_seq_lens_file
        if self._seq_lens_by_tag is None:
            self._seq_lens_by_tag = load_seq_lens_file(self._seq_order_seq_lens_file)
        tags = self._get_tags_to_order()
        missing = [tag for tag in tags if tag not in self._seq_lens_by_tag]
        if missing:
            raise UnknownSeqTagError(
                f"{self._where()}: seq_order_seq_lens_file {self._seq_order_seq_lens_file!r} has no length for "
                f"{len(missing)} of {len(tags)} tags, e.g. {missing[:3]}"
            )
        return np.array([self._seq_lens_by_tag[tag] for tag in tags])

    # ---- children that do not know their number of sequences

    def _init_on_demand(self, ordering: str, unknown: list[str]) -> None:
        """:param unknown: keys of the children"""
        if ordering not in ON_DEMAND_ORDERINGS:
            raise NotSupportedError(
                f"The sorting method {ordering!r} is not implemented for the case that number of sequences is not known in"
                f" advance. ({self._where()}: it is not known of {unknown}. Use one of {', '.join(ON_DEMAND_ORDERINGS)}.)"
            )
        what = f"children that do not know their number of sequences ({', '.join(unknown)})"
        check_no_parts(self, what)
        if self._sizes is not None:
            raise ConfigError(describe(f'option "sampling_sizes" cannot be combined with {what}', where=self._where()))
        self._on_demand = OnDemandOrder(
            self._children,
            ordering,
            seed=int(self._get_random_seed_for_epoch(self.epoch)),
            gumbel_scale=self._interleave_gumbel_scale or 0.0,
        )

    def _locate(self, seq_idx: int) -> tuple[int, int] | None:
        if self._on_demand is not None and self._child_of_seq is None:
            return self._on_demand.locate(seq_idx)
        return super()._locate(seq_idx)

    def get_complete_frac(self, sorted_seq_idx: int, *, allow_only_lr_suitable: bool = False) -> float | None:
        """
        :param sorted_seq_idx: of the current epoch
        :param allow_only_lr_suitable: None if it would only be an estimate
        :return: how much of the epoch is done. "interleave" without noise: of the child
        """
        if self._ordering != "interleave" or self._order_is_given:
            return super().get_complete_frac(sorted_seq_idx, allow_only_lr_suitable=allow_only_lr_suitable)
        loc = self._locate(sorted_seq_idx)
        if loc is not None and not self._interleave_gumbel_scale:
            child, pos = loc
            return self._children[child].get_complete_frac(pos, allow_only_lr_suitable=allow_only_lr_suitable)
        if self._on_demand is None:
            return super().get_complete_frac(sorted_seq_idx, allow_only_lr_suitable=allow_only_lr_suitable)
        return None if allow_only_lr_suitable else self._on_demand.complete_frac()

    def get_data_dim(self, key: str) -> int:
        """:return: as the child says, or data_dims"""
        self._require_stream(key)
        return dim_and_ndim((self.num_outputs or {})[key])[0]


def _parts_of(idxs: np.ndarray, bounds: np.ndarray) -> np.ndarray:
    """
    :param idxs: [N]
    :param bounds: ascending, of the parts: the first is 0
    :return: [N] in which part each index is, as small integers: as np.searchsorted does it, but faster for few parts
    """
    num_parts = len(bounds) - 1
    if num_parts > 8:
        return np.searchsorted(bounds, idxs, side="right") - 1
    result = np.zeros(len(idxs), dtype=np.uint8)
    for bound in bounds[1:-1]:
        result += idxs >= bound
    return result
