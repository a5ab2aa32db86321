"""Tests of the options of the average of the weights."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.errors import OptionError
from returnn.options.ema import EmaOptions


def test_values() -> None:
    assert EmaOptions.from_config({}) is None
    assert EmaOptions.from_config({"ema": {}}) == EmaOptions(0.999, 0, 1, False, False, False)
    opts: dict[str, Any] = {"decay": 0.5, "start_step": 3, "every_n_steps": 2, "eval": True, "forward": True}
    assert EmaOptions.from_config({"ema": {**opts, "buffers": True}}) == EmaOptions(0.5, 3, 2, True, True, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (True, "a dict or None"),
        ({"decays": 0.1}, "only the keys decay, .*Did you mean 'decay'"),
        ({"decay": 1.0}, '0 <= "decay" < 1'),
        ({"decay": None}, '0 <= "decay" < 1'),
        ({"start_step": -1}, 'int >= 0 for "start_step"'),
        ({"every_n_steps": 0}, 'int >= 1 for "every_n_steps"'),
        ({"every_n_steps": 1.5}, 'int >= 1 for "every_n_steps"'),
        ({"eval": 1}, 'True or False for "eval"'),
    ],
)
def test_wrong_values(value: object, text: str) -> None:
    with pytest.raises(OptionError, match=f'option "ema" is invalid: expected {text}'):
        EmaOptions.from_config({"ema": value})
