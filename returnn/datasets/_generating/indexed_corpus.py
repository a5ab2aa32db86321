"""
Base of corpora whose number of sequences and tags are known.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from returnn.datasets._basic.predefined_order import idxs_of_tags, predefined_order
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.seq_order import SeqOrder
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["IndexedCorpus"]


class IndexedCorpus(CachedDataset2):
    """Order and tags of a corpus with known tags."""

    def __init__(self, **kwargs: Any) -> None:
        """
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        self._seq_order: SeqOrder | None = None

    def _corpus_tag(self, corpus_idx: int) -> str:
        raise NotImplementedError

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        raise NotImplementedError

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = predefined_order(seq_list, seq_order, order_of_tags=self._order_of_tags)
        self._seq_order = self._order_of_epoch(epoch) if order is None else order
        self._num_seqs = len(self._seq_order)
        return True

    def _order_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        return idxs_of_tags(seq_list, {tag: i for i, tag in enumerate(self.get_all_tags())}, where=repr(self))

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        if self._seq_order is None:
            raise OptionalNotImplementedError(f"{self!r}: no order before init_seq_order")
        return self._seq_order

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self.get_current_seq_order()[sorted_seq_idx])

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        return [self._corpus_tag(i) for i in range(self.get_total_num_seqs())]

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`. Loads no data."""
        return self._corpus_tag(self.get_corpus_seq_idx(sorted_seq_idx))
