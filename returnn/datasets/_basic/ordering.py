"""
The part of Dataset that knows about the order of sequences: seed, ordering, partition, filter, sharding.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, ClassVar

import numpy

from returnn._state import state
from returnn.datasets import seq_order as seq_order_
from returnn.datasets.seq_lists import load_seq_lens_file
from returnn.datasets.seq_order import SeqLens, SeqOrder
from returnn.errors import DatasetError, DatasetOptionError, UnknownSeqTagError, describe
from returnn.log import log
from returnn.options.datasets import default_random_seed_offset
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["SeqOrderMixin"]


class _CallableLens(numpy.ndarray):
    """Lengths that are an array and a function."""

    def __call__(self, corpus_idx: int) -> float:
        length: float = self[corpus_idx].item()
        return length


class SeqOrderMixin:
    """Ordering methods of Dataset, which sets the attributes."""

    #: Orderings (text before the first ":") that a subclass handles by itself, and the base does not check.
    _custom_seq_orderings: ClassVar[Iterable[str]] = ()
    #: False for a dataset inside of another one. Set by the owner.
    _is_top_level: bool = True
    #: Set by apply_sharding: the loader must not shard once more.
    _sharding_applied: bool = False
    #: Set by our loader before init_seq_order: (index, count) of the part which :func:`apply_sharding` gives. None: as
    #: the worker process says.
    _loader_shard: tuple[int, int] | None = None

    name: str
    seq_ordering: str | Callable[..., str]
    fixed_random_seed: int | None
    partition_epoch: int
    repeat_epoch: int
    unique_seq_tags: bool
    seq_tags_filter: set[str] | None
    _random_seed_offset: int | None
    _seq_list_filter_file: str | None
    _seq_order_seq_lens_file: str | None
    _seq_lens_of_file: numpy.ndarray | None
    _warned_empty_parts: bool
    _num_shards: int
    _shard_index: int

    if TYPE_CHECKING:

        def get_all_tags(self) -> list[str]: ...  # noqa: D102
        def get_total_num_seqs(self, *, fast: bool = False) -> int: ...  # noqa: D102

    def _where(self) -> str:
        return f"dataset {self.name!r} of class {type(self).__name__}"

    def _describe(self, what: str, *, expected: str | None = None, got: object = None, todo: str | None = None) -> str:
        return describe(what, where=self._where(), expected=expected, got=got, todo=todo)

    @property
    def random_seed_offset(self) -> int:
        """:return: as given, or the default of this process; see :func:`default_random_seed_offset`"""
        if self._random_seed_offset is None:
            self._random_seed_offset = self._get_default_random_seed_offset()
        return self._random_seed_offset

    @random_seed_offset.setter
    def random_seed_offset(self, value: int | None) -> None:
        self._random_seed_offset = value

    def _get_default_random_seed_offset(self) -> int:
        return 0 if self._uses_custom_distributed_sharding() else default_random_seed_offset()

    def _uses_custom_distributed_sharding(self) -> bool:
        """:return: whether the dataset itself gives disjoint data to each rank"""
        return False

    def _get_random_seed_for_epoch(self, epoch: int | None, num_epochs_fixed: int = 1) -> int:
        """
        :param epoch: from 1; None counts as 1
        :param num_epochs_fixed: that many full epochs have the same seed
        """
        return seq_order_.epoch_seed(
            epoch,
            partition_epoch=self.partition_epoch,
            num_epochs_fixed=num_epochs_fixed,
            fixed_random_seed=self.fixed_random_seed,
            random_seed_offset=0 if self.fixed_random_seed is not None else self.random_seed_offset,
        )

    def _uses_custom_seq_ordering(self, seq_ordering: object) -> bool:
        """:return: whether the class orders by itself, so that any text may be valid"""
        if self._has_own_order():
            return True
        return isinstance(seq_ordering, str) and seq_ordering.split(":")[0] in self._custom_seq_orderings

    def _has_own_order(self) -> bool:
        """:return: whether a class, e.g. of the user, overrides get_seq_order_for_epoch"""
        return type(self).get_seq_order_for_epoch is not SeqOrderMixin.get_seq_order_for_epoch

    def _lens_for_order_of_epoch(self, lens: numpy.ndarray) -> numpy.ndarray:
        """
        :param lens: over the corpus
        :return: for get_seq_order_for_epoch. A class that overrides it may also call them, as the function of the interface
        """
        return lens.view(_CallableLens) if self._has_own_order() else lens

    def _get_seq_ordering_for_epoch(self, epoch: int | None) -> seq_order_.SeqOrdering:
        text = self.seq_ordering
        if callable(text):
            text = text(epoch=epoch, **get_fwd_compat_kwargs())
            if not isinstance(text, str):
                raise DatasetOptionError(f"{self!r}: the seq_ordering function must return a str, got {text!r}")
        return seq_order_.parse_seq_ordering(text, where=self._where())

    def get_seq_order_for_epoch(self, epoch: int | None, num_seqs: int, get_seq_len: SeqLens | None = None) -> SeqOrder:
        """
        The order of an epoch: ordering, unique tags, partition and shard, repeat, filter.

        :param epoch: from 1; None counts as 1
        :param num_seqs: of the whole corpus, > 0
        :param get_seq_len: int64 or float64 array [num_seqs] (fast), or a function corpus idx -> number.
            Only used by the length-based orderings
        :return: corpus indices: range, list or int64 array
        """
        if isinstance(num_seqs, bool) or num_seqs != int(num_seqs) or num_seqs <= 0:
            raise DatasetError(
                self._describe(
                    "the dataset has no sequences, or their number is wrong", expected="int > 0", got=num_seqs
                )
            )
        num_seqs = int(num_seqs)
        ordering = self._get_seq_ordering_for_epoch(epoch)
        seq_lens = get_seq_len
        if self._seq_order_seq_lens_file and ordering.needs_seq_lens:
            seq_lens = self._get_seq_lens_of_file(num_seqs)
        num_parts = self.partition_epoch * self._num_shards
        wanted: tuple[int, int] | None = None
        if num_parts > 1 and not self.unique_seq_tags and self.seq_tags_filter is None:
            part_idx = ((epoch or 1) - 1) % self.partition_epoch * self._num_shards + self._shard_index
            wanted = seq_order_.part_bounds(num_seqs, num_parts, part_idx)
        order = seq_order_.order_seqs(
            ordering,
            num_seqs,
            seed=self._get_random_seed_for_epoch(epoch, num_epochs_fixed=ordering.nth),
            seq_lens=seq_lens,
            where=self._where(),
            wanted=wanted,
        )
        if self.unique_seq_tags:
            order = seq_order_.unique_seqs(order, self._get_tags_to_order())
        full_order = order
        order = seq_order_.part_of_order(
            order,
            epoch=epoch,
            partition_epoch=self.partition_epoch,
            num_shards=self._num_shards,
            shard_index=self._shard_index,
        )
        if self.repeat_epoch > 1:
            order = numpy.tile(numpy.asarray(order, dtype=numpy.int64), self.repeat_epoch)
        if self.seq_tags_filter is not None:
            order = self._filter_order(order, full_order, num_seqs)
        return order

    def _get_tags_to_order(self) -> list[str]:
        """:return: tags of what get_seq_order_for_epoch puts into order"""
        return self.get_all_tags()

    def check_corpus(self) -> None:
        """
        Find mistakes that else would show only when the dataset is first used, maybe after hours: no sequences at all,
        nothing left by the filter, lengths missing in the file. Reads no data. Does nothing where a class of the user
        defines the corpus.

        :raises DatasetError: about these
        """
        if not type(self).get_total_num_seqs.__module__.startswith("returnn."):
            return
        try:
            num_seqs = self.get_total_num_seqs(fast=True)
        except NotImplementedError:
            return
        if not num_seqs:
            raise DatasetError(self._describe("The dataset has no sequences", todo="Check the program that wrote it"))
        if self._uses_custom_seq_ordering(self.seq_ordering):
            return
        if self.seq_tags_filter is not None and not self._has_tag_of_filter():
            raise self._empty_by_filter(num_seqs, num_seqs, self.get_all_tags())
        if self._seq_order_seq_lens_file and self._get_seq_ordering_for_epoch(1).needs_seq_lens:
            self._get_seq_lens_of_file(num_seqs)

    def _has_tag_of_filter(self) -> bool:
        return self.seq_tags_filter is None or not self.seq_tags_filter.isdisjoint(self.get_all_tags())

    def _empty_by_filter(self, num: int, num_seqs: int, tags: Sequence[str]) -> DatasetError:
        assert self.seq_tags_filter is not None
        return DatasetError(
            f"{self._where()}: the epoch is empty after applying seq_list_filter_file "
            f"{self._seq_list_filter_file!r} to {num} of {num_seqs} sequences. "
            f"Tags in the filter: {sorted(self.seq_tags_filter)[:3]}, tags of the data: {list(tags[:3])}. "
            + (
                "Use the tags of the data."
                if self.seq_tags_filter.isdisjoint(tags)
                else "Use a smaller partition_epoch: the filter comes after the partition."
            )
        )

    def _filter_order(self, order: SeqOrder, full_order: SeqOrder, num_seqs: int) -> SeqOrder:
        assert self.seq_tags_filter is not None
        tags = self.get_all_tags()
        try:
            total: int | None = self.get_total_num_seqs()
        except NotImplementedError:
            total = None
        if len(tags) != num_seqs or (total is not None and total != num_seqs):
            raise DatasetError(
                f"{self._where()}: seq_list_filter_file needs all tags: got {num_seqs} sequences to order, "
                f"{len(tags)} tags by get_all_tags(), {total} by get_total_num_seqs()."
            )
        filtered = seq_order_.filter_seqs(order, tags, self.seq_tags_filter)
        if not len(filtered):
            raise self._empty_by_filter(len(order), num_seqs, tags)
        if self.partition_epoch > 1 and not self._warned_empty_parts:
            self._warned_empty_parts = True
            self._warn_about_empty_parts(full_order, tags)
        return filtered

    def _warn_about_empty_parts(self, full_order: SeqOrder, tags: Sequence[str]) -> None:
        """The filter comes after the partition, so that a later part may be empty: say it now, not in that epoch."""
        wanted = self.seq_tags_filter or set()
        empty = []
        for part in range(1, self.partition_epoch + 1):
            idxs = seq_order_.part_of_order(
                full_order,
                epoch=part,
                partition_epoch=self.partition_epoch,
                num_shards=self._num_shards,
                shard_index=self._shard_index,
            )
            if not any(tags[i] in wanted for i in idxs):
                empty.append(part)
        if empty:
            print(
                f"Warning: {self._where()}: with seq_list_filter_file, parts {empty} of partition_epoch "
                f"{self.partition_epoch} have no sequences in this order: such an epoch is an error when reached. "
                "Use a smaller partition_epoch.",
                file=log.v2,
            )

    def _get_seq_lens_of_file(self, num_seqs: int) -> numpy.ndarray:
        """:return: lengths over the corpus, read at the first call"""
        if self._seq_lens_of_file is None:
            assert self._seq_order_seq_lens_file
            lens = load_seq_lens_file(self._seq_order_seq_lens_file)
            tags = self.get_all_tags()
            missing = [tag for tag in tags if tag not in lens]
            if missing:
                raise UnknownSeqTagError(
                    f"{self._where()}: seq_order_seq_lens_file {self._seq_order_seq_lens_file!r} has no length for "
                    f"{len(missing)} of {len(tags)} tags, e.g. {missing[:3]}"
                )
            self._seq_lens_of_file = seq_order_.seq_lens_to_array([lens[tag] for tag in tags], num_seqs)
        return self._seq_lens_of_file

    def supports_sharding(self) -> bool:
        """:return: whether loader workers can each take a part of the epoch"""
        return True

    def supports_seq_order_sorting(self) -> bool:
        """:return: whether the length-based orderings work"""
        return False

    def _own_shard(self) -> tuple[int, int]:
        """:return: index and number of the parts, one for each loader worker of each rank"""
        if self._loader_shard is not None:
            return self._loader_shard
        if state.num_workers:
            return state.worker_id, state.num_workers
        torch_data = sys.modules.get("torch.utils.data")  # a plain torch DataLoader around us; never import torch here
        info = torch_data.get_worker_info() if torch_data is not None else None
        return (info.id, info.num_workers) if info is not None else (0, 1)

    def is_sharding_enabled(self) -> bool:
        """:return: whether this process is one of several loader workers, or ranks that load data"""
        return self._own_shard()[1] > 1

    def apply_sharding(self, seq_index: SeqOrder) -> SeqOrder:
        """
        For subclasses that shard by themselves. Others are sharded by the loader.

        :param seq_index: order of the epoch
        :return: every n-th of it in one of n loader workers (of all ranks), if this is the top-level dataset; else
            unchanged
        """
        worker_id, num_workers = self._own_shard()
        if num_workers <= 1 or not self._is_top_level:
            return seq_index
        self._sharding_applied = True
        print(f"Applied sharding of {self.name} with id {worker_id}/{num_workers}", file=log.v4)
        return seq_order_.strided_shard(seq_index, num_workers=num_workers, worker_id=worker_id)
