"""Map-style datasets."""

from __future__ import annotations

from typing import Any

import numpy
import pytest

from returnn.datasets import init_dataset
from returnn.datasets.map import FromListDataset, MapDatasetBase, MapDatasetWrapper
from tests.datasets.test_basic import contents


class Mine(MapDatasetBase):
    """No lengths, own tags."""

    def __init__(self, num: int = 5) -> None:
        super().__init__(data_types={"data": {"dim": 3}, "x": {"sparse": True, "dim": 9, "dtype": "int64"}, "s": {"shape": (None, None, 4)}})  # fmt: skip
        self.num = num

    def __len__(self) -> int:
        return self.num

    def __getitem__(self, seq_idx: int) -> dict[str, numpy.ndarray]:
        return {"data": numpy.full((2, 3), seq_idx, "float32"), "x": numpy.arange(3), "s": numpy.zeros((2, 2, 4))}

    def get_seq_tag(self, seq_idx: int) -> str:
        return f"m{seq_idx}"


class OwnOrder(Mine):
    """Order by the user."""

    def get_seq_order(self, epoch: int | None = None) -> list[int]:
        return [epoch or 0, 0, 0]


class TakesName(Mine):
    """Takes one of the wrapper's options."""

    def __init__(self, name: str, num: int = 2) -> None:
        super().__init__(num)
        self.name = name


class TakesAll(Mine):
    """Takes all of the wrapper's options."""

    def __init__(self, **kwargs: Any) -> None:
        super().__init__(3)
        self.kwargs = kwargs


def test_wrapper() -> None:
    dataset = MapDatasetWrapper(Mine(), seq_ordering="reverse")
    with pytest.raises(NotImplementedError, match=r"'num_seqs' is only known after calling init_seq_order\(\)\."):
        _ = dataset.num_seqs
    assert dataset.get_total_num_seqs() == 5 and dataset.get_all_tags() == [f"m{i}" for i in range(5)]
    assert dataset.num_outputs == {"data": (3, 2), "x": (9, 1), "s": (4, 3)} and dataset.num_inputs == 3
    assert dataset.get_data_keys() == ["data", "x", "s"]
    assert [dataset.get_data_dim(k) for k in ("data", "x", "s", "foo")] == [3, 9, 4, 1]
    assert [dataset.get_data_dtype(k) for k in ("data", "x", "s", "foo")] == ["float32", "int64", "float32", "float32"]
    assert [dataset.is_data_sparse(k) for k in ("data", "x", "s", "foo")] == [False, True, False, False]
    assert [dataset.get_data_shape(k) for k in ("data", "x", "s")] == [[3], [], [None, 4]]
    assert not dataset.supports_seq_order_sorting()
    assert [tag for tag, _ in contents(dataset, 1)] == ["m4", "m3", "m2", "m1", "m0"]
    dataset.init_seq_order(epoch=1, seq_list=["m2", "m0"])
    assert dataset.num_seqs == 2 and dataset.get_tag(0) == "m2" and dataset.get_corpus_seq_idx(1) == 0
    dataset.init_seq_order(epoch=1, seq_order=[3])
    assert dataset.get_tag(0) == "m3" and list(dataset.get_current_seq_order()) == [3]
    assert dataset.get_corpus_seq(1).seq_tag == "m1"
    with pytest.raises(KeyError, match="'foo'"):
        dataset.init_seq_order(epoch=1, seq_list=["foo"])
    with pytest.raises(ValueError, match="needs the sequence lengths"):
        MapDatasetWrapper(Mine(), seq_ordering="sorted").init_seq_order(epoch=1)


def test_own_order_comes_first() -> None:
    dataset = MapDatasetWrapper(OwnOrder(), seq_ordering="random", partition_epoch=2)
    assert [tag for tag, _ in contents(dataset, 3)] == ["m3", "m0", "m0"]


def test_class_or_function_as_map_dataset() -> None:
    assert init_dataset({"class": "MapDatasetWrapper", "map_dataset": Mine}).get_total_num_seqs() == 5
    assert MapDatasetWrapper(lambda: Mine(7), name="x").get_total_num_seqs() == 7
    dataset = MapDatasetWrapper(TakesName, name="train", seq_ordering="reverse")
    assert isinstance(dataset.map_dataset, TakesName) and dataset.map_dataset.name == "train"
    dataset = MapDatasetWrapper(TakesAll, name="train", seq_ordering="reverse")
    assert isinstance(dataset.map_dataset, TakesAll)
    assert dataset.map_dataset.kwargs == {"name": "train", "seq_ordering": "reverse"}
    for bad in (3, lambda: 3, None):
        with pytest.raises(AssertionError, match="map_dataset"):
            MapDatasetWrapper(bad)  # type: ignore[arg-type]


def test_shape_must_begin_with_time() -> None:
    dataset = MapDatasetWrapper(FromListDataset([{"data": numpy.zeros(3)}], data_types={"data": {"shape": (3,)}}))
    with pytest.raises(AssertionError, match="must begin with None"):
        dataset.get_data_shape("data")


def test_from_list() -> None:
    data = [{"data": numpy.zeros((n, 2)), "y": numpy.arange(n)} for n in (3, 1, 2)]
    dataset = MapDatasetWrapper(FromListDataset(data, sort_data_key="y"), seq_ordering="sorted")
    assert dataset.supports_seq_order_sorting()
    assert [tag for tag, _ in contents(dataset, 1)] == ["seq-1", "seq-2", "seq-0"]
    assert dataset.get_data_keys() == ["data", "y"] and dataset.num_outputs is None
    assert dataset.get_estimated_seq_length(0) == 1
    with pytest.raises(
        AssertionError, match="Specify which data key should be used for sequence sorting via 'sort_data_key'."
    ):
        MapDatasetWrapper(FromListDataset(data), seq_ordering="sorted").init_seq_order(epoch=1)
    assert len(contents(MapDatasetWrapper(FromListDataset(data), seq_ordering="random"), 1)) == 3


def test_base_is_abstract() -> None:
    base = MapDatasetBase()
    for call in (base.__len__, lambda: base[0], lambda: base.get_seq_len(0), base.get_seq_order):
        with pytest.raises(NotImplementedError):
            call()
    assert base.get_seq_tag(3) == "seq-3"
