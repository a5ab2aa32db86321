"""The option torch_distributed."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.errors import OptionError
from returnn.options.datasets import default_random_seed_offset
from returnn.options.distributed import DistributedOptions, data_shard


def _read(value: Any, **more: Any) -> DistributedOptions:
    return DistributedOptions.from_config(Config({"torch_distributed": value, **more}))


def test_defaults() -> None:
    for value in (None, False):
        assert _read(value) == DistributedOptions()
    options = _read({})
    assert options == DistributedOptions(is_set=True)
    assert (options.reduce_type, options.uneven, options.loss_normalization) == ("grad", "join", "global")
    assert (options.timeout_sec, options.startup_timeout_sec, options.data) == (1800, 600, "sharded")
    assert _read({"timeout_sec": 60}).startup_timeout_sec == 60


def test_mainline() -> None:
    assert _read({}, extern_data={}).loss_normalization == "per_rank"
    assert _read({"loss_normalization": "global"}, extern_data={}).loss_normalization == "global"


def test_all_keys() -> None:
    options = _read(
        {
            "reduce_type": "param",
            "param_sync_step": 100,
            "sync_on_cpu": True,
            "backend": "cpu:gloo,cuda:nccl",
            "timeout_sec": 5.5,
            "startup_timeout_sec": 7,
            "uneven": "stop",
            "data": "peers",
        }
    )
    assert (options.reduce_type, options.param_sync_step, options.sync_on_cpu) == ("param", 100, True)
    assert (options.timeout_sec, options.startup_timeout_sec, options.uneven, options.data) == (5.5, 7, "stop", "peers")
    assert options.loss_normalization == "per_rank"


def test_wrapper() -> None:
    options = _read({"class": "DistributedDataParallel", "options": {"bucket_cap_mb": 5}})
    assert (options.wrapper, options.wrapper_options) == ("DistributedDataParallel", {"bucket_cap_mb": 5})
    assert _read({"class": torch.nn.Sequential}).wrapper is torch.nn.Sequential
    assert not options.is_fsdp
    fsdp = _read({"class": "FSDP", "shard_modules": ["Block"]})
    assert fsdp.is_fsdp and fsdp.wrapper is None and fsdp.fsdp is not None
    assert fsdp.fsdp.shard_modules == ("Block",)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (1, "expected a dict; {} enables it"),
        ("grad", "expected a dict"),
        ({"reduce_typ": "grad"}, 'Did you mean "reduce_type"'),
        ({"something": 1}, "only the keys backend,"),
        ({"reduce_type": "grads"}, '"reduce_type" to be "grad" or "grad_explicit" or "param"'),
        ({"reduce_type": "param"}, '"param_sync_step" to be an int >= 1'),
        ({"reduce_type": "param", "param_sync_step": 0}, '"param_sync_step" to be an int >= 1'),
        ({"param_sync_step": 3}, 'no "param_sync_step" and "sync_on_cpu"'),
        ({"sync_on_cpu": True}, 'no "param_sync_step" and "sync_on_cpu"'),
        ({"reduce_type": "param", "param_sync_step": 3, "sync_on_cpu": "yes"}, "True or False"),
        ({"reduce_type": "param", "param_sync_step": 3, "loss_normalization": "global"}, "each rank updates by itself"),
        ({"timeout_sec": 0}, "seconds > 0"),
        ({"timeout_sec": True}, "seconds > 0"),
        ({"uneven": "drop"}, '"join" or "stop"'),
        ({"data": "shard"}, 'Did you mean "sharded"'),
        ({"backend": 3}, '"backend" to be a str'),
        ({"class": 3}, '"class" to be "fsdp", a class'),
        ({"options": 3}, '"options" to be a dict'),
        (
            {"reduce_type": "grad_explicit", "options": {"a": 1}},
            'no "class" and "options" with reduce_type "grad_explicit"',
        ),
        ({"class": "fsdp", "options": {"a": 1}}, "Its own keys are shard_modules"),
        ({"shard_modules": ["Block"]}, '"shard_modules" only with "class": "fsdp"'),
    ],
)
def test_errors(value: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        _read(value)


def test_data_of_ranks() -> None:
    """By default, all ranks have the same order and read parts of it; or each has its own order of all data."""
    assert data_shard() == (0, 1)
    with process_state_ctx(rank=1, world_size=3, global_config=Config({})):
        assert data_shard() == (1, 3)
        assert default_random_seed_offset() == 0
    with process_state_ctx(rank=1, world_size=3, global_config=Config({"torch_distributed": {"data": "peers"}})):
        assert data_shard() == (0, 1)
        assert default_random_seed_offset() == 16127
    forward = Config({"torch_distributed": {"data": "peers"}, "task": "forward"})
    with process_state_ctx(rank=1, world_size=3, global_config=forward):
        assert data_shard() == (1, 3)  # each sequence once
        assert default_random_seed_offset() == 0


def test_seed_offset_of_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETURNN_RANDOM_SEED_OFFSET", "5")
    with process_state_ctx(rank=1, world_size=3, global_config=Config({"torch_distributed": {}})):
        assert default_random_seed_offset() == 5
