"""AnythingDataset: zeros of any shape, as many as wanted, to fill in for missing data."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn.datasets._basic.jump import reads_as_its_class
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.ragged import Ragged
from returnn.errors import ConfigError, DatasetError, describe
from returnn.util.markers import OptionalNotImplementedError
from returnn.util.numbers_dict import NumbersDict

__all__ = ["AnythingDataset"]


class AnythingDataset(CachedDataset2):
    """
    Each sequence is zeros: the declared shape, with 1 for each dynamic axis. Without end, unless ``init_seq_order`` gets
    a list of tags or an order, e.g. as a child of MetaDataset.
    """

    def __init__(self, *, data_keys: Mapping[str, Mapping[str, Any]], **kwargs: Any) -> None:
        """
        :param data_keys: stream -> dict of dim, shape (with None for dynamic axes; first is time), dtype, sparse.
            The first one is the input. Any: each has its own type
        :param kwargs: see Dataset. Any: each has its own type
        :raises ConfigError: for a wrong option
        """
        super().__init__(**kwargs)
        if not isinstance(data_keys, Mapping) or not data_keys:
            raise ConfigError(
                describe(
                    'option "data_keys" is invalid',
                    where=self._where(),
                    expected="nonempty dict stream -> dict of dim, shape, dtype, sparse",
                    got=data_keys,
                )
            )
        self._data_keys = {stream: self._check(stream, opts) for stream, opts in data_keys.items()}
        self.num_outputs = {
            stream: {"dim": opts["dim"], "shape": opts["shape"], "dtype": opts["dtype"], "sparse": opts["sparse"]}
            for stream, opts in self._data_keys.items()
        }
        self.num_inputs = next(iter(self._data_keys.values()))["dim"] or 0
        self._tags: TagTable | None = None  # as given
        self._order: np.ndarray | None = None  # likewise

    def _check(self, stream: str, opts: Mapping[str, Any]) -> dict[str, Any]:
        """:return: with all entries. Any: each has its own type"""
        what = f'option "data_keys", stream {stream!r}'
        if not isinstance(opts, Mapping):
            raise ConfigError(describe(f"{what} is invalid", where=self._where(), expected="dict", got=opts))
        unknown = sorted(set(opts) - {"dim", "shape", "dtype", "sparse"})
        if unknown:
            raise ConfigError(
                describe(
                    f"{what}: unknown {unknown}", where=self._where(), expected="dim, shape, dtype, sparse", got=opts
                )
            )
        sparse = bool(opts.get("sparse", False))
        dim = opts.get("dim")
        shape = opts.get("shape")
        if shape is None:
            shape = (None,) if sparse or dim is None else (None, dim)
        is_shape = isinstance(shape, (tuple, list)) and all(
            n is None or (isinstance(n, (int, np.integer)) and n >= 0) for n in shape
        )
        if not is_shape:
            raise ConfigError(
                describe(f"{what}: wrong shape", where=self._where(), expected="tuple of int or None", got=shape)
            )
        if dim is None and not sparse and len(shape) > 1:
            dim = shape[-1]
        dtype = opts.get("dtype") or ("int32" if sparse else "float32")
        try:
            np.dtype("U" if dtype == "string" else dtype)
        except TypeError as exc:
            raise ConfigError(
                describe(f"{what}: wrong dtype", where=self._where(), expected="name of a numpy dtype", got=dtype)
            ) from exc
        return {"dim": dim, "shape": tuple(shape), "dtype": dtype, "sparse": sparse}

    # ---- order

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | np.ndarray | None = None,
    ) -> bool:
        """
        :param epoch: from 1
        :param seq_list: tags of the sequences
        :param seq_order: numbers of the sequences
        """
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._tags = self._order = None
        if seq_list is not None:
            self._tags = TagTable.from_tags(seq_list)
            self._num_seqs = len(self._tags)
        elif seq_order is not None:
            self._order = np.asarray(seq_order, dtype=np.int64)
            self._num_seqs = len(self._order)
        return True

    @property
    def num_seqs(self) -> int:
        """:return: if a list or order was given"""
        if self._tags is None and self._order is None:
            raise NotImplementedError(f"{self!r}: there is no end")
        return self._num_seqs or 0

    def is_less_than_num_seqs(self, n: int) -> bool:
        """:return: always True, unless a list or order was given"""
        return True if self._tags is None and self._order is None else n < self.num_seqs

    def get_total_num_seqs(self, *, fast: bool = False) -> int:
        """:raises OptionalNotImplementedError: there is no end"""
        raise OptionalNotImplementedError(f"{self!r}: there is no end")

    def get_all_tags(self) -> list[str]:
        """:raises OptionalNotImplementedError: there is no end"""
        raise OptionalNotImplementedError(f"{self!r}: there is no end")

    def have_corpus_seq_idx(self) -> bool:
        """:return: True, by number"""
        return True

    def get_corpus_seq_idx(self, sorted_seq_idx: int) -> int:
        """:return: number of the sequence"""
        return sorted_seq_idx if self._order is None else int(self._order[sorted_seq_idx])

    def get_current_seq_order(self) -> np.ndarray:
        """:return: numbers of the sequences"""
        return np.arange(self.num_seqs) if self._order is None else self._order

    def get_tag(self, sorted_seq_idx: int) -> str:
        """:return: as given, or ``seq-<number>``"""
        if self._tags is not None:
            return self._tags[sorted_seq_idx]
        return f"seq-{self.get_corpus_seq_idx(sorted_seq_idx)}"

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """:return: 1 for all"""
        return NumbersDict(1)

    def get_estimated_seq_length(self, seq_idx: int) -> int:
        """:return: 1"""
        return 1

    def supports_seq_order_sorting(self) -> bool:
        """:return: True"""
        return True

    # ---- data

    def _data_shape(self, stream: str) -> tuple[int, ...]:
        return tuple(1 if n is None else int(n) for n in self._opts(stream)["shape"])

    def _np_dtype(self, stream: str) -> np.dtype:
        dtype = self._opts(stream)["dtype"]
        return np.dtype("U1" if dtype == "string" else dtype)

    def _opts(self, stream: str) -> dict[str, Any]:
        """:return: of the stream. Any: each has its own type"""
        if stream not in self._data_keys:
            raise DatasetError(
                describe("No such data key", where=self._where(), expected=f"one of {self.get_data_keys()}", got=stream)
            )
        return self._data_keys[stream]

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if not self.is_less_than_num_seqs(seq_idx):
            return None
        features = {stream: np.zeros(self._data_shape(stream), self._np_dtype(stream)) for stream in self._data_keys}
        return DatasetSeq(seq_idx=seq_idx, features=features, seq_tag=self.get_tag(seq_idx))

    def supports_jump(self) -> bool:
        """See :func:`Dataset.supports_jump`."""
        return reads_as_its_class(self)

    def get_epoch_seq_lens(self, key: str) -> np.ndarray | None:
        """:return: int64 [num_seqs], if there is an end"""
        shape = self._data_shape(key)
        return np.full(self.num_seqs, shape[0], dtype=np.int64) if shape else None

    def read_seqs(self, seq_idxs: np.ndarray, keys: Sequence[str]) -> dict[str, Ragged] | None:
        """
        :param seq_idxs: [B], positions in the epoch
        :param keys: streams
        :return: zeros
        """
        num = len(seq_idxs)
        result = {}
        for key in keys:
            shape, dtype = self._data_shape(key), self._np_dtype(key)
            if shape:
                flat = np.zeros((num * shape[0], *shape[1:]), dtype)
                result[key] = Ragged(flat, np.full(num, shape[0], dtype=np.int64))
            else:
                result[key] = Ragged(np.zeros(num, dtype), None)
        return result

    def get_seq_tags(self, seq_idxs: np.ndarray | Sequence[int]) -> list[str]:
        """
        :param seq_idxs: [B], positions in the epoch
        :return: their tags
        """
        if self._tags is not None:
            return self._tags.select(np.asarray(seq_idxs, dtype=np.int64))
        return [self.get_tag(int(i)) for i in seq_idxs]

    def get_data_keys(self) -> list[str]:
        """:return: as given"""
        return list(self._data_keys)

    def get_target_list(self) -> list[str]:
        """:return: all but the first"""
        return list(self._data_keys)[1:]

    def get_data_dim(self, key: str) -> int:
        """:return: as given; 1 if there is none"""
        dim = self._opts(key)["dim"]
        return 1 if dim is None else int(dim)

    def get_data_dtype(self, key: str) -> str:
        """:return: as given"""
        return str(self._opts(key)["dtype"])

    def is_data_sparse(self, key: str) -> bool:
        """:return: as given"""
        return bool(self._opts(key)["sparse"])

    def get_data_shape(self, key: str) -> list[int | None]:
        """:return: as given, without the first axis"""
        return list(self._opts(key)["shape"][1:])
