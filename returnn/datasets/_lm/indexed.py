"""
Base of the text datasets: each sequence of the corpus has a number and a tag, an epoch is an array of these numbers.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from returnn.datasets.cached2 import CachedDataset2
from returnn.errors import DatasetError

__all__ = ["IndexedDataset"]


class IndexedDataset(CachedDataset2):
    """A subclass overrides the methods that raise NotImplementedError here, and ``get_total_num_seqs``."""

    _order: numpy.ndarray | None = None

    def _find_tags(self, tags: Sequence[str]) -> numpy.ndarray:
        """
        :param tags: any, repetitions allowed
        :return: int64 corpus indices
        :raises UnknownSeqTagError: one of the tags is not in the corpus
        """
        raise NotImplementedError

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        """:return: tags of these"""
        raise NotImplementedError

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: int64 over the corpus: lengths by which the order sorts"""
        raise NotImplementedError

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See Dataset. Reads the files at the first call.

        :param epoch: from 1
        :param seq_list: tags, instead of the ordering
        :param seq_order: corpus indices likewise
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        if seq_order is not None:
            order = self._checked_order(numpy.array(seq_order, dtype=numpy.int64))
        elif seq_list is not None:
            order = self._find_tags(list(seq_list))
        else:
            num_seqs = self.get_total_num_seqs()
            order = numpy.asarray(
                self.get_seq_order_for_epoch(epoch, num_seqs, self._lens_for_order()), dtype=numpy.int64
            )
        self._order = order
        self._num_seqs = len(order)
        return True

    def _checked_order(self, order: numpy.ndarray) -> numpy.ndarray:
        num_seqs = self.get_total_num_seqs()
        if len(order) and not (0 <= int(order.min()) and int(order.max()) < num_seqs):
            raise DatasetError(
                self._describe(
                    "seq_order has an index outside of the corpus",
                    expected=f"0 <= index < {num_seqs}",
                    got=[int(order.min()), int(order.max())],
                )
            )
        return order

    def _require_order(self) -> numpy.ndarray:
        if self._order is None:
            raise DatasetError(
                self._describe("The order of the epoch is not known", todo="Call init_seq_order(epoch) first")
            )
        return self._order

    def get_current_seq_order(self) -> numpy.ndarray:
        """:return: int64 corpus indices of the current epoch"""
        return self._require_order()

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: corpus index"""
        return int(self._require_order()[sorted_seq_idx])

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: length by which the order sorts"""
        return int(self._lens_for_order()[self._require_order()[seq_idx]])

    # ---- tags

    def get_all_tags(self) -> list[str]:
        """:return: of the whole corpus"""
        return self._corpus_tags(numpy.arange(self.get_total_num_seqs()))

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: tag"""
        return self._corpus_tags(self._require_order()[[sorted_seq_idx]])[0]

    def get_seq_tags(self, seq_idxs: numpy.ndarray | Sequence[int]) -> list[str]:
        """:return: tags of many sequences"""
        return self._corpus_tags(self._require_order()[numpy.asarray(seq_idxs, dtype=numpy.int64)])
