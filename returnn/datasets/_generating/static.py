"""
StaticDataset: given arrays, in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._basic.predefined_order import predefined_order
from returnn.datasets._generating.base import corpus_idxs_of_tags
from returnn.datasets.basic import Dataset, DatasetSeq, convert_data_dims
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.errors import DatasetError

__all__ = ["StaticDataset"]

SeqData = dict[str, numpy.ndarray]


class StaticDataset(CachedDataset2):
    """All data are given."""

    _getnewargs_remap: ClassVar[Mapping[str, str]] = {"input_dim": "_input_dim_opt", "output_dim": "_output_dim_opt"}

    def __init__(
        self,
        data: list[SeqData],
        target_list: list[str] | None = None,
        input_dim: int | None = None,
        output_dim: Any = None,
        **kwargs: Any,
    ) -> None:
        """
        :param data: nonempty list of key -> array: [T, dim] dense, [T] sparse or 0-d. Every sequence has the same keys
        :param target_list: keys that are targets; default all but "data"
        :param input_dim: dim of "data"
        :param output_dim: see :func:`convert_data_dims`; default by the data. Any: as there
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        if not isinstance(data, (list, tuple)) or not data or not all(isinstance(seq, Mapping) for seq in data):
            raise DatasetError(
                self._describe('option "data" is invalid', expected="nonempty list of dicts key -> array", got=data)
            )
        self.data = data
        self._input_dim_opt = input_dim
        self._output_dim_opt = output_dim
        first = data[0]
        self.data_keys = sorted(first)
        if "data" in self.data_keys:
            self.data_keys.remove("data")
            self.data_keys.insert(0, "data")
        for i, seq in enumerate(data):
            if set(seq) != set(first):
                raise DatasetError(
                    f"{self._where()}: sequence {i} has the keys {sorted(seq)}, but sequence 0 {sorted(first)}."
                )
        if not self.data_keys:
            raise DatasetError(f"{self._where()}: the sequences have no data keys.")
        if target_list is None:
            target_list = [key for key in self.data_keys if key != "data"]
        unknown = [key for key in target_list if key not in self.data_keys]
        if unknown:
            raise DatasetError(f"{self._where()}: target_list has {unknown}, but the data keys are {self.data_keys}.")
        self.target_list = list(target_list)
        self._set_dims(first)
        self._seq_order: numpy.ndarray = numpy.arange(len(data))
        self._is_uniform: bool | None = None  # None: not checked yet
        self._seq_lens_by_key: dict[str, numpy.ndarray] = {}
        self.init_seq_order(epoch=1)

    def _set_dims(self, first: SeqData) -> None:
        if self._output_dim_opt is None:
            dims: dict[str, Any] = {
                key: (v.shape[-1] if v.ndim >= 2 else 0, v.ndim) for key, v in ((k, first[k]) for k in self.data_keys)
            }
        else:
            dims = convert_data_dims(self._output_dim_opt)
            if self._input_dim_opt is not None and "data" in self.data_keys and "data" not in dims:
                dims["data"] = (self._input_dim_opt, first["data"].ndim)
            if set(dims) != set(self.data_keys):
                raise DatasetError(
                    f"{self._where()}: output_dim does not match the given data: it has the keys {sorted(dims)}, "
                    f"the data {sorted(self.data_keys)}."
                )
        self.num_outputs = dims
        for key in self.data_keys:
            array, (dim, ndim) = first[key], dims[key]
            if array.ndim != ndim or (ndim >= 2 and array.shape[-1] != dim):
                raise DatasetError(
                    f"{self._where()}: output_dim does not match the given data: key {key!r} is declared as "
                    f"dim {dim}, ndim {ndim}, but sequence 0 has shape {array.shape}."
                )
        if self._input_dim_opt is not None:
            self.num_inputs = self._input_dim_opt
            if "data" in dims and dims["data"][0] not in (0, self._input_dim_opt):
                raise DatasetError(
                    f"{self._where()}: input_dim {self._input_dim_opt} does not match dim {dims['data'][0]} of key 'data'."
                )
        else:
            self.num_inputs = dims["data" if "data" in dims else self.data_keys[0]][0]

    @classmethod
    def copy_from_dataset(cls, dataset: Dataset, start_seq_idx: int = 0, max_seqs: int | None = None) -> StaticDataset:
        """
        :param dataset: after init_seq_order
        :param start_seq_idx: first sequence to copy
        :param max_seqs: number of sequences; default all
        :return: its data in memory, in its current order
        """
        keys = dataset.get_data_keys()
        data: list[SeqData] = []
        seq_idx = start_seq_idx
        while dataset.is_less_than_num_seqs(seq_idx) and (max_seqs is None or len(data) < max_seqs):
            dataset.load_seqs(seq_idx, seq_idx + 1)
            data.append({key: numpy.array(dataset.get_data(seq_idx, key)) for key in keys})
            seq_idx += 1
        dims = {key: (dataset.get_data_dim(key), data[0][key].ndim) for key in keys} if data else None
        usable = dims is not None and all(ndim >= 1 for _, ndim in dims.values())
        return cls(data=data, target_list=dataset.get_target_list(), output_dim=dims if usable else None)

    # ---- order

    def _lens(self, key: str) -> numpy.ndarray:
        """:return: [corpus size] number of frames"""
        if key not in self._seq_lens_by_key:
            self._seq_lens_by_key[key] = numpy.array(
                [seq[key].shape[0] if seq[key].ndim else 1 for seq in self.data], dtype=numpy.int64
            )
        return self._seq_lens_by_key[key]

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. Tags are ``seq-N``."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        order = predefined_order(seq_list, seq_order, order_of_tags=self._order_of_tags)
        if order is None:
            lens = self._lens_for_order_of_epoch(self._lens(self.data_keys[0]))
            own = self.get_seq_order_for_epoch(epoch, len(self.data), lens)
            order = numpy.asarray(own, dtype=numpy.int64)
        self._seq_order = order
        self._num_seqs = len(self._seq_order)
        return True

    def _order_of_tags(self, seq_list: Sequence[str]) -> numpy.ndarray:
        return corpus_idxs_of_tags(seq_list, len(self.data), self._where())

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """See :func:`Dataset.get_estimated_seq_length`. Number of frames of the first data key."""
        return int(self._lens(self.data_keys[0])[self._seq_order[seq_idx]])

    def get_estimated_seq_lengths(self) -> numpy.ndarray:
        """See :func:`Dataset.get_estimated_seq_lengths`."""
        return self._lens(self.data_keys[0])[self._seq_order]

    def get_current_seq_order(self) -> Sequence[int] | numpy.ndarray:
        """See :func:`Dataset.get_current_seq_order`."""
        return self._seq_order

    def have_corpus_seq_idx(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """See :func:`Dataset.get_corpus_seq_idx`."""
        return int(self._seq_order[sorted_seq_idx])

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {key: self._lens(key) for key in self.data_keys}

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """See :func:`Dataset.get_total_num_seqs`."""
        return len(self.data)

    def get_all_tags(self) -> list[str]:
        """See :func:`Dataset.get_all_tags`."""
        return [f"seq-{i}" for i in range(len(self.data))]

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`. Needs no data."""
        return f"seq-{int(self._seq_order[sorted_seq_idx])}"

    # ---- data

    def have_get_corpus_seq(self) -> bool:
        """:return: True"""
        return True

    def get_corpus_seq(self, corpus_seq_idx: int) -> DatasetSeq:
        """See :func:`Dataset.get_corpus_seq`."""
        return DatasetSeq(seq_idx=corpus_seq_idx, features=dict(self.data[corpus_seq_idx]))

    def _load_seqs(self, start: int, end: int) -> None:
        super()._load_seqs(start, min(end, max(start, self.num_seqs)))

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num_seqs:
            return None
        corpus_idx = int(self._seq_order[seq_idx])
        return DatasetSeq(seq_idx=seq_idx, features=dict(self.data[corpus_idx]), seq_tag=f"seq-{corpus_idx}")

    def get_data_keys(self) -> list[str]:
        """:return: sorted, "data" first"""
        return list(self.data_keys)

    def get_target_list(self) -> list[str]:
        """:return: as given"""
        return list(self.target_list)

    def get_data_dtype(self, key: str) -> Any:
        """:return: numpy dtype of the data. Any: a dtype object, while other datasets give its name"""
        return self.data[0][key].dtype

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`."""
        return reads_as_its_class(self)

    # ---- bulk protocol

    def supports_bulk(self) -> bool:
        """See :func:`Dataset.supports_bulk`. Not if types or feature shapes differ between sequences."""
        if self._is_uniform is None:
            self._is_uniform = all(
                len({(seq[key].dtype, seq[key].shape[1:], seq[key].ndim) for seq in self.data}) == 1
                for key in self.data_keys
            )
        return self._is_uniform and super().supports_bulk()

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        """See :func:`Dataset.get_epoch_seq_lens`."""
        return self._lens(key)[self._seq_order] if key in self.data_keys else None

    def read_seqs(self, seq_idxs: numpy.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """See :func:`Dataset.read_seqs`."""
        corpus_idxs = self._seq_order[numpy.asarray(seq_idxs, dtype=numpy.int64)]
        result = {}
        for key in keys:
            arrays = [self.data[i][key] for i in corpus_idxs]
            if not arrays:
                example = self.data[0][key]
                lens = numpy.zeros(0, numpy.int64) if example.ndim else None
                result[key] = Ragged(example[:0] if example.ndim else numpy.zeros(0, example.dtype), lens)
                continue
            result[key] = Ragged.from_list(arrays)
        return result

    def get_seq_tags(self, seq_idxs: numpy.ndarray | Sequence[int]) -> list[str]:
        """See :func:`Dataset.get_seq_tags`."""
        return [f"seq-{int(i)}" for i in self._seq_order[numpy.asarray(seq_idxs, dtype=numpy.int64)]]
