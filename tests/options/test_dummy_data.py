"""Random datasets in place of those of the config."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.datasets import init_dataset
from returnn.errors import ConfigError, OptionError
from returnn.options.data import DataOptions
from returnn.options.dummy_data import DummyDataOptions

EXTERN_DATA = {"data": {"dim": 5}, "classes": {"dim": 7, "sparse": True, "available_for_inference": False}}
A: dict[str, Any] = {"class": "A"}


def test_unset() -> None:
    assert DummyDataOptions.from_config({}) is None
    assert DummyDataOptions.from_config({"use_dummy_datasets": False, "dummy_dataset_num_seqs": 3}) is None


@pytest.mark.parametrize(
    "given, train, other",
    [
        ({}, 1000, 100),
        ({"train_dummy_dataset_num_seqs": 60}, 60, 3),
        ({"train_dummy_dataset_num_seqs": 3}, 3, 1),
        ({"dummy_dataset_num_seqs": 8}, 1000, 8),
        ({"train_dummy_dataset_num_seqs": 60, "dummy_dataset_num_seqs": 8}, 60, 8),
    ],
)
def test_number_of_sequences(given: dict[str, Any], train: int, other: int) -> None:
    options = DummyDataOptions.from_config({"use_dummy_datasets": True, "extern_data": EXTERN_DATA, **given})
    assert options is not None and (options.num_train_seqs, options.num_other_seqs) == (train, other)


def test_all_datasets_of_the_config() -> None:
    config = {"use_dummy_datasets": True, "extern_data": EXTERN_DATA, "train": A, "eval_datasets": {"x": A}}
    options = DataOptions.from_config({**config, "forward_data": A})
    assert options.train is not None and options.forward is not None and set(options.eval_datasets) == {"x"}
    dataset = init_dataset(options.train)
    assert set(dataset.get_data_keys()) == {"data", "classes"} and dataset.get_data_shape("data") == [5]
    assert dataset.is_data_sparse("classes") and dataset.get_target_list() == ["classes"]
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 2)
    assert dataset.get_data(0, "data").shape[1:] == (5,) and dataset.get_data(1, "classes").max() < 7
    forward = DataOptions.from_config({**config, "forward_data": "train"}).forward
    assert forward is not None and forward["num_seqs"] == options.train["num_seqs"] == 1000
    assert options.forward["num_seqs"] == 100


def test_mistakes() -> None:
    with pytest.raises(ConfigError, match='"use_dummy_datasets" needs extern_data'):
        DummyDataOptions.from_config({"use_dummy_datasets": True})
    with pytest.raises(OptionError, match="train_dummy_dataset_num_seqs"):
        DummyDataOptions.from_config({"train_dummy_dataset_num_seqs": 0})
