"""
Datasets as data pipes for torch's DataLoader.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import TYPE_CHECKING, Any, Protocol

import numpy
import torch.utils.data

from returnn._state import find_global_config, state
from returnn.datasets._loading.source import known_num_seqs
from returnn.errors import DatasetError
from returnn.options.dialect import is_mainline

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = [
    "ReturnnDatasetIterDataPipe",
    "ReturnnDatasetResetDefaultEpochCounterCallback",
    "ReturnnDatasetResetMpSharedEpochCallback",
    "ReturnnDatasetResetNoOpCallback",
    "ReturnnDatasetPerEpochMapDataPipe",
    "ReturnnDatasetFullMapDataPipe",
]

ResetCallback = Callable[[], None]


class _HasValue(Protocol):
    value: int


class ReturnnDatasetResetDefaultEpochCounterCallback:
    """Brings the dataset to epoch 1, 2, ... with each call."""

    def __init__(self, dataset: Dataset, *, epoch0: int = 0):
        """
        :param dataset: to init
        :param epoch0: the first call is for the epoch after this one
        """
        self.dataset = dataset
        self.epoch = epoch0

    def __call__(self) -> None:
        """Next epoch."""
        self.epoch += 1
        self.dataset.init_seq_order(epoch=self.epoch)


class ReturnnDatasetResetMpSharedEpochCallback:
    """Brings the dataset to the epoch that a shared value says."""

    def __init__(self, dataset: Dataset, epoch_mp_shared: _HasValue):
        """
        :param dataset: to init
        :param epoch_mp_shared: e.g. ``torch.multiprocessing.Value`` or one of a manager: has an int ``value``. 0: no epoch
        """
        self.dataset = dataset
        self.epoch_mp_shared = epoch_mp_shared

    def __call__(self) -> None:
        """The current epoch."""
        self.dataset.init_seq_order(epoch=self.epoch_mp_shared.value or None)


class ReturnnDatasetResetNoOpCallback:
    """Does nothing: the dataset already is at the epoch."""

    def __call__(self) -> None:
        """Nothing."""


def _read_seq(dataset: Dataset, position: int, keys: list[str]) -> dict[str, Any]:
    """:return: data key -> array. Any: arrays"""
    return {key: dataset.get_data(position, key) for key in keys}


def _to_mainline(sample: dict[str, Any], dataset: Dataset, position: int) -> None:
    """:param sample: extended in place. Any: arrays"""
    num_seqs = known_num_seqs(dataset)
    try:
        complete_frac = dataset.get_complete_frac(position, allow_only_lr_suitable=True)
    except (NotImplementedError, TypeError):  # TypeError: no sequences, or an override with other arguments
        complete_frac = None
    sample["seq_idx"] = numpy.array(sample["seq_idx"])
    sample["seq_tag"] = numpy.array(sample["seq_tag"])
    sample["epoch"] = numpy.array(dataset.epoch or 0)
    sample["num_seqs"] = numpy.array(-1 if num_seqs is None else num_seqs)
    sample["complete_frac"] = numpy.array(-1 if complete_frac is None else complete_frac, dtype=numpy.float32)


class ReturnnDatasetIterDataPipe(torch.utils.data.IterableDataset):
    """
    Sequences of a dataset, in its order. Each new iterator calls the reset callback first, in the process that iterates.

    With several workers of torch's DataLoader, worker w of W gives the sequences w, w+W, ... of the order,
    unless the dataset shards by itself.
    """

    def __init__(
        self, returnn_dataset: Dataset, *, reset_callback: ResetCallback | None = None, mainline: bool | None = None
    ):
        """
        :param returnn_dataset: to iterate over
        :param reset_callback: brings the dataset to an epoch; None: epochs 1, 2, ... with each iterator
        :param mainline: form of the sequences; None: that of the dialect of the global config
        """
        super().__init__()
        self._dataset = returnn_dataset
        config = find_global_config()
        self._is_mainline = (config is not None and is_mainline(config)) if mainline is None else mainline
        self._reset_callback = reset_callback or ReturnnDatasetResetDefaultEpochCounterCallback(returnn_dataset)

    def reset(self) -> None:
        """Start a new pass. Called for each new iterator."""
        worker = torch.utils.data.get_worker_info()
        if worker is not None and worker.num_workers > 1:
            state.worker_id, state.num_workers = worker.id, worker.num_workers
        self._dataset._sharding_applied = False
        self._dataset._loader_shard = None
        self._reset_callback()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        :return: data key -> array, seq_idx -> int (within the shard), seq_tag -> str. Any: either.
            In mainline's form both are arrays, and there are also epoch, num_seqs (-1: unknown) and complete_frac
            (float32, -1: unknown)
        """
        self.reset()
        dataset = self._dataset
        first, step = 0, 1
        if state.num_workers > 1 and not dataset._sharding_applied:
            first, step = state.worker_id, state.num_workers
        keys: list[str] | None = None
        seq_idx = 0
        position = first
        while dataset.is_less_than_num_seqs(position):
            dataset.load_seqs(position, position + 1)
            if keys is None:
                keys = list(dataset.get_data_keys())
            sample = _read_seq(dataset, position, keys)
            sample["seq_idx"] = seq_idx
            sample["seq_tag"] = dataset.get_tag(position)
            if self._is_mainline:
                _to_mainline(sample, dataset, position)
            yield sample
            seq_idx += 1
            position += step

    def __getitem__(self, index: int) -> Any:  # Any: as above
        """Not supported: there is only the order of iteration."""
        raise TypeError("ReturnnDatasetIterDataPipe can only be iterated over; see ReturnnDatasetPerEpochMapDataPipe")


class ReturnnDatasetPerEpochMapDataPipe(torch.utils.data.Dataset):
    """
    Random access to the sequences of the current epoch, in its order. For datasets that can go back
    (or samplers that only go forward).
    """

    def __init__(self, returnn_dataset: Dataset, *, reset_callback: ResetCallback | None = None):
        """
        :param returnn_dataset: to read from
        :param reset_callback: brings the dataset to an epoch, at each :meth:`reset`; None: epochs 1, 2, ...
        """
        self._dataset = returnn_dataset
        self._reset_callback = reset_callback or ReturnnDatasetResetDefaultEpochCounterCallback(returnn_dataset)
        self._is_started = False

    def reset(self) -> None:
        """Go to the next epoch."""
        self._reset_callback()
        self._is_started = True

    def _start(self) -> None:
        if not self._is_started:
            self.reset()

    def __len__(self) -> int:
        """:return: number of sequences of the epoch"""
        self._start()
        return self._dataset.num_seqs

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        :param index: position in the epoch
        :return: data key -> array. Any: arrays
        """
        self._start()
        if not 0 <= index < self._dataset.num_seqs:
            raise IndexError(f"sequence {index} of {self._dataset.num_seqs}")
        self._dataset.load_seqs(index, index + 1)
        return _read_seq(self._dataset, index, list(self._dataset.get_data_keys()))


class ReturnnDatasetFullMapDataPipe(torch.utils.data.Dataset):
    """Random access to all sequences of the corpus, in corpus order, whatever the epoch."""

    def __init__(self, returnn_dataset: Dataset):
        """
        :param returnn_dataset: with ``get_corpus_seq``
        :raises DatasetError: it has no random access to the corpus
        """
        if not returnn_dataset.have_get_corpus_seq():
            raise DatasetError(
                f"{type(returnn_dataset).__name__} has no random access to its corpus (get_corpus_seq). "
                "Use ReturnnDatasetPerEpochMapDataPipe or ReturnnDatasetIterDataPipe."
            )
        self._dataset = returnn_dataset

    def __len__(self) -> int:
        """:return: number of sequences of the corpus"""
        return self._dataset.get_total_num_seqs()

    def __getitem__(self, index: int) -> dict[str, Any]:
        """
        :param index: in the corpus
        :return: data key -> array. Any: arrays
        """
        seq = self._dataset.get_corpus_seq(index)
        return {key: seq.get_data(key) for key in seq.get_data_keys()}
