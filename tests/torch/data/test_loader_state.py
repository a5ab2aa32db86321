"""The state of a loader: a pass goes on after a restart as if it had not been interrupted."""

from __future__ import annotations

import copy
import dataclasses
import io
import random
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn._state import process_state_ctx
from returnn.datasets._loading.source import SourceOptions
from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError
from returnn.options.batching import BatchingOptions, BucketOptions, ChunkingOptions, ChunkStream, OnlineShuffleOptions
from returnn.options.custom_batching import CustomBatching
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, Loader, create_loader
from returnn.torch.data.loader_state import from_plain, to_plain
from returnn.torch.rng_state import get_rng_state, set_rng_state
from tests.datasets.loading_datasets import BulkDataset, PerSeqDataset, SelfShardingDataset, StreamDataset
from tests.torch.data.test_loader import assert_same_batches

LENS = [3, 9, 4, 7, 1, 12, 5, 5, 8, 2, 6, 10, 11, 3, 4, 4, 7]
MAX_SEQS_3 = BatchingOptions(batch_size=None, max_seqs=3)
CHUNKED = BatchingOptions(
    batch_size=24,
    max_seqs=4,
    min_seq_length={"data": 2},
    chunking=ChunkingOptions({"data": ChunkStream(4, 2)}, random_start=True),
)


class JumpDataset(PerSeqDataset):
    """Can be read from any sequence on."""

    def __init__(self, *args: Any, **kwargs: Any):  # Any: as the base
        """As the base."""
        super().__init__(*args, **kwargs)
        self.loaded: list[int] = []

    def supports_jump(self) -> bool:
        """:return: yes"""
        return True

    def load_seqs(self, start: int, end: int) -> None:
        """Note it."""
        self.loaded.append(start)


class DrawingDataset(JumpDataset):
    """Draws from the global generators, from some sequence on."""

    def __init__(self, lens: Sequence[int], first: int = 0, **kwargs: Any):  # Any: as the base
        """
        :param lens: of the sequences
        :param first: sequence that draws
        :param kwargs: of the base
        """
        super().__init__(lens, **kwargs)
        self.first = first

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: data with noise"""
        data = super().get_data(seq_idx, key)
        if key == "data" and seq_idx >= self.first:
            data = data + numpy.random.rand() + random.random() + torch.rand(()).item()
        return data


class ReplayedDrawing(DrawingDataset):
    """The same, but it cannot be read from any sequence on."""

    def supports_jump(self) -> bool:
        """:return: no"""
        return False


class StatefulDataset(PerSeqDataset):
    """Has a state of its own, and methods for it."""

    def __init__(self, lens: Sequence[int], **kwargs: Any):  # Any: as the base
        """:param lens: of the sequences. :param kwargs: of the base"""
        super().__init__(lens, **kwargs)
        self.random = numpy.random.RandomState(0)
        self.sums = {"frames": numpy.zeros(2, dtype="uint32")}
        self.num_loaded = 0

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        """Start of the state."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.random.seed(epoch)
        self.sums = {"frames": numpy.zeros(2, dtype="uint32")}
        return True

    def load_seqs(self, start: int, end: int) -> None:
        """Changes the state."""
        self.num_loaded += 1
        self.noise = self.random.rand()
        self.sums["frames"] += 1

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: data that depends on it"""
        data = super().get_data(seq_idx, key)
        return data + self.noise + self.sums["frames"].sum() if key == "data" else data

    def state_dict(self) -> dict[str, Any]:
        """:return: the state itself, no copy"""
        return {"random": self.random.get_state(), "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: of state_dict"""
        self.random.set_state(state["random"])
        self.sums = state["sums"]


class ReplayedDataset(StatefulDataset):
    """The same without methods for it."""

    state_dict = None  # type: ignore[assignment]
    load_state_dict = None  # type: ignore[assignment]


def make(
    dataset: Dataset,
    num_workers: int = 0,
    batching: BatchingOptions = MAX_SEQS_3,
    *,
    epoch: int = 2,
    seed: int = 42,
    rank: int = 0,
    num_ranks: int = 1,
    **loader_opts: Any,
) -> Loader:
    """:return: loader"""
    return create_loader(
        dataset,
        batching=batching,
        loader=LoaderOptions(num_workers=num_workers, **loader_opts),
        epoch_source=EpochSource(epoch),
        name="train",
        seed=seed,
        rank=rank,
        num_ranks=num_ranks,
    )


def _draw() -> None:
    """What a training does between batches."""
    torch.rand(3)


def _through_file(state: dict[str, Any]) -> dict[str, Any]:
    """:return: the state as a checkpoint gives it"""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def _stats(loader: Loader) -> dict[str, Any]:
    return {**dataclasses.asdict(loader.stats), "secs_waited": 0, "len_filter": None}


def check_restart(
    dataset: Dataset,
    num_batches: int,
    *,
    num_workers: int = 0,
    then: int | None = None,
    batching: BatchingOptions = MAX_SEQS_3,
    passes_before: int = 0,
    **kwargs: Any,
) -> Loader:
    """
    Stop behind some batches, go on with a new loader of a fresh copy, and compare with the uninterrupted pass.

    :param dataset: to copy
    :param num_batches: to give before
    :param num_workers: of the first loader
    :param then: of the second one; None: the same
    :param batching: of both
    :param passes_before: of the first loader over the epoch
    :param kwargs: of :func:`make`
    :return: the second loader, at the end of its pass; its workers are ended
    """
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    first = make(copy.deepcopy(dataset), num_workers, batching, **kwargs)
    try:
        for _ in range(passes_before):
            list(first)
        batches = iter(first)
        for _ in range(num_batches):
            next(batches, None)
            _draw()
        state, rng = _through_file(first.state_dict()), get_rng_state()
        expected_stats_then = _stats(first)
        expected = []
        for batch in batches:
            expected.append(batch)
            _draw()
        expected_stats = _stats(first)
        expected_rng = get_rng_state()
    finally:
        first.close()
    second = make(copy.deepcopy(dataset), num_workers if then is None else then, batching, **kwargs)
    try:
        second.load_state_dict(state)
        again = second.state_dict()
        assert again.keys() == state.keys() and again["stats"] == state["stats"]
        torch_state = torch.get_rng_state()
        batches = iter(second)
        if second.num_workers:
            assert torch.equal(torch_state, torch.get_rng_state())
        set_rng_state(rng)
        if not second.num_workers and not num_workers:
            assert _stats(second) == expected_stats_then
        assert second.stats.num_batches == expected_stats_then["num_batches"]
        rest = []
        for batch in batches:
            rest.append(batch)
            _draw()
        assert_same_batches(rest, expected)
        assert _stats(second) == expected_stats
        assert torch.equal(expected_rng["torch"], torch.get_rng_state())
    finally:
        second.close()
    return second


DATASETS = [BulkDataset, PerSeqDataset, JumpDataset, StreamDataset, StatefulDataset, ReplayedDataset]


@pytest.mark.parametrize("cls", DATASETS)
@pytest.mark.parametrize("batching", [MAX_SEQS_3, CHUNKED], ids=["plain", "chunked"])
def test_rest_of_pass(cls: type[PerSeqDataset], batching: BatchingOptions) -> None:
    for num_batches in (0, 1, 2, 5, 100):
        check_restart(cls(LENS), num_batches, batching=batching)


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("cls", [BulkDataset, JumpDataset, ReplayedDataset, StatefulDataset])
def test_workers(cls: type[PerSeqDataset], num_workers: int) -> None:
    check_restart(cls(LENS), 3, num_workers=num_workers, batching=CHUNKED)
