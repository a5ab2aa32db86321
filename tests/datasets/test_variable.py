"""VariableDataset."""

from __future__ import annotations

import functools
import json
import pickle
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.meta import VariableDataset
from returnn.errors import ConfigError, DatasetError
from returnn.util.markers import OptionalNotImplementedError
from tests.datasets.combining import check_bulk, check_same_batches, tags_of
from tests.datasets.combining_data import GOLDEN, a_or_b, hdf
from tests.datasets.everyday_use import check_everyday_use, read_epoch

GOLDEN_ORDERS = json.loads((GOLDEN / "main_wrappers.json").read_text())["variable"]


def variable(**opts: Any) -> dict[str, Any]:
    """:return: options"""
    return {"class": "VariableDataset", "get_dataset": a_or_b, **opts}


@pytest.mark.parametrize("pickled", [False, True])
def test_golden(pickled: bool) -> None:
    dataset = init_dataset(variable())
    for epoch, expected in GOLDEN_ORDERS.items():
        if pickled:
            dataset = pickle.loads(pickle.dumps(dataset))
        seqs = read_epoch(dataset, int(epoch))
        assert [tag for tag, _ in seqs] == expected
        assert dataset.num_seqs == len(expected)
        check_bulk(dataset, seqs)


@pytest.mark.parametrize(("size", "num_made"), [(1, 4), (2, 2)])
def test_cache(size: int, num_made: int) -> None:
    dataset = init_dataset(variable(dataset_lru_cache_size=size))
    assert isinstance(dataset, VariableDataset)
    made = {id(dataset.dataset): dataset.dataset}
    for epoch in (1, 2, 3, 4):
        dataset.init_seq_order(epoch=epoch)
        made[id(dataset.dataset)] = dataset.dataset
        assert len(list(dataset.child_datasets())) <= size
    assert len(made) == num_made


def test_equal_options_use_the_dataset_again() -> None:
    options = [{"class": "StaticDataset", "data": [{"data": np.zeros((2, 1), "float32")}]} for _ in range(3)]
    dataset = init_dataset(variable(get_dataset=lambda *, self, epoch, **_kwargs: options[epoch - 1]))
    first = dataset.dataset  # type: ignore[attr-defined]
    dataset.init_seq_order(epoch=2)
    assert dataset.dataset is first  # type: ignore[attr-defined]
    options[2]["data"] = [{"data": np.ones((2, 1), "float32")}]
    dataset.init_seq_order(epoch=3)
    assert dataset.dataset is not first  # type: ignore[attr-defined]


def test_random_draws_and_seeds_of_new_children() -> None:
    dataset = init_dataset(variable(random_seed_offset=4))
    dataset.set_random_per_seq(True)
    dataset.init_seq_order(epoch=1)
    child = dataset.dataset  # type: ignore[attr-defined]
    assert child._random_per_seq and child.random_seed_offset == 4 and not child._is_top_level
    dataset.init_seq_order(epoch=2)
    assert dataset.dataset._random_per_seq  # type: ignore[attr-defined]


def test_no_epoch() -> None:
    dataset = init_dataset(variable())
    dataset.init_seq_order(epoch=None)
    assert dataset.num_seqs == 0 and not dataset.is_less_than_num_seqs(0)
    with pytest.raises(ValueError, match="needs the epoch"):
        dataset.init_seq_order(epoch=None, seq_order=[0])
    dataset.init_seq_order(epoch=2, seq_order=[3, 1])
    assert [dataset.get_tag(i) for i in range(2)] == ["b-3", "b-1"]


def test_tags_only_if_they_are_always_the_same() -> None:
    with pytest.raises(OptionalNotImplementedError, match="always_same_tags"):
        init_dataset(variable()).get_all_tags()
    dataset = init_dataset(variable(always_same_tags=True))
    assert dataset.get_all_tags() == [f"a-{i}" for i in range(7)]


def _by_epoch(made: dict[int, Any], *, self: Dataset, epoch: int, **_kwargs: Any) -> Any:
    return made[epoch]


def test_mistakes(capsys: pytest.CaptureFixture[str]) -> None:
    for opts, words in [
        ({"get_dataset": 3}, "get_dataset.*function"),
        ({"dataset_lru_cache_size": 0}, "dataset_lru_cache_size.*int >= 1"),
    ]:
        with pytest.raises(ConfigError, match=words):
            init_dataset(variable(**opts))
    with pytest.raises(DatasetError, match="returned something wrong for epoch 1.*dict with a class"):
        init_dataset(variable(get_dataset=functools.partial(_by_epoch, {1: None})))
    dataset = init_dataset(variable(get_dataset=functools.partial(_by_epoch, {1: hdf("c_a"), 2: hdf("c_c")})))
    with pytest.raises(DatasetError, match="epoch 2 has other streams than that of epoch 1.*2, 2.*7, 1"):
        dataset.init_seq_order(epoch=2)
    with pytest.raises(DatasetError, match="Call init_seq_order"):
        init_dataset(variable()).load_seqs(0, 1)
    capsys.readouterr()
    init_dataset(variable(partition_epoch=2))
    assert "no effect of partition_epoch" in capsys.readouterr().out


def test_shards_are_those_of_the_child() -> None:
    parts = [tags_of(variable(_num_shards=2, _shard_index=i), 1) for i in range(2)]
    assert parts[0] + parts[1] == GOLDEN_ORDERS["1"]


def test_batches_do_not_depend_on_how_data_is_read() -> None:
    check_same_batches(variable())


@pytest.mark.slow
def test_everyday_use() -> None:
    check_everyday_use(variable())
