"""AnythingDataset."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from returnn.datasets.basic import init_dataset
from returnn.errors import ConfigError
from tests.datasets.combining import check_bulk, check_same_batches
from tests.datasets.combining_data import hdf
from tests.datasets.everyday_use import check_everyday_use, read_epoch

KEYS: dict[str, Any] = {
    "audio": {"dim": 80, "shape": (None, 80), "dtype": "float32"},
    "labels": {"dim": 10, "shape": (None,), "dtype": "int32", "sparse": True},
    "fixed": {"dim": 3, "shape": (5, None, 3), "dtype": "float64", "sparse": False},
    "scalar": {"shape": (), "dtype": "int64"},
}
SHAPES = {"audio": (1, 80), "labels": (1,), "fixed": (5, 1, 3), "scalar": ()}


def anything(**opts: Any) -> dict[str, Any]:
    """:return: options"""
    return {"class": "AnythingDataset", "data_keys": KEYS, **opts}


def filled(**opts: Any) -> dict[str, Any]:
    """:return: options of a MetaDataset with a filler"""
    return {
        "class": "MetaDataset",
        "datasets": {"a": hdf("c_a", seq_ordering="random"), "filler": anything()},
        "data_map": {"data": ("a", "data"), "labels": ("filler", "labels"), "audio": ("filler", "audio")},
        "seq_order_control_dataset": "a",
        **opts,
    }


def test_is_without_end() -> None:
    dataset = init_dataset(anything())
    dataset.init_seq_order(epoch=1)
    assert dataset.is_less_than_num_seqs(10**9)
    with pytest.raises(NotImplementedError, match="no end"):
        _ = dataset.num_seqs
    with pytest.raises(NotImplementedError, match="no end"):
        dataset.get_total_num_seqs()
    dataset.load_seqs(1000, 1001)
    assert dataset.get_tag(1000) == "seq-1000"
    assert {key: dataset.get_data(1000, key).shape for key in KEYS} == SHAPES
    assert dataset.get_seq_length(1000)["audio"] == 1


def test_description() -> None:
    dataset = pickle.loads(pickle.dumps(init_dataset(anything())))
    assert dataset.num_inputs == 80 and dataset.get_data_keys() == list(KEYS)
    assert dataset.get_target_list() == ["labels", "fixed", "scalar"]
    for key, opts in KEYS.items():
        assert dataset.get_data_dtype(key) == opts["dtype"]
        assert dataset.is_data_sparse(key) == (key == "labels")
        assert dataset.get_data_dim(key) == opts.get("dim", 1)
    assert dataset.get_data_shape("fixed") == [None, 3] and dataset.get_data_shape("labels") == []


def test_given_order() -> None:
    dataset = init_dataset(anything())
    dataset.init_seq_order(epoch=1, seq_order=[4, 2])
    assert dataset.num_seqs == 2 and dataset.get_seq_tags([1, 0]) == ["seq-2", "seq-4"]
    dataset.init_seq_order(epoch=1, seq_list=["x", "y", "z"])
    assert not dataset.is_less_than_num_seqs(3)
    seqs = []
    for i in range(3):
        dataset.load_seqs(i, i + 1)
        seqs.append((dataset.get_tag(i), {key: dataset.get_data(i, key) for key in KEYS}))
    assert [tag for tag, _ in seqs] == ["x", "y", "z"]
    check_bulk(dataset, seqs)


def test_fills_up_a_meta_dataset() -> None:
    dataset = init_dataset(filled())
    seqs = read_epoch(dataset, 1)
    assert len(seqs) == 7
    for _, data in seqs:
        assert data["labels"].tolist() == [0] and data["labels"].dtype == np.int32 and data["audio"].shape == (1, 80)
    check_bulk(dataset, seqs)


@pytest.mark.parametrize(
    ("keys", "words"),
    [
        ({}, ["data_keys", "nonempty"]),
        ({"x": 3}, ["stream 'x'", "dict"]),
        ({"x": {"dims": 3}}, ["'x'", "unknown ['dims']"]),
        ({"x": {"shape": 3}}, ["'x'", "wrong shape"]),
        ({"x": {"dtype": "float31"}}, ["'x'", "wrong dtype", "float31"]),
    ],
)
def test_option_errors(keys: Any, words: list[str]) -> None:
    with pytest.raises(ConfigError) as info:
        init_dataset(anything(data_keys=keys))
    for word in words:
        assert word in str(info.value)


def test_batches_do_not_depend_on_how_data_is_read() -> None:
    check_same_batches(filled())


@pytest.mark.slow
def test_everyday_use() -> None:
    check_everyday_use(filled())
