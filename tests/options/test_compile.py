"""Tests of the options of compilation."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.errors import OptionError
from returnn.options.compile import CompileOptions


@pytest.mark.parametrize("value", [None, False])
def test_off(value: object) -> None:
    assert CompileOptions.from_config({}) is None
    assert CompileOptions.from_config({"torch_compile": value}) is None


def test_values() -> None:
    assert CompileOptions.from_config({"torch_compile": True}) == CompileOptions("inductor", None, True, False)
    opts: dict[str, Any] = {"backend": "eager", "dynamic": None, "fullgraph": True, "suppress_errors": True}
    assert CompileOptions.from_config({"torch_compile": opts}) == CompileOptions("eager", None, None, True, None, True)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("inductor", "True, False or a dict, got 'inductor'"),
        ({"back_end": "eager"}, "only the keys backend, mode, .*, got 'back_end' .*Did you mean 'backend'"),
        ({"backend": 3}, 'a name or a function for "backend", got 3'),
        ({"mode": 3}, 'a name or None for "mode"'),
        ({"dynamic": 1}, 'True, False or None for "dynamic"'),
        ({"fullgraph": None}, 'True or False for "fullgraph"'),
        ({"options": "all"}, 'a dict or None for "options"'),
        ({"suppress_errors": "yes"}, 'True or False for "suppress_errors"'),
        ({"mode": "max-autotune", "options": {"a": 1}}, 'either "mode" or "options"'),
    ],
)
def test_wrong_values(value: object, text: str) -> None:
    with pytest.raises(OptionError, match=f'option "torch_compile" is invalid: expected {text}'):
        CompileOptions.from_config({"torch_compile": value})
