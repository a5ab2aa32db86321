"""
NumpyDumpDataset: one pair of text files per sequence, as written by numpy.savetxt.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._basic.predefined_order import idxs_of_tags, predefined_order
from returnn.datasets.basic import DatasetSeq, convert_data_dims
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.seq_order import SeqOrder, parse_seq_ordering
from returnn.errors import DataFileError, DatasetError

__all__ = ["NumpyDumpDataset"]


class NumpyDumpDataset(CachedDataset2):
    """Files ``PREFIX + "%i.data" + POSTFIX`` (2-d) and ``PREFIX + "%i.targets" + POSTFIX`` (1-d)."""

    _getnewargs_remap: ClassVar[Mapping[str, str]] = {"num_outputs": "_num_outputs_opt", "end_seq": "_end_seq_opt"}

    def __init__(
        self,
        prefix: str,
        postfix: str = ".txt.gz",
        start_seq: int = 0,
        end_seq: int | None = None,
        num_inputs: int | None = None,
        num_outputs: Any = None,
        **kwargs: Any,
    ) -> None:
        """
        :param prefix: of the file names
        :param postfix: of the file names; ``.gz`` is unzipped
        :param start_seq: first number
        :param end_seq: exclusive; default: as many as there are
        :param num_inputs: feature size of "data"; required
        :param num_outputs: required. Any: see :func:`convert_data_dims`
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        if num_inputs is None or num_outputs is None:
            raise DatasetError(
                f"{self._where()}: options num_inputs and num_outputs are required, got {num_inputs!r}, {num_outputs!r}."
            )
        self.prefix = prefix
        self.postfix = postfix
        self.start_seq = start_seq
        self._end_seq_opt = end_seq
        self._num_outputs_opt = num_outputs
        self.num_inputs = num_inputs
        self.num_outputs = convert_data_dims(num_outputs)
        self.num_outputs.setdefault("data", (num_inputs, 2))
        if self.seq_ordering == "sorted":  # lengths are unknown without reading all files
            self.seq_ordering = "default"
        if isinstance(self.seq_ordering, str):
            ordering = parse_seq_ordering(self.seq_ordering, where=self._where())
            if ordering.needs_seq_lens and not self._seq_order_seq_lens_file:
                raise DatasetError(
                    self._describe(
                        f'seq_ordering "{self.seq_ordering}" needs sequence lengths, which are not known',
                        todo='Use "default", "reverse" or "random", or give seq_order_seq_lens_file',
                    )
                )
        self._check_files()
        self._seq_order: SeqOrder | None = None

    def _check_files(self) -> None:
        """Find the end, or check that all files up to it exist."""
        end = self.start_seq
        while self._end_seq_opt is None or end < self._end_seq_opt:
            missing = [name for name in self._filenames(end) if not os.path.exists(name)]
            if missing and self._end_seq_opt is None:
                break
            if missing:
                raise DataFileError(f"Check {missing[0]!r}: it does not exist, but end_seq is {self._end_seq_opt}.")
            end += 1
        self.end_seq = end
        if end <= self.start_seq:
            raise DataFileError(f"Check {self._filenames(self.start_seq)[0]!r}: {self._where()} has no sequences.")

    def _filenames(self, number: int) -> tuple[str, str]:
        return f"{self.prefix}{number}.data{self.postfix}", f"{self.prefix}{number}.targets{self.postfix}"

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. Tags of a predefined order are ``seq-N``, N the corpus index."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = predefined_order(seq_list, seq_order, order_of_tags=self._order_of_tags)
        self._seq_order = self.get_seq_order_for_epoch(epoch, self.get_total_num_seqs()) if order is None else order
        self._num_seqs = len(self._seq_order)
        return True

    def _order_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        return idxs_of_tags(seq_list, {tag: i for i, tag in enumerate(self.get_all_tags())}, where=repr(self))

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [name for number in range(self.start_seq, self.end_seq) for name in self._filenames(number)]

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return self.end_seq - self.start_seq

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        return [f"seq-{i}" for i in range(self.get_total_num_seqs())]

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self.get_current_seq_order()[sorted_seq_idx])

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        if self._seq_order is None:
            raise NotImplementedError(f"{self!r}: no order before init_seq_order")
        return self._seq_order

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: ``seq-%i`` of the position in the current order"""
        return f"seq-{sorted_seq_idx}"

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        data_file, targets_file = self._filenames(self.start_seq + self.get_corpus_seq_idx(seq_idx))
        features = self._read(data_file, ndmin=2)
        if features.shape[1] != self.num_inputs:
            raise DataFileError(
                f"{data_file!r}: expected {self.num_inputs} columns (num_inputs), got shape {features.shape}."
            )
        return DatasetSeq(
            seq_idx=seq_idx, features=features, targets=self._read(targets_file, ndmin=1), seq_tag=f"seq-{seq_idx}"
        )

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`."""
        return reads_as_its_class(self)

    @staticmethod
    def _read(filename: str, *, ndmin: Any) -> numpy.ndarray:
        """:param ndmin: as numpy.loadtxt. Any: a literal type there"""
        try:
            return numpy.loadtxt(filename, ndmin=ndmin)
        except (OSError, ValueError) as exc:
            raise DataFileError(f"cannot read {filename!r} with numpy.loadtxt: {exc}.") from exc
