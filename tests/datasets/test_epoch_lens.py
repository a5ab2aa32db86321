"""Lengths in the order of an epoch, without arrays of all of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets import init_dataset
from returnn.datasets._basic.epoch_lens import EpochLens, epoch_lens_of
from returnn.datasets._basic.epoch_order import checked_order, same_order, select_order
from returnn.datasets.generating import StaticDataset
from returnn.datasets.hdf import HDFDataset, HDFDatasetWriter
from returnn.datasets.meta import MetaDataset
from returnn.datasets.seq_order import SeqOrder
from returnn.errors import DatasetError

ranges = st.builds(range, st.integers(0, 5), st.integers(6, 20), st.integers(1, 3)) | st.builds(
    lambda num: range(num - 1, -1, -1), st.integers(0, 20)
)


@given(order=ranges, data=st.data())
def test_range_and_array_are_the_same_order(order: range, data: st.DataObject) -> None:
    """Selection by positions and by slices, comparison."""
    array = numpy.array(order, dtype=numpy.int64)
    idxs = data.draw(st.lists(st.integers(0, max(len(order) - 1, 0)), max_size=5 if order else 0))
    positions = numpy.array(idxs, dtype=numpy.int64)
    part = slice(data.draw(st.integers(0, 25)), data.draw(st.integers(0, 25)), data.draw(st.integers(1, 4)))
    for idx in (positions, part):
        for kind in (order, array):
            selected = select_order(kind, idx)
            assert selected.dtype == numpy.int64
            numpy.testing.assert_array_equal(selected, array[idx])
    assert same_order(order, array) and same_order(array, order) and same_order(order, range(*_args(order)))
    assert not same_order(order, numpy.append(array, 0))
    if len(array) > 1:
        assert not same_order(order, array[::-1]) and not same_order(order, order[::-1])


def _args(order: range) -> tuple[int, int, int]:
    return order.start, order.stop, order.step


def test_position_behind_a_range() -> None:
    """An error as for arrays."""
    for positions in ([3], [-1]):
        with pytest.raises(IndexError, match="the epoch has 3 sequences"):
            select_order(range(3), numpy.array(positions))


def test_order_with_an_index_outside() -> None:
    """The sentence says what fits."""
    numpy.testing.assert_array_equal(checked_order([2, 0], 3, where="here"), [2, 0])
    for order in ([0, 3], [-1]):
        with pytest.raises(DatasetError, match="(?s)outside of the corpus.*here.*0 <= index < 3"):
            checked_order(order, 3, where="here")


@given(
    lens=st.lists(st.integers(0, 2**31 - 1), max_size=20),
    order=st.none() | st.just("range") | st.permutations(range(7)),
)
def test_parts_are_int64(lens: list[int], order: list[int] | Literal["range"] | None) -> None:
    """Positions and slices give what the whole array gives, in 64 bits, whatever the file has."""
    stored = numpy.array(lens, dtype=numpy.int32)
    corpus_order: SeqOrder | None = None
    if order == "range":
        corpus_order = range(len(lens))
    elif order is not None and order != "range":
        corpus_order = numpy.array([i for i in order if i < len(lens)], dtype=numpy.int64)
    expected = numpy.array(lens, dtype=numpy.int64)
    if corpus_order is not None:
        expected = expected[numpy.array(corpus_order, dtype=numpy.int64)]
    view = EpochLens(stored, corpus_order)
    assert len(view) == len(expected)
    for idx in (slice(None), slice(1, 9, 3), numpy.arange(len(expected))[::-2]):
        assert view[idx].dtype == numpy.int64
        numpy.testing.assert_array_equal(view[idx], expected[idx])
    view[:][:] = 7
    numpy.testing.assert_array_equal(stored, lens)


class _DoubledLens(HDFDataset):
    """A class of a user who knows nothing of epoch_lens."""

    def get_epoch_seq_lens(self, key: str) -> numpy.ndarray | None:
        lens = super().get_epoch_seq_lens(key)
        return None if lens is None else lens * 2


@pytest.mark.parametrize("ordering", ["default", "reverse", "random", "sorted"])
def test_classes_with_and_without_a_view(tmp_path: Path, ordering: str) -> None:
    """HDF, Meta, a wrapper, a class that only has the array, a class that overrides it."""
    path = str(tmp_path / "data.hdf")
    seqs = [
        {"data": numpy.full((3 + i % 5, 2), i, "float32"), "classes": numpy.zeros(i % 3, "int32")} for i in range(20)
    ]
    static = StaticDataset(data=seqs, output_dim={"data": (2, 2), "classes": (5, 1)}, seq_ordering=ordering)
    with HDFDatasetWriter(path) as writer:
        writer.dump_from_dataset(StaticDataset(data=seqs, output_dim={"data": (2, 2), "classes": (5, 1)}))
    hdf = {"class": "HDFDataset", "files": [path], "seq_ordering": ordering}
    meta = {
        "class": "MetaDataset",
        "datasets": {"a": hdf},
        "data_map": {"data": ("a", "data"), "classes": ("a", "classes")},
        "seq_order_control_dataset": "a",
    }
    wrapper = {"class": "MultiEpochDataset", "dataset": hdf, "multi_epoch": 2}
    for dataset in (static, init_dataset(hdf), init_dataset(meta), init_dataset(wrapper), _DoubledLens([path])):
        dataset.init_seq_order(epoch=1)
        for key in ("data", "classes"):
            view = epoch_lens_of(dataset, key)
            assert view is not None
            numpy.testing.assert_array_equal(view[:], dataset.get_epoch_seq_lens(key))
        assert epoch_lens_of(dataset, "other") is None
    assert epoch_lens_of(_order(_DoubledLens([path])), "data")[:4].tolist() == [6, 8, 10, 12]  # type: ignore[index]


def _order(dataset: HDFDataset) -> HDFDataset:
    dataset.init_seq_order(epoch=1)
    return dataset


def test_order_of_an_hdf_dataset_is_an_array_for_others(tmp_path: Path) -> None:
    """The order in the file is held as a range, which nobody else sees; the same array each time."""
    path = str(tmp_path / "data.hdf")
    seqs = [{"data": numpy.zeros((i, 1), "float32")} for i in range(6)]
    with HDFDatasetWriter(path) as writer:
        writer.dump_from_dataset(StaticDataset(data=seqs, output_dim={"data": (1, 2)}))
    dataset = HDFDataset([path])
    dataset.initialize()
    assert not dataset.init_seq_order(epoch=1)
    order = dataset.get_current_seq_order()
    assert isinstance(order, numpy.ndarray) and order.dtype == numpy.int64 and order.tolist() == list(range(6))
    assert dataset.get_current_seq_order() is order
    assert not dataset.init_seq_order(epoch=1), "the same order"
    assert dataset.init_seq_order(epoch=1, seq_order=[5, 0])
    assert [dataset.get_seq_length(i)["data"] for i in range(2)] == [5, 0]


class _OwnOrder(HDFDataset):
    """A class of a user, written for the interface of the peers: get_seq_len is a function."""

    # Any: a function in the peers, here an array that can be called, too
    def get_seq_order_for_epoch(self, epoch: int | None, num_seqs: int, get_seq_len: Any = None) -> list[int]:
        order = sorted(range(num_seqs), key=get_seq_len)
        assert order == list(numpy.argsort(get_seq_len, kind="stable"))
        assert order == list(super().get_seq_order_for_epoch(epoch, num_seqs, get_seq_len))
        assert order == list(super().get_seq_order_for_epoch(epoch, num_seqs, lambda i: get_seq_len(i)))
        return order[::-1]


class _OwnStaticOrder(StaticDataset):
    """The same for data in memory."""

    # Any: as above
    def get_seq_order_for_epoch(self, epoch: int | None, num_seqs: int, get_seq_len: Any = None) -> list[int]:
        return sorted(range(num_seqs), key=lambda i: -get_seq_len(i))


def test_lengths_for_an_own_order_can_be_called(tmp_path: Path) -> None:
    """And are still an array, as our documentation says."""
    path = str(tmp_path / "data.hdf")
    seqs = [{"data": numpy.zeros((length, 1), "float32")} for length in (3, 1, 4, 0, 5)]
    with HDFDatasetWriter(path) as writer:
        writer.dump_from_dataset(StaticDataset(data=seqs, output_dim={"data": (1, 2)}))
    for dataset in (
        _OwnOrder([path], seq_ordering="sorted"),
        _OwnStaticOrder(data=seqs, output_dim={"data": (1, 2)}),
    ):
        dataset.init_seq_order(epoch=1)
        order = numpy.asarray(dataset.get_current_seq_order())
        assert order.tolist() == [4, 2, 0, 1, 3] and type(order) is numpy.ndarray
        assert dataset.get_epoch_seq_lens("data").tolist() == [5, 4, 3, 1, 0]  # type: ignore[union-attr]


class _OwnMetaOrder(MetaDataset):
    """The same for several datasets."""

    # Any: as above
    def get_seq_order_for_epoch(self, epoch: int | None, num_seqs: int, get_seq_len: Any = None) -> list[int]:
        return sorted(range(num_seqs), key=lambda i: -get_seq_len(i))


@pytest.mark.parametrize("ordering", ["default", "sorted"])
def test_lengths_for_an_own_order_of_meta_datasets_can_be_called(ordering: str) -> None:
    """Also where the ordering of the options would need none."""
    seqs = [{"data": numpy.zeros((length, 1), "float32")} for length in (3, 1, 4, 0, 5)]
    child = {"class": "StaticDataset", "data": seqs, "output_dim": {"data": (1, 2)}}
    dataset = _OwnMetaOrder(datasets={"a": child}, data_map={"data": ("a", "data")}, seq_ordering=ordering)
    dataset.init_seq_order(epoch=1)
    assert dataset.get_current_seq_order().tolist() == [4, 2, 0, 1, 3]
