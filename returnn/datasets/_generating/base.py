"""
GeneratingDataset: base for data that are computed from (epoch seed, corpus index), without files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets.basic import Dataset, DatasetSeq, convert_data_dims
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.seq_order import SeqOrder, parse_seq_ordering
from returnn.errors import DatasetError, UnknownSeqTagError
from returnn.util.markers import OptionalNotImplementedError

__all__ = ["GeneratingDataset", "one_hot", "corpus_idxs_of_tags"]


def one_hot(idxs: Sequence[int] | numpy.ndarray, dim: int) -> numpy.ndarray:
    """
    :param idxs: [T] class indices
    :param dim: number of classes
    :return: [T, dim] float32
    """
    result = numpy.zeros((len(idxs), dim), dtype="float32")
    result[numpy.arange(len(idxs)), numpy.asarray(idxs, dtype="int64")] = 1.0
    return result


def corpus_idxs_of_tags(seq_list: Sequence[str], num_seqs: float, where: str) -> numpy.ndarray:
    """
    :param seq_list: tags ``seq-N``
    :param num_seqs: of the corpus
    :param where: shown in the error
    :return: corpus indices N
    :raises UnknownSeqTagError: not such a tag
    """
    idxs = []
    for tag in seq_list:
        number = tag[len("seq-") :] if tag.startswith("seq-") else ""
        if not number.isdecimal() or int(number) >= num_seqs:
            raise UnknownSeqTagError(f"{where}: tag {tag!r} is not in the corpus: tags are seq-0 to seq-{num_seqs - 1}")
        idxs.append(int(number))
    return numpy.array(idxs, dtype=numpy.int64)


class GeneratingDataset(CachedDataset2):
    """A subclass implements :func:`generate_seq` and draws only from ``self.random``."""

    _getnewargs_remap: ClassVar[Mapping[str, str]] = {"num_seqs": "_total_num_seqs", "output_dim": "_output_dim_opt"}

    def __init__(self, input_dim: int | None, output_dim: Any, num_seqs: float = float("inf"), **kwargs: Any) -> None:
        """
        :param input_dim: feature size of "data"
        :param output_dim: int or dict, see :func:`convert_data_dims`. Any: these forms
        :param num_seqs: of the corpus; infinite by default
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        self.input_dim = input_dim
        self.num_inputs = input_dim
        self._output_dim_opt = output_dim
        self.num_outputs = convert_data_dims(output_dim)
        if "data" not in self.num_outputs and input_dim is not None:
            self.num_outputs["data"] = (input_dim, 2)
        infinite = num_seqs == float("inf")
        if not infinite and (num_seqs != int(num_seqs) or num_seqs <= 0):
            raise DatasetError(
                self._describe('option "num_seqs" is invalid', expected="int > 0 or float('inf')", got=num_seqs)
            )
        self._total_num_seqs: float = num_seqs if infinite else int(num_seqs)
        self._num_seqs = self._total_num_seqs  # type: ignore[assignment]  # may be inf
        self.random = numpy.random.RandomState(1)
        self._seq_order: SeqOrder | None = None  # None: corpus order
        if self.seq_ordering in ("sorted", "sorted_reverse"):  # lengths are unknown
            self.seq_ordering = "default"
        self._check_ordering()

    def _check_ordering(self) -> None:
        if self._is_infinite and self.seq_ordering != "default":
            raise DatasetError(
                self._describe(
                    'option "seq_ordering" is invalid with infinitely many sequences',
                    expected='"default"',
                    got=self.seq_ordering,
                    todo="Set num_seqs",
                )
            )
        if isinstance(self.seq_ordering, str) and not self._seq_order_seq_lens_file:
            ordering = parse_seq_ordering(self.seq_ordering, where=self._where())
            if ordering.needs_seq_lens:
                raise DatasetError(
                    self._describe(
                        f'seq_ordering "{self.seq_ordering}" needs sequence lengths, which generated data do not have',
                        todo='Use "default", "reverse" or "random"',
                    )
                )

    @property
    def _is_infinite(self) -> bool:
        return self._total_num_seqs == float("inf")

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. Tags are ``seq-N``."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.random.seed(self._get_random_seed_for_epoch(epoch=epoch))
        if seq_order is not None:
            self._seq_order = numpy.asarray(seq_order, dtype=numpy.int64)
        elif seq_list is not None:
            self._seq_order = corpus_idxs_of_tags(seq_list, self._total_num_seqs, self._where())
        elif self._is_infinite:
            self._seq_order = None
        else:
            self._seq_order = self.get_seq_order_for_epoch(epoch, int(self._total_num_seqs))
        self._num_seqs = (
            len(self._seq_order) if self._seq_order is not None else self._total_num_seqs  # type: ignore[assignment]
        )
        return True

    def supports_sharding(self) -> bool:
        """:return: whether there is an end"""
        return not self._is_infinite

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        if self._is_infinite:
            raise OptionalNotImplementedError(f"{self!r}: infinitely many sequences")
        return int(self._total_num_seqs)

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        return [f"seq-{i}" for i in range(self.get_total_num_seqs())]

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`. Needs no data."""
        seq = self._get_seq(sorted_seq_idx)
        return seq.seq_tag if seq is not None else f"seq-{self.get_corpus_seq_idx(sorted_seq_idx)}"

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return sorted_seq_idx if self._seq_order is None else int(self._seq_order[sorted_seq_idx])

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        if self._seq_order is None:
            raise OptionalNotImplementedError(f"{self!r}: no order before init_seq_order, or infinitely many sequences")
        return self._seq_order

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """See :func:`Dataset.get_corpus_seq`. Depends only on the epoch seed and the index."""
        self.random.seed((self._get_random_seed_for_epoch(epoch=self.epoch), corpus_seq_idx))
        return self.generate_seq(corpus_seq_idx)

    def generate_seq(self, seq_idx: int) -> DatasetSeq:
        """
        To be overridden.

        :param seq_idx: corpus index
        :return: new sequence
        """
        raise NotImplementedError(f"{type(self).__name__}.generate_seq")

    def _load_seqs(self, start: int, end: int) -> None:
        num_seqs: Any = self.num_seqs  # may be inf
        super()._load_seqs(start, end if end <= num_seqs else int(num_seqs))

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        seq = self.get_corpus_seq(self.get_corpus_seq_idx(seq_idx))
        seq.seq_idx = seq_idx
        return seq

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`. The generator is seeded for each sequence."""
        return reads_as_its_class(self)

    # What the keys are is declared, not read off the data.

    def get_data_keys(self) -> list[str]:
        """See :func:`Dataset.get_data_keys`."""
        return ["data", *self.get_target_list()]

    def get_target_list(self) -> list[str]:
        """See :func:`Dataset.get_target_list`."""
        return ["classes"]

    def get_data_dim(self, key: str) -> int:
        """See :func:`Dataset.get_data_dim`."""
        return Dataset.get_data_dim(self, key)

    def is_data_sparse(self, key: str) -> bool:
        """See :func:`Dataset.is_data_sparse`."""
        return Dataset.is_data_sparse(self, key)

    def get_data_dtype(self, key: str) -> str:
        """See :func:`Dataset.get_data_dtype`."""
        return Dataset.get_data_dtype(self, key)
