"""MultiEpochDataset: several epochs of another dataset as one epoch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from returnn.datasets._meta.children import (
    DatasetSpec,
    corpus_idxs_of_epoch,
    known_num_seqs,
    make_child,
    warn_about_unused_options,
)
from returnn.datasets._meta.delegating import DelegatingDataset
from returnn.datasets._meta.options import get_order_options
from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.errors import ConfigError, DatasetError, describe
from returnn.util.markers import OptionalNotImplementedError
from returnn.util.numbers_dict import NumbersDict

__all__ = ["MultiEpochDataset"]


class MultiEpochDataset(DelegatingDataset):
    """
    Epoch e gives the epochs (e - 1) * multi_epoch + 1 to e * multi_epoch of the inner dataset.

    If the inner one knows all lengths (bulk protocol), so does this; else the number of sequences is known at the end.
    """

    def __init__(self, *, dataset: DatasetSpec, multi_epoch: int, **kwargs: Any) -> None:
        """
        :param dataset: inner one: dict of options, dataset, or function
        :param multi_epoch: number of its epochs
        :param kwargs: see Dataset. Those about the order have no effect. Any: each has its own type
        :raises ConfigError: for a wrong option
        """
        super().__init__(**kwargs)
        if not isinstance(multi_epoch, (int, np.integer)) or isinstance(multi_epoch, bool) or multi_epoch < 1:
            raise ConfigError(
                describe('option "multi_epoch" is invalid', where=self._where(), expected="int >= 1", got=multi_epoch)
            )
        self._dataset = dataset
        self._multi_epoch = int(multi_epoch)
        self._child = make_child(
            dataset,
            name=f"{self.name}_inner",
            owner=self,
            seed_offset=self._given_random_seed_offset,
            shard=True,
        )
        self._take_info_of_child()
        self._is_given = False
        self._pass_idx = 0  # where the inner dataset is
        self._starts: list[int] = [0]  # of the passes that were begun or are known; then the end, if known
        self._lens: dict[str, np.ndarray] | None = None  # if known in advance
        self._order: np.ndarray | None = None
        warn_about_unused_options(
            self, get_order_options(self), reason="the order comes from the inner dataset, set them there"
        )

    @property
    def dataset(self) -> Dataset:
        """:return: the inner one"""
        return self._child

    @property
    def multi_epoch(self) -> int:
        """:return: number of inner epochs"""
        return self._multi_epoch

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: tags, instead of the ordering: one pass only
        :param seq_order: corpus indices, likewise
        """
        CachedDataset2.init_seq_order(self, epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._is_given = seq_list is not None or seq_order is not None
        self._starts = [0]
        self._lens = self._order = None
        self._pass_idx = 0
        self._has_order = True
        if self._is_given:
            self._child.init_seq_order(epoch=self._inner_epoch(0), seq_list=seq_list, seq_order=seq_order)
            num = known_num_seqs(self._child)
            if num is not None:
                self._num_seqs = num
                self._starts = [0, num]
            self._take_plan([0])
            return True
        if self._child.supports_bulk():
            self._take_plan(range(self._multi_epoch))
        self._pass_idx = -1
        self._go_to(0)
        return True

    def _inner_epoch(self, pass_idx: int) -> int:
        return ((self.epoch or 1) - 1) * self._multi_epoch + 1 + pass_idx

    @property
    def _num_passes(self) -> int:
        return 1 if self._is_given else self._multi_epoch

    def _go_to(self, pass_idx: int) -> None:
        """Start an inner epoch, if it is not the current one."""
        if pass_idx != self._pass_idx:
            self._pass_idx = pass_idx
            self._child.init_seq_order(epoch=self._inner_epoch(pass_idx))

    def _take_plan(self, passes: Sequence[int]) -> None:
        """Find out all lengths, if the child knows them."""
        if not self._child.supports_bulk():
            return
        keys = self._child.get_data_keys()
        lens: dict[str, list[np.ndarray]] = {key: [] for key in keys}
        orders: list[np.ndarray] = []
        starts = [0]
        for pass_idx in passes:
            if not self._is_given:
                self._child.init_seq_order(epoch=self._inner_epoch(pass_idx))
            num = known_num_seqs(self._child)
            if num is None:
                return
            starts.append(starts[-1] + num)
            for key in keys:
                key_lens = self._child.get_epoch_seq_lens(key)
                if key_lens is not None:
                    lens[key].append(np.asarray(key_lens, dtype=np.int64))
            if self._child.have_corpus_seq_idx():
                orders.append(corpus_idxs_of_epoch(self._child, num))
        self._starts = starts
        self._num_seqs = starts[-1]
        self._lens = {key: np.concatenate(parts) for key, parts in lens.items() if len(parts) == len(passes)}
        self._order = np.concatenate(orders) if len(orders) == len(passes) else None

    @property
    def num_seqs(self) -> int:
        """:return: of all passes, if known"""
        return CachedDataset2.num_seqs.fget(self)  # type: ignore[attr-defined,no-any-return]

    @property
    def estimated_num_seqs(self) -> int | None:
        """:return: num_seqs if known, or the option, or the inner one's, times the number of passes"""
        if self._num_seqs:
            return self._num_seqs
        if self._estimated_num_seqs is not None:
            return self._estimated_num_seqs
        inner = self._child.estimated_num_seqs
        return None if inner is None or inner == float("inf") else inner * self._num_passes

    def is_less_than_num_seqs(self, n: int) -> bool:
        """See :func:`Dataset.is_less_than_num_seqs`. Loads nothing, if the inner dataset knows its numbers."""
        is_known = self._num_seqs is not None or n < self.expected_load_seq_start or self._get_seq(n) is not None
        if is_known or not self._has_order or not self.supports_jump():
            return CachedDataset2.is_less_than_num_seqs(self, n)
        if self._locate(n) is not None:
            return True
        self._num_seqs = self._starts[-1]
        self.reached_final_seq = bool(self.added_data) and self.added_data[-1].seq_idx == self._num_seqs - 1
        return False

    def _locate(self, seq_idx: int) -> tuple[int, int] | None:
        """:return: pass, and position in it; the inner dataset is at this pass. None behind the end"""
        pass_idx = int(np.searchsorted(self._starts, seq_idx, side="right")) - 1
        while pass_idx < self._num_passes:
            self._go_to(pass_idx)
            pos = seq_idx - self._starts[pass_idx]
            if self._child.is_less_than_num_seqs(pos):
                return pass_idx, pos
            pass_idx += 1
            if pass_idx == len(self._starts):
                self._starts.append(self._starts[-1] + self._child.num_seqs)
        return None

    def get_current_seq_order(self) -> np.ndarray:
        """:return: corpus indices of all passes"""
        if self._order is None:
            raise OptionalNotImplementedError(
                f"{self!r}: the order is only known in advance if the inner dataset supports the bulk protocol"
            )
        return self._order

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: corpus index in the inner dataset"""
        if self._order is not None:
            return int(self._order[sorted_seq_idx])
        loc = self._locate(sorted_seq_idx)
        if loc is None:
            raise DatasetError(f"{self!r}: sequence {sorted_seq_idx} does not exist.")
        return self._child.get_corpus_seq_idx(loc[1])

    def get_complete_frac(self, sorted_seq_idx: int, *, allow_only_lr_suitable: bool = False) -> float | None:
        """
        :param sorted_seq_idx: of the current epoch
        :param allow_only_lr_suitable: None if it would only be an estimate
        :return: of all passes
        """
        seq = self._get_seq(sorted_seq_idx)
        frac = None if seq is None else seq.complete_frac
        if frac is None:
            loc = self._locate(sorted_seq_idx)
            if loc is None:
                return 1.0
            frac = self._frac(*loc, allow_only_lr_suitable=allow_only_lr_suitable)
        return frac

    def _frac(self, pass_idx: int, pos: int, *, allow_only_lr_suitable: bool) -> float | None:
        frac = self._child.get_complete_frac(pos, allow_only_lr_suitable=allow_only_lr_suitable)
        return None if frac is None else (pass_idx + frac) / self._num_passes

    def get_num_timesteps(self) -> int | NumbersDict:
        """See :func:`Dataset.get_num_timesteps`. Known after the end of the epoch."""
        return CachedDataset2.get_num_timesteps(self)

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: as the inner dataset says"""
        loc = self._locate(seq_idx)
        if loc is None:
            raise DatasetError(f"{self!r}: sequence {seq_idx} does not exist.")
        return self._child.get_estimated_seq_length(loc[1])

    # ---- data

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if not self._has_order:
            raise DatasetError(self._describe("the order of the epoch is not known", todo="Call init_seq_order first"))
        loc = self._locate(seq_idx)
        if loc is None:
            return None
        pass_idx, pos = loc
        self._child.load_seqs(pos, pos + 1)
        tag = self._child.get_tag(pos)
        features = self._features_of_child(pos, tag)
        # The inner dataset may be in another pass when it is asked for.
        frac = self._frac(pass_idx, pos, allow_only_lr_suitable=True)
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=tag, complete_frac=frac)

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: as the inner dataset says"""
        return CachedDataset2.get_tag(self, sorted_seq_idx)

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. If the inner dataset does, and knows its number of sequences."""
        return super().supports_jump() and known_num_seqs(self._child) is not None

    def supports_bulk(self) -> bool:
        """:return: whether the inner dataset does"""
        return super().supports_bulk() and (not self._has_order or self._lens is not None)

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """:return: int64 [num_seqs] of all passes; None if not known"""
        return None if self._lens is None else self._lens.get(key)

    def get_estimated_seq_lengths(self) -> np.ndarray:
        """:return: [num_seqs] of all passes"""
        parts = []
        for pass_idx in range(self._num_passes):
            if not self._is_given:
                self._go_to(pass_idx)
            parts.append(self._child.get_estimated_seq_lengths())
        return np.concatenate(parts)

    def _by_pass(self, seq_idxs: np.ndarray | Sequence[int]) -> list[tuple[int, np.ndarray, np.ndarray]]:
        """:return: pass, rows of seq_idxs that are in it, positions in it"""
        idxs = np.asarray(seq_idxs, dtype=np.int64)
        pass_of_seq = np.searchsorted(self._starts[1:], idxs, side="right")
        result = []
        for pass_idx in np.unique(pass_of_seq).tolist():
            rows = np.flatnonzero(pass_of_seq == pass_idx)
            result.append((pass_idx, rows, idxs[rows] - self._starts[pass_idx]))
        return result

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: int64 [B], positions in the epoch
        :param keys: data keys
        :return: key -> data; None if not supported
        """
        if self._lens is None:
            return None
        if not len(seq_idxs):
            return self._child.read_seqs(np.zeros(0, np.int64), keys)
        parts: list[dict[str, Ragged]] = []
        all_rows = []
        for pass_idx, rows, positions in self._by_pass(seq_idxs):
            self._go_to(pass_idx)
            data = self._child.read_seqs(positions, keys)
            if data is None:
                return None
            parts.append(data)
            all_rows.append(rows)
        if len(parts) == 1:
            return parts[0]
        inverse = np.empty(len(seq_idxs), dtype=np.int64)
        inverse[np.concatenate(all_rows)] = np.arange(len(inverse))
        return {key: Ragged.concat([part[key] for part in parts]).select(inverse) for key in keys}

    def get_seq_tags(self, seq_idxs: np.ndarray | Sequence[int]) -> list[str]:
        """
        :param seq_idxs: [B], positions in the epoch
        :return: their tags
        """
        if self._lens is None:
            return [self.get_tag(int(i)) for i in seq_idxs]
        tags = [""] * len(seq_idxs)
        for pass_idx, rows, positions in self._by_pass(seq_idxs):
            self._go_to(pass_idx)
            for row, tag in zip(rows.tolist(), self._child.get_seq_tags(positions), strict=True):
                tags[row] = tag
        return tags
