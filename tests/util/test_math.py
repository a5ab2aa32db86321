"""returnn.util.math and seeds: golden values."""

from __future__ import annotations

import json
import pickle
from pathlib import Path
from typing import Any

import pytest

from returnn.util.math import (
    PiecewiseLinear,
    StepFunction,
    ceil_div,
    merge_random_seeds,
    next_power_of_two,
    simplify_and_format_number,
)
from returnn.util.seeds import model_creation_seed

_GOLDEN = json.loads((Path(__file__).parent.parent / "golden" / "01-config-cli" / "math_main.json").read_text())


def test_merge_random_seeds() -> None:
    for case in _GOLDEN["merge_random_seeds"]:
        assert merge_random_seeds(case["args"]) == case["ok"]
        assert merge_random_seeds(case["args"], signed=True) == case["signed"]
        assert merge_random_seeds(case["args"], num_bytes=8) == case["num_bytes8"]


def test_piecewise_linear() -> None:
    golden = _GOLDEN["PiecewiseLinear"]
    func = PiecewiseLinear(dict(golden["values"]))
    for f in (func, pickle.loads(pickle.dumps(func))):
        assert [f(x) for x, _ in golden["calls"]] == pytest.approx([y for _, y in golden["calls"]], rel=1e-15)
        assert repr(f) == golden["repr"]
    assert repr(PiecewiseLinear({1: 2}, kw_name="epoch", ignore_other_kwargs=True)) == golden["kw_repr"]


def test_step_function() -> None:
    golden = _GOLDEN["StepFunction"]
    func = StepFunction(dict(golden["values"]))
    assert [[x, func(x)] for x, _ in golden["calls"]] == golden["calls"]
    assert repr(func) == golden["repr"]
    assert StepFunction({1: "a", 2: None})(1.5) == "a"  # a tie goes to the lower key


def test_keyed_function_arguments() -> None:
    assert PiecewiseLinear({1: 2.0}, kw_name="epoch")(epoch=3) == 2.0
    assert PiecewiseLinear({1: 2.0}, kw_name="epoch", ignore_other_kwargs=True)(epoch=3, x=4) == 2.0
    assert PiecewiseLinear({1: 2.0}, ignore_other_kwargs=True)(3, x=4) == 2.0
    with pytest.raises(TypeError, match="positional"):
        PiecewiseLinear({1: 2.0}, kw_name="epoch")(3)
    with pytest.raises(TypeError, match=r"unexpected keyword arguments \['x'\]"):
        PiecewiseLinear({1: 2.0}, kw_name="epoch")(epoch=3, x=4)
    with pytest.raises(TypeError, match="needs the keyword argument 'epoch'"):
        PiecewiseLinear({1: 2.0}, kw_name="epoch")(step=3)
    with pytest.raises(TypeError, match="one positional"):
        StepFunction({1: 2.0})()
    with pytest.raises(ValueError, match="at least one value"):
        StepFunction({})


@pytest.mark.parametrize("kwargs", [{}, {"kw_name": "epoch"}, {"kw_name": "epoch", "ignore_other_kwargs": True}])
@pytest.mark.parametrize("cls", [PiecewiseLinear, StepFunction])
def test_repr_round_trips(cls: type[PiecewiseLinear], kwargs: dict[str, Any]) -> None:
    func = cls({1: 0.1, 2.5: 1e-05, 10: 3}, **kwargs)
    again = eval(repr(func), {"PiecewiseLinear": PiecewiseLinear, "StepFunction": StepFunction})
    assert repr(again) == repr(func)
    for x in (0, 1, 1.7, 2.5, 9, 11):
        assert (again(epoch=x) == func(epoch=x)) if kwargs else (again(x) == func(x))


def test_integers() -> None:
    for a, b, result in _GOLDEN["ceil_div"]:
        assert ceil_div(a, b) == result
    for n, result in _GOLDEN["next_power_of_two"]:
        assert next_power_of_two(n) == result


def test_model_creation_seed() -> None:
    for epoch, step, random_seed, result in _GOLDEN["model_creation_seed"]["values"]:
        assert model_creation_seed(epoch=epoch, step=step, random_seed=random_seed) == result


def test_simplify_and_format_number() -> None:
    values = [100, 2.0, 0.1, 0.25, 0, 100.0, 1e-5]
    assert [simplify_and_format_number(n) for n in values] == ["100", "2", "0.1", "0.25", "0", "100", "1e-05"]
