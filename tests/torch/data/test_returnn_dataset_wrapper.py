"""Datasets in torch's own DataLoader."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch.utils.data

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets.generating import StaticDataset
from returnn.errors import DatasetError
from returnn.torch.data.loader import EpochSource
from returnn.torch.data.pipeline import BatchingIterDataPipe, create_data_loader_from_batches
from returnn.torch.data.returnn_dataset_wrapper import (
    ReturnnDatasetFullMapDataPipe,
    ReturnnDatasetIterDataPipe,
    ReturnnDatasetPerEpochMapDataPipe,
    ReturnnDatasetResetDefaultEpochCounterCallback,
    ReturnnDatasetResetMpSharedEpochCallback,
    ReturnnDatasetResetNoOpCallback,
)
from tests.datasets.loading_datasets import PerSeqDataset, SelfShardingDataset, StreamDataset

LENS = list(range(1, 11))


def _order(epoch: int) -> list[str]:
    return [f"seq-{i}" for i in numpy.random.RandomState(epoch).permutation(len(LENS))]


def test_default_epochs() -> None:
    pipe = ReturnnDatasetIterDataPipe(PerSeqDataset(LENS))
    for epoch in (1, 2):
        seqs = list(pipe)
        assert [seq["seq_tag"] for seq in seqs] == _order(epoch)
        assert [seq["seq_idx"] for seq in seqs] == list(range(len(LENS)))
        assert list(seqs[0]) == ["data", "classes", "scalar", "text", "seq_idx", "seq_tag"]


@pytest.mark.parametrize("dataset", [PerSeqDataset, StreamDataset])
def test_mainline_form(dataset: type[PerSeqDataset]) -> None:
    seqs = list(ReturnnDatasetIterDataPipe(dataset(LENS), mainline=True))
    known = dataset is PerSeqDataset
    for i, seq in enumerate(seqs):
        assert list(seq)[-5:] == ["seq_idx", "seq_tag", "epoch", "num_seqs", "complete_frac"]
        assert all(isinstance(seq[key], numpy.ndarray) and seq[key].ndim == 0 for key in list(seq)[-5:])
        assert str(seq["seq_tag"]) == _order(1)[i] and seq["seq_idx"] == i and seq["epoch"] == 1
        assert seq["num_seqs"] == (len(LENS) if known else -1)
        assert seq["complete_frac"] == numpy.float32((i + 1) / len(LENS) if known else -1)
        assert seq["complete_frac"].dtype == numpy.float32
    assert len(seqs) == len(LENS)


def test_form_follows_the_config() -> None:
    config = Config({"extern_data": {"data": {"dim": 2}}})
    with process_state_ctx(global_config=config):
        assert "num_seqs" in next(iter(ReturnnDatasetIterDataPipe(PerSeqDataset(LENS))))
    with process_state_ctx(global_config=Config({})):
        assert "num_seqs" not in next(iter(ReturnnDatasetIterDataPipe(PerSeqDataset(LENS))))


def test_callbacks() -> None:
    dataset = PerSeqDataset(LENS)
    source = EpochSource(5)
    pipe = ReturnnDatasetIterDataPipe(dataset, reset_callback=ReturnnDatasetResetMpSharedEpochCallback(dataset, source))
    for source.value in (5, 3):
        assert [seq["seq_tag"] for seq in pipe] == _order(source.value)
    pipe = ReturnnDatasetIterDataPipe(dataset, reset_callback=ReturnnDatasetResetNoOpCallback())
    assert [seq["seq_tag"] for seq in pipe] == _order(3)
    counter = ReturnnDatasetResetDefaultEpochCounterCallback(dataset, epoch0=6)
    pipe = ReturnnDatasetIterDataPipe(dataset, reset_callback=counter)
    assert [seq["seq_tag"] for seq in pipe] == _order(7)


def test_mp_shared_epoch_zero_is_no_epoch() -> None:
    epochs: list[Any] = []

    class _Dataset(PerSeqDataset):
        def init_seq_order(self, epoch: int | None = None, seq_list: Any = None, seq_order: Any = None) -> bool:
            epochs.append(epoch)
            return super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)

    ReturnnDatasetResetMpSharedEpochCallback(_Dataset(LENS), EpochSource(0))()
    assert epochs == [None]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [PerSeqDataset, SelfShardingDataset])
@pytest.mark.parametrize("num_workers", [0, 1, 2])
def test_torch_data_loader(cls: type[PerSeqDataset], num_workers: int) -> None:
    pipe = BatchingIterDataPipe(ReturnnDatasetIterDataPipe(cls(LENS)), batch_size=None, max_seqs=3)
    loader = create_data_loader_from_batches(pipe, {"num_workers": num_workers})
    for epoch in (1, 2):
        tags = [tag for batch in loader for tag in batch["seq_tag"]]
        order = _order(epoch)
        assert sorted(tags) == sorted(order)
        if num_workers == 2:
            assert tags[:6] == [order[i] for i in (0, 2, 4, 1, 3, 5)]
        else:
            assert tags == order


def test_per_epoch_map() -> None:
    pipe = ReturnnDatasetPerEpochMapDataPipe(PerSeqDataset(LENS))
    assert len(pipe) == len(LENS)
    order = _order(1)
    assert [f"seq-{int(pipe[i]['scalar'])}" for i in range(len(pipe))] == order
    pipe.reset()
    assert f"seq-{int(pipe[0]['scalar'])}" == _order(2)[0]
    with pytest.raises(IndexError):
        pipe[len(LENS)]
    loader = torch.utils.data.DataLoader(pipe, batch_size=None)
    assert sum(1 for _ in loader) == len(LENS)


def test_full_map_needs_random_access() -> None:
    with pytest.raises(DatasetError, match="PerSeqDataset has no random access"):
        ReturnnDatasetFullMapDataPipe(PerSeqDataset(LENS))


def test_full_map() -> None:
    data = [{"data": numpy.full((n, 1), n, "float32")} for n in (3, 1, 2)]
    dataset = StaticDataset(data=data, output_dim={"data": (1, 2)}, seq_ordering="reverse")
    pipe = ReturnnDatasetFullMapDataPipe(dataset)
    assert [int(pipe[i]["data"][0, 0]) for i in range(len(pipe))] == [3, 1, 2]
