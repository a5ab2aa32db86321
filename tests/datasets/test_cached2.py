"""CachedDataset2 and SingleStreamPipeDataset: the moving window, unknown number of sequences, empty epochs."""

from __future__ import annotations

import threading
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2, SingleStreamPipeDataset
from returnn.datasets.generating import StaticDataset
from returnn.errors import DatasetError, UnknownDataKeyError


class Counted(CachedDataset2):
    """Sequence i has i + 1 frames."""

    def __init__(self, num: int, *, known: bool, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num, self.known = num, known
        self.num_outputs = {"data": (2, 2)}
        self.collected: list[int] = []

    def init_seq_order(self, epoch: int | None = None, seq_list: Any = None, seq_order: Any = None) -> bool:
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.collected = []
        if self.known:
            self._num_seqs = self.num
        return True

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        self.collected.append(seq_idx)
        if seq_idx >= self.num:
            return None
        return DatasetSeq(
            seq_idx, numpy.zeros((seq_idx + 1, 2), "float32"), complete_frac=0.5 if seq_idx == 1 else None
        )


def buffered(dataset: CachedDataset2) -> list[int]:
    return [seq.seq_idx for seq in dataset.added_data]


def test_trace_of_the_contract() -> None:
    dataset = Counted(5, known=True, name="train")
    assert dataset.num_seqs == 0
    dataset.init_seq_order(epoch=1)
    assert dataset.get_seq_length(3)["data"] == 4
    assert buffered(dataset) == [0, 1, 2, 3]
    dataset.load_seqs(2, 4)
    assert buffered(dataset) == [2, 3]
    with pytest.raises(DatasetError, match=r"'train' epoch=1.*sequence 1 is not loaded \(loaded: 2\.\.3\)"):
        dataset.get_data(1, "data")
    with pytest.raises(AssertionError, match="start must not decrease"):
        dataset.load_seqs(1, 2)
    with pytest.raises(AssertionError, match="dropped already"):
        dataset.get_seq_length(1)
    assert [dataset.is_less_than_num_seqs(i) for i in range(7)] == [True] * 5 + [False] * 2
    with pytest.raises(UnknownDataKeyError, match="^<.*no data key 'foo', only"):
        dataset.get_data(2, "foo")
    assert dataset.collected == [0, 1, 2, 3]


def test_unknown_count() -> None:
    dataset = Counted(3, known=False)
    for _ in range(2):
        dataset.init_seq_order(epoch=1)
        with pytest.raises(NotImplementedError):
            _ = dataset.num_seqs
        idx = 0
        while dataset.is_less_than_num_seqs(idx):
            dataset.load_seqs(idx, idx + 1)
            assert len(dataset.get_data(idx, "data")) == idx + 1
            idx += 1
        assert dataset.collected == [0, 1, 2, 3]
        assert dataset.num_seqs == 3 and dataset.reached_final_seq
        assert dataset.get_num_timesteps()["data"] == 6  # type: ignore[index]


def test_skipped_seqs_are_never_collected() -> None:
    dataset = Counted(10, known=True)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 2)
    dataset.load_seqs(5, 7)
    dataset.load_seqs(6, 8)
    assert dataset.collected == [0, 1, 5, 6, 7] and buffered(dataset) == [6, 7]
    dataset.added_data = [DatasetSeq(i, numpy.zeros((1, 2))) for i in (6, 8, 11)]
    assert [dataset._get_seq(i) is not None for i in range(5, 13)] == [i in (6, 8, 11) for i in range(5, 13)]


def test_epoch_none_acts_as_epoch_1() -> None:
    dataset = Counted(2, known=True)
    dataset.init_seq_order()
    assert dataset.epoch == 1


@pytest.mark.parametrize("known", [True, False])
def test_empty_epoch(known: bool) -> None:
    dataset = Counted(0, known=known)
    assert dataset.get_data_keys() == ["data"]
    dataset.init_seq_order(epoch=1)
    assert not dataset.is_less_than_num_seqs(0)
    assert dataset.num_seqs == 0
    assert dataset.get_data_keys() == ["data"] and dataset.get_target_list() == []
    assert (dataset.get_data_dim("data"), dataset.get_data_dtype("data")) == (2, "float32")
    assert dataset.is_data_sparse("data") is False


def test_more_parts_than_seqs() -> None:
    dataset = StaticDataset([{"data": numpy.zeros((1, 2))}] * 2, partition_epoch=3)
    nums = []
    for epoch in range(1, 7):
        dataset.init_seq_order(epoch=epoch)
        nums.append(sum(1 for i in range(5) if dataset.is_less_than_num_seqs(i)))
        assert dataset.get_data_keys() == ["data"]
    assert nums == [1, 1, 0, 1, 1, 0]


def test_complete_frac_of_the_sequence() -> None:
    dataset = Counted(4, known=True)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 2)
    assert [dataset.get_complete_frac(i) for i in range(4)] == [0.25, 0.5, 0.75, 1.0]
    dataset.added_data[1].complete_frac = 0.125
    assert dataset.get_complete_frac(1) == 0.125


def test_dim_is_checked_against_the_data() -> None:
    dataset = Counted(4, known=True)
    dataset.num_outputs = {"data": (3, 2)}
    dataset.init_seq_order(epoch=1)
    assert dataset.get_data_dim("data") == 3
    dataset.load_seqs(0, 1)
    with pytest.raises(AssertionError, match=r"shape \(1, 2\), but num_outputs says feature dim 3"):
        dataset.get_data_dim("data")
    dataset.num_outputs = {}
    assert dataset.get_data_dim("data") == 2


def test_single_stream_pipe() -> None:
    dataset = SingleStreamPipeDataset(dim=2, ndim=2)
    assert dataset.num_outputs == {"data": [2, 2]} and not dataset.supports_sharding()
    with pytest.raises(AssertionError):
        dataset.init_seq_order(epoch=1, seq_list=["a"])
    for _ in range(2):
        dataset.init_seq_order(epoch=1)

        def produce() -> None:
            for i in range(3):
                dataset.producer_add_data(numpy.full((i + 1, 2), i, "float32"), seq_tag="x" if i == 1 else None)
            dataset.producer_set_finished()

        thread = threading.Thread(target=produce)
        thread.start()
        tags = []
        idx = 0
        while dataset.is_less_than_num_seqs(idx):
            dataset.load_seqs(idx, idx + 1)
            assert (dataset.get_data(idx, "data") == idx).all()
            tags.append(dataset.get_tag(idx))
            idx += 1
        thread.join()
        assert tags == ["seq-0", "x", "seq-2"] and dataset.num_seqs == 3
    assert (dataset.get_data_keys(), dataset.get_data_dtype("data"), dataset.is_data_sparse("data")) == (
        ["data"],
        "float32",
        False,
    )
