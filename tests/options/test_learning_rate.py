"""Options of the learning rate: accepted forms, and the errors."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.config import Config
from returnn.errors import ConfigError, OptionError
from returnn.options.learning_rate import LearningRateOptions


def _read(**options: Any) -> LearningRateOptions:
    return LearningRateOptions.from_config(options)


def test_defaults() -> None:
    options = _read()
    assert options == LearningRateOptions(
        control="constant",
        learning_rate=1.0,
        min_learning_rate=0.0,
        learning_rates=None,
        filename=None,
        error_measure=None,
        relative_error_relative_lr=False,
        min_num_epochs_per_new_lr=0,
        decay=0.5,
        growth=1.0,
        newbob_relative_error_threshold=-0.01,
        newbob_relative_error_grow_threshold=-0.01,
        newbob_error_threshold=-0.01,
        newbob_multi_num_epochs=5,
        newbob_multi_update_interval=5,
        relative_error_div_by_old=False,
        write_to_disk=True,
    )


def test_defaults_that_follow_other_options() -> None:
    options = _read(newbob_relative_error_threshold=-0.5, newbob_multi_num_epochs=7)
    assert options.newbob_relative_error_grow_threshold == -0.5
    assert options.newbob_multi_update_interval == 7
    assert _read(newbob_multi_num_epochs=7, newbob_multi_update_interval=1).newbob_multi_update_interval == 1


@pytest.mark.parametrize("value", [2, 2.0, "2", "2e0", numpy.float32(2), numpy.int64(2)])
def test_numbers(value: Any) -> None:
    options = _read(learning_rate=value, learning_rate_decay=value, learning_rate_growth=value)
    for number in (options.learning_rate, options.decay, options.growth):
        assert number == 2.0 and type(number) is float


@pytest.mark.parametrize(
    "name", ["learning_rate", "min_learning_rate", "learning_rate_decay", "newbob_error_threshold"]
)
@pytest.mark.parametrize("value", [None, "abc", [0.1], True, float("nan")])
def test_no_number(name: str, value: Any) -> None:
    with pytest.raises(OptionError, match=f'option "{name}" is invalid'):
        _read(**{name: value})


def test_functions_as_factors() -> None:
    def half(rate: float) -> float:
        return rate / 2

    assert _read(learning_rate_decay=half).decay is half
    assert _read(newbob_learning_rate_growth=half).growth is half


def test_two_names_of_one_option() -> None:
    assert _read(newbob_learning_rate_decay=0.9).decay == 0.9
    assert _read(relative_error_div_by_old=True).relative_error_div_by_old
    assert _read(learning_rate_decay=0.9, newbob_learning_rate_decay=0.9).decay == 0.9
    with pytest.raises(ConfigError, match="learning_rate_decay.*newbob_learning_rate_decay"):
        _read(learning_rate_decay=0.9, newbob_learning_rate_decay=0.8)


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        ("", None),
        ([], []),
        ([0.1, 2], [0.1, 2.0]),
        ((0.1,), [0.1]),
        (numpy.array([0.25, 0.5], dtype="float32"), [0.25, 0.5]),
        (["0.1", "1e-3"], [0.1, 0.001]),
        ("[0.1, 0.2]", [0.1, 0.2]),
        ("{3: 0.5}", {3: 0.5}),
        ({1: 0.1, numpy.int64(4): 1}, {1: 0.1, 4: 1.0}),
    ],
)
def test_learning_rates(value: Any, expected: Any) -> None:
    assert _read(learning_rates=value).learning_rates == expected


@pytest.mark.parametrize(
    "value",
    [
        "[0.1] * 10",
        "__import__('os').getcwd()",
        "[0.1",
        "0.1",
        0.1,
        {0: 0.1},
        {"1": 0.1},
        {1: None},
        ["x"],
        [None],
        b"x",
    ]
    + [[float("nan")], {1: float("inf")}, {True: 0.1}],
)
def test_bad_learning_rates(value: Any) -> None:
    with pytest.raises(OptionError, match='option "learning_rates" is invalid'):
        _read(learning_rates=value)


def test_other_wrong_types() -> None:
    for name, value in (
        ("learning_rate_file", 5),
        ("learning_rate_control_error_measure", 5),
        ("learning_rate_control_error_measure", ["a", 5]),
        ("newbob_multi_num_epochs", 0),
        ("newbob_multi_num_epochs", 1.5),
        ("learning_rate_control_min_num_epochs_per_new_lr", -1),
        ("newbob_relative_error_div_by_old", "maybe"),
    ):
        with pytest.raises(OptionError, match=name):
            _read(**{name: value})


def test_file_and_measure_forms() -> None:
    assert _read(learning_rate_file="").filename is None
    assert _read(learning_rate_file=Path("a") / "b").filename == str(Path("a") / "b")
    assert _read(learning_rate_control_error_measure="").error_measure is None
    assert _read(learning_rate_control_error_measure=("a", "b")).error_measure == ["a", "b"]


def test_command_line_values() -> None:
    config = Config()
    config.parse_cmd_args(
        ["++learning_rate", "0.25", "++newbob_multi_num_epochs", "3", "++learning_rates", "[0.5, 0.25]"]
    )
    options = LearningRateOptions.from_config(config)
    assert (options.learning_rate, options.newbob_multi_num_epochs) == (0.25, 3)
    assert options.learning_rates == [0.5, 0.25]


def test_dry_run() -> None:
    assert not _read(dry_run=True).write_to_disk
