"""Datasets over several processes, where shared memory cannot be passed on: blocks go through pipes, both ways."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy
import pytest

from returnn.datasets._loading import shared_slots
from returnn.datasets._procs import seq_blocks
from returnn.datasets.basic import init_dataset
from tests.datasets.everyday_use import read_epoch
from tests.datasets.no_shared_memory import LargeSeqsDataset, negate


@pytest.fixture
def make(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """:return: as init_dataset; the processes end after the test"""
    monkeypatch.setattr(shared_slots, "CAN_SHARE", False)
    monkeypatch.setattr(seq_blocks, "CAN_SHARE", False)
    datasets: list[Any] = []

    def create(opts: Any) -> Any:
        datasets.append(init_dataset(opts))
        return datasets[-1]

    yield create
    for dataset in datasets:
        dataset.close()


_CHILD = {"class": LargeSeqsDataset}


def test_large_inputs_and_results(make: Any) -> None:
    opts = {"class": "PostprocessingDataset", "dataset": _CHILD, "map_seq": negate, "num_workers": 2, "buf_size": 4}
    dataset = make(opts)
    for epoch in (1, 2):
        seqs = read_epoch(dataset, epoch)
        assert [(tag, float(data["data"][0, 0])) for tag, data in seqs] == [(f"seq-{i}", -i) for i in range(12)]
        assert all(len(numpy.unique(data["data"])) == 1 for _, data in seqs)


def test_large_orders_while_results_wait(make: Any) -> None:
    """An epoch begins while the processes still send the one before."""
    dataset = make({"class": "MultiProcDataset", "dataset": _CHILD, "num_workers": 2, "buffer_size": 4})
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    order = numpy.arange(50_000) % 12
    dataset.init_seq_order(epoch=2, seq_order=order)
    dataset.load_seqs(0, 5)
    assert [dataset.get_tag(i) for i in range(5)] == [f"seq-{i}" for i in range(5)]
