"""Which datasets a run has."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.errors import ConfigError, MissingOptionError, OptionError
from returnn.options.data import DataOptions

A: dict[str, Any] = {"class": "A"}
B: dict[str, Any] = {"class": "B"}
C: dict[str, Any] = {"class": "C"}


def test_all_datasets() -> None:
    options = DataOptions.from_config({"train": A, "dev": B, "eval_datasets": {"x": C}, "eval": A, "forward": C})
    assert options.train == A
    assert dict(options.eval_datasets) == {"dev": B, "x": C, "eval": A}
    assert list(options.eval_datasets) == ["dev", "x", "eval"]
    assert options.forward == C


def test_nothing_given() -> None:
    options = DataOptions.from_config({"train": {}, "dev": {}, "forward": None})
    assert options == DataOptions(train=None, eval_datasets={}, forward=None)
    with pytest.raises(MissingOptionError, match='"train" is not set'):
        options.require_train()
    with pytest.raises(MissingOptionError, match='"dev" is not set'):
        options.require_dev()
    with pytest.raises(MissingOptionError, match='"forward" is not set'):
        options.require_forward()


@pytest.mark.parametrize("name", ["forward", "forward_data"])
@pytest.mark.parametrize("target", ["train", "dev", "x", "eval"])
def test_forward_by_name(name: str, target: str) -> None:
    datasets = {"train": A, "dev": B, "x": C, "eval": {"class": "E"}}
    config = {"train": A, "dev": B, "eval_datasets": {"x": C}, "eval": datasets["eval"], name: target}
    assert DataOptions.from_config(config).require_forward() == datasets[target]


def test_forward_by_unknown_name() -> None:
    with pytest.raises(ConfigError, match="names the dataset 'test', which the config does not define.*'train'"):
        DataOptions.from_config({"train": A, "forward_data": "test"})


def test_messages_spell_the_option_as_the_dialect_does() -> None:
    mainline = {"extern_data": {"data": {"dim": 2}}}
    with pytest.raises(ConfigError, match="forward_data = "):
        DataOptions.from_config({**mainline, "train": A, "forward_data": "test"})
    with pytest.raises(ConfigError, match='option "forward_data" is not set'):
        DataOptions.from_config(mainline).require_forward()
    with pytest.raises(ConfigError, match='option "forward" is not set'):
        DataOptions.from_config({}).require_forward()


def test_eval_is_the_default_of_forward() -> None:
    assert DataOptions.from_config({"eval": A}).require_forward() == A


@pytest.mark.parametrize(
    "config",
    [
        {"eval": A, "eval_datasets": {"eval": B}},
        {"dev": A, "eval_datasets": {"dev": B}},
        {"forward": A, "forward_data": B},
    ],
)
def test_contradictions(config: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match="Set only one of them"):
        DataOptions.from_config(config)


@pytest.mark.parametrize(
    "config", [{"train": 3}, {"train": {"files": []}}, {"dev": [A]}, {"eval_datasets": A}, {"eval_datasets": [A]}]
)
def test_bad_values(config: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match="is invalid: expected"):
        DataOptions.from_config(config)
