"""Tests of the options of checkpoints inside an epoch."""

from __future__ import annotations

import pytest

from returnn.errors import OptionError
from returnn.options.inner_checkpoints import InnerCheckpointOptions


def test_values() -> None:
    assert InnerCheckpointOptions.from_config({}) == InnerCheckpointOptions(None, None, None)
    assert InnerCheckpointOptions.from_config({}).given == ()
    options = InnerCheckpointOptions.from_config({"save_every_steps": 100, "stop_after_minutes": "0.5"})
    assert options == InnerCheckpointOptions(100, None, 0.5)
    assert options.given == ("save_every_steps", "stop_after_minutes")


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("save_every_steps", 0, "int >= 1, got 0"),
        ("save_every_steps", 1.5, "int >= 1, got 1.5"),
        ("save_every_steps", True, "int >= 1, got True"),
        ("save_every_minutes", 0, "a number of minutes > 0, got 0"),
        ("save_every_minutes", "often", "a number of minutes > 0, got 'often'"),
        ("stop_after_minutes", -1, "a number of minutes > 0, got -1"),
        ("stop_after_minutes", float("inf"), "a number of minutes > 0, got inf"),
    ],
)
def test_wrong_values(name: str, value: object, text: str) -> None:
    with pytest.raises(OptionError, match=f'option "{name}" is invalid: expected {text}'):
        InnerCheckpointOptions.from_config({name: value})
