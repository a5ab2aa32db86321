"""Small evaluation sets are read in the main process, with the batches of the workers."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn._state import state
from returnn.datasets import init_dataset
from returnn.datasets._loading import small_sets
from returnn.datasets.generating import StaticDataset
from returnn.datasets.hdf import SimpleHDFWriter
from returnn.options.batching import BatchingOptions, ChunkingOptions
from returnn.options.chunking import ChunkStream
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, Loader, RawBatch, create_loader


def _make_hdf(folder: Path, num_seqs: int = 60) -> str:
    path = str(folder / "data.hdf")
    rnd = numpy.random.RandomState(1)
    with SimpleHDFWriter(path, dim=3, ndim=2) as writer:
        for i in range(num_seqs):
            writer.insert_batch(rnd.randn(1, i % 9 + 1, 3).astype("float32"), [i % 9 + 1], [f"seq-{i}"])
    return path


def _make_loader(
    dataset: dict[str, Any],  # Any: options of the class
    num_workers: int,
    *,
    in_process: bool,
    batching: BatchingOptions,
    worker_batching: Any = "sharded",  # Any: one of its texts
    rank: int = 0,
    num_ranks: int = 1,
) -> Loader:
    return create_loader(
        init_dataset(dataset),
        batching=batching,
        loader=LoaderOptions(
            num_workers=num_workers, small_sets_in_process=in_process, worker_batching=worker_batching
        ),
        epoch_source=EpochSource(3),
        name="dev",
        role="eval",
        rank=rank,
        num_ranks=num_ranks,
    )


def _assert_equal(batches: list[RawBatch], expected: list[RawBatch]) -> None:
    assert len(batches) == len(expected)
    for batch, other in zip(batches, expected, strict=True):
        assert list(batch) == list(other)
        for key, value in batch.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == other[key].dtype
                torch.testing.assert_close(value, other[key], rtol=0, atol=0)
            else:
                assert value == other[key]


_CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {  # Any: options
    "limits": ({}, {}),
    "global": ({}, {"worker_batching": "global"}),
    "ranks": ({}, {"rank": 1, "num_ranks": 2}),
    "filter": ({"max_seq_length": 6, "min_seq_length": 2}, {}),
    "chunking": ({"chunking": ChunkingOptions({"data": ChunkStream(4, 2)}, random_start=True)}, {}),
}


@pytest.mark.parametrize("kind", ["hdf", "generating"])
@pytest.mark.parametrize("case", _CASES)
def test_same_batches_as_workers(case: str, kind: str, tmp_path: Path) -> None:
    """With read_seqs and one by one; generators of the process are not touched."""
    batching_opts, loader_opts = _CASES[case]
    dataset: dict[str, Any] = {"class": "Task12AXDataset", "num_seqs": 5}  # Any: options of the class
    if kind == "hdf":
        dataset = {"class": "HDFDataset", "files": [_make_hdf(tmp_path)], "seq_ordering": "laplace:.10"}
    batching = BatchingOptions(batch_size=1000, max_seqs=7, **batching_opts)
    workers = _make_loader(dataset, 2, in_process=False, batching=batching, **loader_opts)
    expected = list(workers)
    small = _make_loader(dataset, 2, in_process=True, batching=batching, **loader_opts)
    torch.manual_seed(5)
    small.consume_rng()
    wanted = torch.get_rng_state().tolist(), random.getstate(), repr(numpy.random.get_state())
    small._had_iterator = False
    torch.manual_seed(5)
    for is_first in (True, False):
        _assert_equal(list(small), expected)
        assert small._pool is None
        if is_first:
            assert (torch.get_rng_state().tolist(), random.getstate(), repr(numpy.random.get_state())) == wanted
        assert not state.in_worker
        assert state.num_workers == 0
        assert small.stats.num_seqs == workers.stats.num_seqs
        assert small.stats.num_seqs_dropped == workers.stats.num_seqs_dropped
        assert small.stats.num_batches == workers.stats.num_batches
    workers.close()


def test_large_sets_are_left_to_workers(tmp_path: Path) -> None:
    """From the number of batches on that is not small. Nothing is given twice."""
    dataset = {"class": "HDFDataset", "files": [_make_hdf(tmp_path)]}
    batching = BatchingOptions(max_seqs=1)
    loader = _make_loader(dataset, 1, in_process=True, batching=batching)
    assert [batch["seq_tag"] for batch in loader] == [[f"seq-{i}"] for i in range(60)]
    assert loader._pool is not None
    loader.close()


def test_position_in_a_small_set(tmp_path: Path) -> None:
    """It goes on with workers."""
    dataset = {"class": "HDFDataset", "files": [_make_hdf(tmp_path)]}
    batching = BatchingOptions(max_seqs=7)
    loader = _make_loader(dataset, 2, in_process=True, batching=batching)
    expected = list(loader)
    batches = iter(loader)
    for _ in range(3):
        next(batches)
    other = _make_loader(dataset, 2, in_process=True, batching=batching)
    other.load_state_dict(loader.state_dict())
    _assert_equal(list(other), expected[3:])
    other.close()


class _Stateful(StaticDataset):
    """A class of a user."""

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """See the base."""
        return super().get_data(seq_idx, key) + 1


def test_code_of_users_runs_in_workers() -> None:
    """It may keep state in each process."""
    options = _make_loader(
        {"class": "Task12AXDataset", "num_seqs": 3}, 1, in_process=True, batching=BatchingOptions(max_seqs=2)
    ).options
    data = [{"data": numpy.zeros((2, 2), "float32")}]
    assert small_sets.may_be_small(StaticDataset(data), options)
    assert not small_sets.may_be_small(_Stateful(data), options)
