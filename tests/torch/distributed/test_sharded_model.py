"""returnn.torch.distributed.sharded_model: a model in shards is trained as one in one piece."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn.errors import OptionError
from returnn.options.sharding import MixedPrecision, ShardingOptions
from returnn.torch.distributed.sharded_model import choose_units
from returnn.torch.distributed.tensors import is_sharded_model, like_parameter, map_tensors, whole_model_state
from tests.torch.distributed.sharded_launch import run_ranks

_CASES = Path(__file__).with_name("sharded_cases.py")
_EQUAL = (
    *(
        "plain",
        "whole model at once",
        "by size",
        "kept between forward and backward",
        "frozen",
        "unused",
        "nested",
        "twice",
    ),
    *(
        "checkpointing",
        "tied",
        "rnn",
        "method",
        "accumulate 2",
        "accumulate 4",
        "parts",
        "nonfinite",
        "noise",
        "bfloat16",
    ),
)
_ERRORS = {
    "method not listed": ("ModelError", "sharded module (Block) outside of its forward", '"forward_methods"'),
    "class with typo": ("OptionError", "got 'Blok'", "Did you mean 'Block'?"),
    "container": ("OptionError", "ModuleList (blocks)", "class of its entries"),
    "methods of another class": ("OptionError", "classes of sharded modules (Block)", "got 'Linear'"),
    "unknown method": ("OptionError", "methods of Block", "got 'scal'"),
    "adafactor": ("NotSupportedError", "Adafactor needs whole parameters", "adamw"),
    "scalar parameter": ("ModelError", "parameter own: it is a single number", "shape [1]"),
    "other dtype": ("ModelError", "own float64", "mixed_precision"),
    "empty parameter": ("ModelError", "parameter own: it is empty", "Remove it"),
    "lazy parameter": ("ModelError", "parameter own: it has no shape yet", "get_model"),
}


@pytest.fixture(scope="module", params=[2, 3], ids=["2 ranks", "3 ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """:return: case -> result, all of one launch. Any: see sharded_cases"""
    output = run_ranks(request.param, _CASES, cwd=tmp_path_factory.mktemp("ranks"))
    lines = [json.loads(line) for line in output.splitlines() if line.startswith('{"case"')]
    return {line["case"]: line for line in lines}


@pytest.mark.slow
@pytest.mark.parametrize("case", _EQUAL)
def test_same_as_in_one_piece(results: dict[str, dict[str, Any]], case: str) -> None:
    """With ranks that have no data in some steps."""
    assert results[case].get("difference", results[case]) <= 1e-6


@pytest.mark.slow
@pytest.mark.parametrize("case", list(_ERRORS))
def test_mistakes_end_in_a_sentence(results: dict[str, dict[str, Any]], case: str) -> None:
    error = results[case].get("error", "")
    assert all(part in error for part in _ERRORS[case]), error


class _Big(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(1024, 1024)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.linear(x)  # type: ignore[no-any-return]


def _with_lists() -> Any:  # Any: torch's attributes of modules have no useful types
    model = torch.nn.Module()
    model.encoder = torch.nn.Module()
    model.encoder.layers = torch.nn.ModuleList([_Big(), _Big(), torch.nn.Linear(2, 2)])
    model.stacks = torch.nn.ModuleList([torch.nn.ModuleList([_Big()])])
    model.single = _Big()
    return model


def test_by_size_takes_large_entries_of_lists() -> None:
    assert list(choose_units(_with_lists(), None)) == ["encoder.layers.0", "encoder.layers.1", "stacks.0.0"]


def test_by_class_takes_all_of_them() -> None:
    units = choose_units(_with_lists(), ["_Big"])
    assert list(units) == ["encoder.layers.0", "encoder.layers.1", "stacks.0.0", "single"]


def test_modules_that_share_a_parameter_stay_together() -> None:
    model = _with_lists()
    model.single.linear.weight = model.encoder.layers[0].linear.weight
    assert list(choose_units(model, None)) == ["encoder.layers.1", "stacks.0.0"]
    model.stacks[0][0].linear = model.encoder.layers[1].linear
    assert list(choose_units(model, None)) == []


@pytest.mark.parametrize(
    ("opts", "words"),
    [
        ({"shard_modules": "Block"}, 'a list of names as "shard_modules"'),
        ({"reshard_after_forward": 1}, 'True or False as "reshard_after_forward"'),
        ({"mixed_precision": "bfloat16"}, 'a dict or None as "mixed_precision"'),
        ({"mixed_precision": {"dtype": "bfloat16"}}, "param_dtype, reduce_dtype, output_dtype"),
        ({"mixed_precision": {"param_dtype": "bf16"}}, "one of float32, float16, bfloat16"),
        ({"forward_methods": ["step"]}, 'as "forward_methods"'),
        ({"forward_methods": {"Block": "step"}}, 'a list of names as "forward_methods"'),
        ({"whole_optimizer_file": None}, 'True or False as "whole_optimizer_file"'),
    ],
)
def test_wrong_options(opts: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError) as info:
        ShardingOptions.from_dict(opts)
    assert words in str(info.value) and "torch_distributed" in str(info.value)


def test_options() -> None:
    opts = {
        "class": "fsdp",
        "shard_modules": ["Block"],
        "mixed_precision": {"param_dtype": "bfloat16"},
        "forward_methods": {"Block": ["step"]},
    }
    assert ShardingOptions.from_dict(opts) == ShardingOptions(
        shard_modules=("Block",),
        mixed_precision=MixedPrecision(param_dtype="bfloat16"),
        forward_methods={"Block": ("step",)},
    )
    assert ShardingOptions.from_dict({"class": "fsdp"}) == ShardingOptions()


def test_models_that_are_not_sharded_stay_as_they_are() -> None:
    model = torch.nn.Linear(2, 3)
    assert not is_sharded_model(model) and not is_sharded_model(None)
    state = whole_model_state(model)
    assert {name: value.data_ptr() for name, value in state.items()} == {
        name: param.data_ptr() for name, param in model.named_parameters()
    }
    value = torch.zeros(3, 2)
    assert like_parameter(value, model.weight) is value


def test_map_tensors_keeps_containers() -> None:
    obj = {"a": [torch.ones(1), 2], "b": (torch.ones(1), "x"), 3: None}
    paths: list[tuple[str | int, ...]] = []

    def note(path: tuple[str | int, ...], tensor: torch.Tensor) -> str:
        paths.append(path)
        return f"{len(tensor)}"

    assert map_tensors(obj, note) == {"a": ["1", 2], "b": ("1", "x"), 3: None}
    assert paths == [("a", 0), ("b", 0)]
