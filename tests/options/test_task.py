"""Options of run control and of the log."""

from __future__ import annotations

import pytest

from returnn.errors import NotSupportedError, OptionError
from returnn.options.logging import LoggingOptions
from returnn.options.task import TaskOptions


def test_defaults() -> None:
    options = TaskOptions.from_config({})
    assert options.task == "train"
    assert options.custom_engine is None and options.epoch is None and not options.strict_config


def test_custom_engine_that_is_not_callable_is_ignored() -> None:
    assert TaskOptions.from_config({"CustomEngine": None}).custom_engine is None
    assert TaskOptions.from_config({"CustomEngine": "off"}).custom_engine is None
    assert TaskOptions.from_config({"CustomEngine": dict}).custom_engine is dict


def test_backend() -> None:
    assert TaskOptions.from_config({"backend": "torch"})
    with pytest.raises(NotSupportedError, match="'jax' is not supported"):
        TaskOptions.from_config({"backend": "jax"})


@pytest.mark.parametrize(
    "name, value",
    [("task", 3), ("epoch", "x"), ("strict_config", [1]), ("startup_callback", 3), ("behavior_version", 1.5)],
)
def test_bad_values(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f'"{name}" is invalid: expected'):
        TaskOptions.from_config({name: value})


def test_logging() -> None:
    options = LoggingOptions.from_config({"log": "a.log", "log_verbosity": [3, 5], "log_format": "timed"})
    assert options == LoggingOptions(targets=("a.log",), verbosity=(3, 5), formats=("timed",))
    for value in (6, -1, True, "high", [3, None]):
        with pytest.raises(OptionError, match="int from 0 to 5"):
            LoggingOptions.from_config({"log_verbosity": value})
