"""
CachedDataset2: base for datasets that deliver sequence after sequence; keeps the loaded ones in a moving window.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

import numpy

from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.errors import DatasetError, UnknownDataKeyError
from returnn.util.numbers_dict import NumbersDict

__all__ = ["CachedDataset2", "SingleStreamPipeDataset"]


class CachedDataset2(Dataset):
    """
    A subclass sets ``num_inputs``, ``num_outputs`` (and ``labels``), overrides :func:`_collect_single_seq`,
    and ``init_seq_order``, where it calls the base first and then sets ``_num_seqs``, if known.
    """

    def __init__(self, **kwargs: Any) -> None:
        """
        :param kwargs: see :class:`Dataset`. Any: each has its own type
        """
        super().__init__(**kwargs)
        self._num_timesteps: Any = None  # int or NumbersDict, if known
        self.epoch = None
        self.reached_final_seq = False
        self.added_data: list[DatasetSeq] = []  # ascending by seq_idx
        self.expected_load_seq_start = 0
        self._num_timesteps_accumulated = NumbersDict()

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. Forgets all loaded sequences, and their number."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        if not epoch:
            self.epoch = 1
        self.expected_load_seq_start = 0
        self.reached_final_seq = False
        self.added_data = []
        self._num_timesteps_accumulated = NumbersDict()
        self._num_seqs = None
        return True

    def finish_epoch(self, *, free_resources: bool = False) -> None:
        """See :func:`Dataset.finish_epoch`."""
        super().finish_epoch(free_resources=free_resources)
        self.expected_load_seq_start = 0
        self.added_data = []

    # ---- the window of loaded sequences

    def _cleanup_old_seqs(self, seq_idx_end: int) -> None:
        """Forget the sequences before seq_idx_end."""
        num_old = 0
        while num_old < len(self.added_data) and self.added_data[num_old].seq_idx < seq_idx_end:
            num_old += 1
        del self.added_data[:num_old]

    def _get_seq(self, seq_idx: int) -> DatasetSeq | None:
        """:return: the loaded sequence; None if not loaded"""
        if not self.added_data:
            return None
        # Usually without gaps; subclasses and callers can make gaps.
        pos = seq_idx - self.added_data[0].seq_idx
        if 0 <= pos < len(self.added_data) and self.added_data[pos].seq_idx == seq_idx:
            return self.added_data[pos]
        low, high = 0, len(self.added_data)
        while low < high:
            mid = (low + high) // 2
            if self.added_data[mid].seq_idx < seq_idx:
                low = mid + 1
            else:
                high = mid
        if low < len(self.added_data) and self.added_data[low].seq_idx == seq_idx:
            return self.added_data[low]
        return None

    def _get_loaded_seq(self, seq_idx: int) -> DatasetSeq:
        """:return: the loaded sequence, or a worded error"""
        seq = self._get_seq(seq_idx)
        if seq is None:
            loaded = f"{self.added_data[0].seq_idx}..{self.added_data[-1].seq_idx}" if self.added_data else "none"
            raise DatasetError(
                f"{self!r}: sequence {seq_idx} is not loaded (loaded: {loaded}). "
                f"Call load_seqs({seq_idx}, {seq_idx + 1}) before, in ascending order."
            )
        return seq

    def is_cached(self, start: int, end: int) -> bool:
        """:return: False: every load_seqs call moves the window"""
        return False

    def _load_seqs(self, start: int, end: int) -> None:
        if start < self.expected_load_seq_start:
            raise DatasetError(
                f"{self!r}: load_seqs({start}, {end}) after sequences from {self.expected_load_seq_start} on were asked "
                "for: start must not decrease within an epoch. Call init_seq_order to start again."
            )
        if start > self.expected_load_seq_start:
            self._cleanup_old_seqs(start)
            self.expected_load_seq_start = start
        if self.added_data:
            start = max(self.added_data[-1].seq_idx + 1, start)
        for seq_idx in range(start, end):
            seq = self._collect_single_seq(seq_idx)
            if seq is None:
                continue
            if not self.reached_final_seq:
                self._num_timesteps_accumulated += seq.num_frames
            self.added_data.append(seq)

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        """
        To be overridden. Called once per epoch for each sequence, ascending.

        :param seq_idx: of the current epoch
        :return: the sequence, or None if seq_idx >= num_seqs
        """
        raise NotImplementedError(f"{type(self).__name__}._collect_single_seq")

    def _load_something(self) -> None:
        """Load one sequence, if none is loaded."""
        if self.added_data:
            return
        self.load_seqs(self.expected_load_seq_start, self.expected_load_seq_start + 1)

    def _first_seq(self) -> DatasetSeq | None:
        """:return: any loaded sequence, loading one if needed; None if the epoch is empty or not started"""
        if not self.added_data and (self.epoch is None or self._num_seqs == 0):
            return None
        self._load_something()
        return self.added_data[0] if self.added_data else None

    # ---- numbers

    @property
    def num_seqs(self) -> int:
        """:return: see :func:`Dataset.num_seqs`"""
        if self._num_seqs is None:
            raise NotImplementedError(f"{self!r}: the number of sequences is not known before the end of the epoch")
        return self._num_seqs

    def is_less_than_num_seqs(self, n: int) -> bool:
        """See :func:`Dataset.is_less_than_num_seqs`. Loads up to sequence n, if the number is not known."""
        if n < self.expected_load_seq_start:
            return True
        try:
            return n < self.num_seqs
        except NotImplementedError:
            pass
        if self._get_seq(n) is None:
            self.load_seqs(self.expected_load_seq_start, n + 1)
        if self._get_seq(n) is not None:
            return True
        # End reached. Without any loaded sequence, either the epoch is empty, or the window is exactly at the end.
        self._num_seqs = self.added_data[-1].seq_idx + 1 if self.added_data else self.expected_load_seq_start
        self.reached_final_seq = True
        return n < self._num_seqs

    def get_num_timesteps(self) -> int | NumbersDict:
        """See :func:`Dataset.get_num_timesteps`. Known after the end of the epoch."""
        if self._num_timesteps is not None:
            timesteps: int | NumbersDict = self._num_timesteps
            return timesteps
        if not self.reached_final_seq:
            raise NotImplementedError(f"{self!r}: the number of frames is not known before the end of the epoch")
        return self._num_timesteps_accumulated

    def get_seq_length(self, sorted_seq_idx: int) -> NumbersDict:
        """See :func:`Dataset.get_seq_length`. Loads up to that sequence."""
        if sorted_seq_idx < self.expected_load_seq_start:
            raise DatasetError(
                f"{self!r}: get_seq_length({sorted_seq_idx}): sequences before {self.expected_load_seq_start} "
                "were dropped already. Call init_seq_order to start again."
            )
        if self._get_seq(sorted_seq_idx) is None:
            self.load_seqs(self.expected_load_seq_start, sorted_seq_idx + 1)
        return self._get_loaded_seq(sorted_seq_idx).num_frames

    def get_tag(self, sorted_seq_idx: int) -> str:
        """See :func:`Dataset.get_tag`. Loads up to that sequence."""
        if self._get_seq(sorted_seq_idx) is None:
            self.load_seqs(self.expected_load_seq_start, sorted_seq_idx + 1)
        return self._get_loaded_seq(sorted_seq_idx).seq_tag

    def get_complete_frac(self, sorted_seq_idx: int, *, allow_only_lr_suitable: bool = False) -> float | None:
        """See :func:`Dataset.get_complete_frac`. A sequence may bring its own."""
        seq = self._get_seq(sorted_seq_idx)
        if seq is not None and seq.complete_frac is not None:
            return seq.complete_frac
        return super().get_complete_frac(sorted_seq_idx, allow_only_lr_suitable=allow_only_lr_suitable)

    # ---- data

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """See :func:`Dataset.get_data`."""
        seq = self._get_loaded_seq(seq_idx)
        try:
            return seq.get_data(key)
        except KeyError:
            raise UnknownDataKeyError(
                f"{self!r}: sequence {seq.seq_tag!r} has no data key {key!r}, only {sorted(seq.features)}"
            ) from None

    def get_input_data(self, sorted_seq_idx: int) -> numpy.ndarray:
        """See :func:`Dataset.get_input_data`."""
        return self.get_data(sorted_seq_idx, "data")

    def get_targets(self, target: str, sorted_seq_idx: int) -> numpy.ndarray:
        """See :func:`Dataset.get_targets`."""
        return self.get_data(sorted_seq_idx, target)

    def get_data_keys(self) -> list[str]:
        """:return: sorted keys of the first sequence; those of num_outputs if there is none"""
        seq = self._first_seq()
        if seq is None:
            return sorted(self.num_outputs or ())
        return sorted(seq.get_data_keys())

    def get_target_list(self) -> list[str]:
        """:return: all data keys but "data" """
        return [key for key in self.get_data_keys() if key != "data"]

    def _example(self, key: str) -> numpy.ndarray | None:
        """:return: data of the first sequence"""
        seq = self._first_seq()
        return None if seq is None else seq.features.get(key)

    def is_data_sparse(self, key: str) -> bool:
        """See :func:`Dataset.is_data_sparse`. A key that num_outputs does not have is sparse if it has one axis."""
        if self._entry(key) is not None:
            return super().is_data_sparse(key)
        example = self._example(key)
        return super().is_data_sparse(key) if example is None else example.ndim == 1

    def get_data_dim(self, key: str) -> int:
        """See :func:`Dataset.get_data_dim`. Checked against a loaded sequence."""
        if self._entry(key) is None:
            example = self._example(key)
            return int(example.shape[-1]) if example is not None and example.ndim >= 2 else 1
        dim = super().get_data_dim(key)
        data = self.added_data[0].features.get(key) if self.added_data else None
        if data is not None and data.ndim >= 2 and dim and not self.is_data_sparse(key) and data.shape[-1] != dim:
            raise DatasetError(
                f"{self!r}: data key {key!r} of sequence {self.added_data[0].seq_tag!r} has shape {data.shape}, "
                f"but num_outputs says feature dim {dim}."
            )
        return dim

    def get_data_dtype(self, key: str) -> str:
        """:return: dtype of the first sequence; as declared if there is none"""
        example = self._example(key)
        return super().get_data_dtype(key) if example is None else str(example.dtype)


class SingleStreamPipeDataset(CachedDataset2):
    """One key "data". Another thread gives the sequences, with :func:`producer_add_data`."""

    def __init__(self, dim: int, ndim: int, sparse: bool = False, dtype: str = "float32") -> None:
        """
        :param dim: feature size or number of classes
        :param ndim: number of axes including time
        :param sparse: data are class indices
        :param dtype: of the data
        """
        super().__init__()
        self.num_inputs = dim
        self.num_outputs = {"data": [dim, ndim]}
        self.dim = dim
        self.ndim = ndim
        self.sparse = sparse
        self.dtype = dtype
        self.condition = threading.Condition()
        self.producer_seq_idx = 0
        self.producer_data: deque[tuple[numpy.ndarray, str]] = deque()
        self.producer_finished = False

    def is_data_sparse(self, key: str) -> bool:
        """:return: as given"""
        return self.sparse

    def get_data_dtype(self, key: str) -> str:
        """:return: as given"""
        return self.dtype

    def get_data_keys(self) -> list[str]:
        """:return: "data" """
        return ["data"]

    def supports_sharding(self) -> bool:
        """:return: False: the sequences exist in this process only"""
        return False

    def init_seq_order(
        self,
        epoch: int | None = None,
        seq_list: Sequence[str] | None = None,
        seq_order: Sequence[int] | numpy.ndarray | None = None,
    ) -> bool:
        """See :func:`Dataset.init_seq_order`. Drops what was not consumed. No predefined order is possible."""
        if seq_list is not None or seq_order is not None:
            raise DatasetError(f"{self!r}: the producer gives the order, seq_list and seq_order are not possible.")
        super().init_seq_order(epoch=epoch)
        with self.condition:
            self.producer_seq_idx = 0
            self.producer_data.clear()
            self.producer_finished = False
        return True

    def producer_add_data(self, data: numpy.ndarray, seq_tag: str | None = None) -> None:
        """
        :param data: next sequence
        :param seq_tag: default "seq-%i"
        """
        with self.condition:
            tag = seq_tag if seq_tag is not None else f"seq-{self.producer_seq_idx}"
            self.producer_seq_idx += 1
            self.producer_data.append((data, tag))
            self.condition.notify()

    def producer_set_finished(self) -> None:
        """No more data in this epoch."""
        with self.condition:
            self.producer_finished = True
            self.condition.notify()

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        with self.condition:
            self.condition.wait_for(lambda: bool(self.producer_data) or self.producer_finished)
            if not self.producer_data:
                return None
            data, tag = self.producer_data.popleft()
            return DatasetSeq(seq_idx=seq_idx, features=data, seq_tag=tag)
