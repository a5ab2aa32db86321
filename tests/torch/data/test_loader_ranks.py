"""Loaders of several ranks over datasets that distribute files: each sequence of the epoch once, whoever shards."""

from __future__ import annotations

import functools
import shutil
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.distrib_files import DistributeFilesDataset
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, create_loader
from tests.datasets.proc_datasets import GOLDEN
from tests.datasets.proc_functions import add_random, hdf_of_files

NUM_RANKS = 2


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    """:return: five HDF files, with equal tags in some"""
    names = []
    for i, name in enumerate(["c_a", "c_b", "c_a", "c_b", "c_a"]):
        names.append(str(tmp_path / f"{i}_{name}.hdf"))
        shutil.copy(GOLDEN / f"{name}.hdf", names[-1])
    return names


@pytest.fixture
def datasets() -> Iterator[list[Dataset]]:
    """:return: list for those to be ended"""
    created: list[Dataset] = []
    yield created
    for dataset in created:
        dataset.finish_epoch(free_resources=True)


def _tags(dataset: Dataset, *, num_workers: int, worker_batching: Any, epoch: int = 1) -> list[str]:
    loader = create_loader(
        dataset,
        batching=BatchingOptions(batch_size=None, max_seqs=1),
        loader=LoaderOptions(num_workers=num_workers, worker_batching=worker_batching),
        epoch_source=EpochSource(epoch),
        name="train",
    )
    try:
        return [tag for batch in loader for tag in batch["seq_tag"]]
    finally:
        loader.close()


@pytest.mark.parametrize("num_workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("worker_batching", ["sharded", "global"])
@pytest.mark.parametrize("shard_files", [False, True])
@pytest.mark.parametrize("nested", [False, True])
def test_distributed_files(
    files: list[str],
    datasets: list[Dataset],
    num_workers: int,
    worker_batching: str,
    shard_files: bool,
    nested: bool,
) -> None:
    opts: dict[str, Any] = {
        "class": "DistributeFilesDataset",
        "files": files,
        "get_sub_epoch_dataset": functools.partial(hdf_of_files, seq_ordering="random"),
        "partition_epoch": 1,
        "distrib_shard_files": shard_files,
    }
    if nested:
        opts = {"class": "PostprocessingDataset", "dataset": opts, "map_seq": add_random}

    def make(**state: int) -> Dataset:
        with process_state_ctx(**state):
            datasets.append(init_dataset(opts))
        return datasets[-1]

    whole = make()
    assert isinstance(whole, DistributeFilesDataset) or nested
    expected = Counter(_tags(whole, num_workers=0, worker_batching="sharded"))
    parts = []
    for rank in range(NUM_RANKS):
        with process_state_ctx(rank=rank, world_size=NUM_RANKS):
            dataset = make(rank=rank, world_size=NUM_RANKS)
            parts.append(_tags(dataset, num_workers=num_workers, worker_batching=worker_batching))
    assert sum(map(Counter, parts), Counter()) == expected
    assert all(parts)
