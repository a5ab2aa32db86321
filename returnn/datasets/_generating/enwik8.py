"""
enwik8: text of Wikipedia, byte by byte.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import Any

import h5py
import numpy

from returnn.datasets.basic import DatasetSeq
from returnn.datasets.indexed import IndexedDataset
from returnn.datasets.seq_order import SeqOrder, part_of_order
from returnn.errors import DataFileError, DatasetError

__all__ = ["Enwik8Corpus"]


class Enwik8Corpus(IndexedDataset):
    """The first 10^8 bytes of Wikipedia (hutter prize) as language modeling data, from ``enwik8.hdf5``."""

    def __init__(
        self,
        path: str,
        subset: str,
        seq_len: int,
        batch_num_seqs: int | None = None,
        subsubset: int | tuple[int, int] | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param path: directory with enwik8.hdf5: attribute "unique" (byte values), datasets "split/SUBSET/default"
        :param subset: "training", "validation" or "test"
        :param seq_len: number of bytes of each sequence
        :param batch_num_seqs: order such that each batch of that many sequences continues the one before
        :param subsubset: use only bytes [0, end) or [start, end)
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        if subset not in ("training", "validation", "test"):
            raise DatasetError(
                self._describe('option "subset" is invalid', expected="training, validation or test", got=subset)
            )
        if not isinstance(seq_len, int) or seq_len <= 0:
            raise DatasetError(self._describe('option "seq_len" is invalid', expected="int > 0", got=seq_len))
        if batch_num_seqs is not None and self.seq_ordering != "default":
            raise DatasetError(
                self._describe(
                    'option "batch_num_seqs" needs', expected='seq_ordering="default"', got=self.seq_ordering
                )
            )
        self.path, self.subset, self.seq_len = path, subset, seq_len
        self._batch_num_seqs = batch_num_seqs
        self._subsubset = subsubset
        self._read_file(os.path.join(path, "enwik8.hdf5"))
        # A sequence needs one more byte for its shifted targets.
        self._starts = numpy.arange(0, len(self._data) - 1, seq_len, dtype=numpy.int64)
        self._lens = numpy.minimum(self._starts + seq_len, len(self._data) - 1) - self._starts
        if not len(self._starts):
            raise DatasetError(f"{self._where()}: no sequences in {subset!r} with subsubset {subsubset!r}.")

    def _read_file(self, filename: str) -> None:
        if not os.path.exists(filename):
            raise DataFileError(
                f"{self._where()}: {filename!r} does not exist. It is not downloaded: write it from enwik8.zip "
                "(mattmahoney.net/dc), with attribute 'unique' and datasets 'split/{training,validation,test}/default'."
            )
        try:
            with h5py.File(filename, "r") as file:
                unique = numpy.asarray(file.attrs["unique"])
                dataset = file[f"split/{self.subset}/default"]
                limits = self._subsubset
                start, end = (0, None) if limits is None else (0, limits) if isinstance(limits, int) else limits
                self._data: numpy.ndarray = dataset[start:end]
        except (OSError, KeyError) as exc:
            raise DataFileError(f"{self._where()}: cannot read {filename!r}: {exc}.") from exc
        num = len(unique)
        self.num_inputs = num
        self.num_outputs = {"data": (num, 1), "classes": (num, 1)}
        self.labels = {key: [chr(int(c)) for c in unique] for key in ("data", "classes")}

    def _lens_for_order(self) -> numpy.ndarray:
        """:return: number of bytes"""
        return self._lens

    def _order_of_epoch(self, epoch: int | None) -> SeqOrder:
        num_seqs = self.get_total_num_seqs()
        if self._batch_num_seqs is None:
            return super()._order_of_epoch(epoch)
        rows = self._batch_num_seqs
        order = numpy.arange(num_seqs - num_seqs % rows, dtype=numpy.int64).reshape(rows, -1).T.reshape(-1)
        return part_of_order(order, epoch=epoch, partition_epoch=self.partition_epoch)

    def supports_sharding(self) -> bool:
        """:return: not with batch_num_seqs, where the order of sequences has a meaning"""
        return self._batch_num_seqs is None

    def corpus_files(self) -> Iterable[str]:
        """See :func:`Dataset.corpus_files`."""
        return [os.path.join(self.path, "enwik8.hdf5")]

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {"data": self._lens}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self._starts)

    def _corpus_tags(self, corpus_idxs: numpy.ndarray) -> list[str]:
        return [self._corpus_tag(idx) for idx in corpus_idxs.tolist()]

    def _corpus_tag(self, corpus_idx: int) -> str:
        return f"offset_{self._starts[corpus_idx]}_{self._lens[corpus_idx]}"

    def get_data_keys(self) -> list[str]:
        """:return: data and classes"""
        return ["data", "classes"]

    def get_target_list(self) -> list[str]:
        """:return: classes"""
        return ["classes"]

    def get_data_dtype(self, key: str) -> str:
        """:return: as in the file"""
        return str(self._data.dtype)

    def _load_seq(self, seq_idx: int, corpus_idx: int) -> DatasetSeq:
        start = int(self._starts[corpus_idx])
        end = start + int(self._lens[corpus_idx])
        return DatasetSeq(
            seq_idx=seq_idx,
            features=self._data[start:end],
            targets=self._data[start + 1 : end + 1],
            seq_tag=self._corpus_tag(corpus_idx),
        )
