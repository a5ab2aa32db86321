"""
Base of the datasets whose sequences have a number and a tag from the start: an epoch is an array of these numbers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from typing import Any

import numpy

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._basic.predefined_order import idxs_of_tags
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.seq_order import SeqOrder
from returnn.errors import DatasetError

__all__ = ["IndexedDataset"]


class IndexedDataset(CachedDataset2):
    """
    A subclass overrides ``get_total_num_seqs`` and :func:`_load_seq`; :func:`_corpus_tags`, and maybe :func:`_find_tags`
    where that is faster by other means; and :func:`_lens_for_order` or :func:`_order_of_epoch`.
    """

    _order: numpy.ndarray | None = None
    #: In a copy for another process: digest of the labels of the original, until it is compared
    _labels_of_original: bytes | None = None

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        """
        :param seq_idx: in the order of the epoch
        :param corpus_idx: number of the sequence
        :return: with that seq_idx
        """
        raise NotImplementedError

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        """:return: tags of these"""
        raise NotImplementedError

    def _find_tags(self, tags: Sequence[str]) -> numpy.ndarray:
        """
        :param tags: any, repetitions allowed
        :return: int64 corpus indices
        :raises UnknownSeqTagError: one of the tags is not in the corpus
        """
        return idxs_of_tags(tags, {tag: i for i, tag in enumerate(self.get_all_tags())}, where=self._where())

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: int64 over the corpus: lengths by which the order sorts"""
        raise NotImplementedError

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        """:return: corpus indices"""
        num_seqs = self.get_total_num_seqs()  # reads what was not read yet
        return self.get_seq_order_for_epoch(epoch, num_seqs, self._lens_for_order_of_epoch(self._lens_for_order()))

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """
        See Dataset. What was not read yet is read at the first call.

        :param epoch: from 1
        :param seq_list: tags, instead of the ordering
        :param seq_order: corpus indices likewise
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._check_labels_of_original()
        if seq_order is not None:
            order = self._checked_order(numpy.array(seq_order, dtype=numpy.int64))
        elif seq_list is not None:
            order = self._find_tags(list(seq_list))
        else:
            order = numpy.asarray(self._order_of_epoch(epoch), dtype=numpy.int64)
        self._order = order
        self._num_seqs = len(order)
        return True

    def _reduce_state(self) -> dict[str, Any]:
        """:return: Any: see the base"""
        return {**super()._reduce_state(), "_labels_of_original": self._labels_digest()}

    def _labels_digest(self) -> bytes:
        digest = hashlib.blake2b(digest_size=16)
        for key, labels in sorted(self.labels.items()):
            digest.update("\n".join([key, *labels, ""]).encode("utf8", errors="surrogatepass"))
        return digest.digest()

    def _check_labels_of_original(self) -> None:
        """A worker process reads the vocabulary again. :raises DatasetError: the file was changed in between"""
        if self._labels_of_original not in (None, self._labels_digest()):
            raise DatasetError(
                f"{self._where()}: the labels are not those which the main process has read: a file of the vocabulary was "
                "changed meanwhile. Start again, or put the old file back."
            )
        self._labels_of_original = None

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
        return int(self._lens_for_order()[self.get_corpus_seq_idx(seq_idx)])

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """:return: [num_seqs] lengths by which the order sorts"""
        return self._lens_for_order()[numpy.asarray(self._require_order(), dtype=numpy.int64)]

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

    # ---- data

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        order = self._require_order()
        return self._load_seq(seq_idx, int(order[seq_idx])) if seq_idx < len(order) else None

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. Not if random draws are one stream per epoch: see random_state_per_seq."""
        return reads_as_its_class(self) and self._is_same_for_any_start()

    def _is_same_for_any_start(self) -> bool:
        """:return: whether the data of a sequence does not depend on which ones were loaded before"""
        return True

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """
        :param corpus_seq_idx: number of the sequence; no order is needed
        :return: with seq_idx = corpus_seq_idx
        :raises DatasetError: there is none
        """
        num_seqs = self.get_total_num_seqs()
        if not 0 <= corpus_seq_idx < num_seqs:
            raise DatasetError(f"{self!r}: corpus sequence {corpus_seq_idx} does not exist, there are {num_seqs}.")
        return self._load_seq(int(corpus_seq_idx), int(corpus_seq_idx))
