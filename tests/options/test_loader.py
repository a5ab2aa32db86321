"""Options of the data loader."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.errors import ConfigError, OptionError
from returnn.options.loader import LoaderOptions


def test_defaults() -> None:
    options = LoaderOptions.from_config({})
    assert options.num_workers == 1 and options.worker_batching == "sharded" and options.persistent


@pytest.mark.parametrize(
    "config",
    [
        {"num_workers_per_gpu": 2},
        {"num_workers_for_gpu": 2},
        {"torch_dataloader_opts": {"num_workers": 2}},
        {"torch_dataloader_opts": {"num_workers": 2}, "num_workers_per_gpu": 2},
    ],
)
def test_num_workers_names(config: dict[str, Any]) -> None:
    assert LoaderOptions.from_config(config).num_workers == 2


@pytest.mark.parametrize(
    "config",
    [
        {"num_workers_per_gpu": 2, "num_workers_for_gpu": 1},
        {"num_workers_per_gpu": 2, "torch_dataloader_opts": {"num_workers": 1}},
    ],
)
def test_contradiction(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="two names of the same thing"):
        LoaderOptions.from_config(config)


def test_dataloader_opts() -> None:
    opts = {
        "prefetch_factor": 5,
        "persistent_workers": False,
        "pin_memory": True,
        "multiprocessing_context": "spawn_non_daemonic",
        "timeout": 3,
    }
    options = LoaderOptions.from_config({"torch_dataloader_opts": opts})
    assert options == LoaderOptions(
        prefetch_blocks=5,
        persistent=False,
        pin_memory=True,
        start_method="spawn",
        unused_keys=("timeout",),
        small_sets_in_process=True,
    )
    assert LoaderOptions.from_config({"torch_dataloader_opts": {"multiprocessing_context": "fork"}}).unused_keys == (
        "multiprocessing_context",
    )


def test_keys_without_effect_and_their_reasons() -> None:
    opts = {"drop_last": True, "timeout": 3, "multiprocessing_context": "fork"}
    text = LoaderOptions.from_config({"torch_dataloader_opts": opts}).unused_text
    assert "drop_last (the option for this is batch_drop_last)" in text
    assert "timeout (a worker that died" in text and "multiprocessing_context (workers are started by" in text
    with pytest.raises(OptionError, match="Did you mean 'num_workers'"):
        LoaderOptions.from_config({"torch_dataloader_opts": {"num_worker": 3}})


def test_worker_init_fn() -> None:
    assert LoaderOptions.from_config({"torch_dataloader_opts": {"worker_init_fn": print}}).worker_init_fn is print
    with pytest.raises(OptionError, match="worker_init_fn"):
        LoaderOptions.from_config({"torch_dataloader_opts": {"worker_init_fn": 3}})


@pytest.mark.parametrize(
    "config",
    [
        {"num_workers_per_gpu": -1},
        {"num_workers_per_gpu": "2"},
        {"num_workers_per_gpu": True},
        {"worker_batching": "both"},
        {"torch_dataloader_opts": [1]},
        {"torch_dataloader_opts": {"prefetch_factor": -1}},
    ],
)
def test_invalid(config: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="is invalid"):
        LoaderOptions.from_config(config)
