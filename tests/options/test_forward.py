"""The options of the task forward are checked before data and model are there."""

from __future__ import annotations

import functools
from typing import Any

import pytest

from returnn.errors import ConfigError, ModelError, OptionError
from returnn.forward_iface import ForwardCallbackIface
from returnn.options.forward import ForwardOptions, make_callback
from returnn.tensor import TensorDict


class Callback(ForwardCallbackIface):
    """With an argument that has a default."""

    def __init__(self, name: str = "default"):
        self.name = name


class Lookalike:
    """Not derived from the interface."""

    def init(self, *, model: object) -> None:
        """As the interface."""

    def process_seq(self, *, seq_tag: str, outputs: TensorDict, **_kwargs: object) -> None:
        """As the interface."""

    def finish(self) -> None:
        """As the interface."""


class WithoutFinish:
    """Two of three methods."""

    def init(self, *, model: object) -> None:
        """As the interface."""

    def process_seq(self, *, seq_tag: str, outputs: TensorDict) -> None:
        """As the interface."""


class OtherArguments(ForwardCallbackIface):
    """Of an invented interface."""

    def process_seq(self, *, seq_tag: str, hyps: object) -> None:  # type: ignore[override]
        """Called with outputs."""


def test_defaults() -> None:
    options = ForwardOptions.from_config({})
    assert options == ForwardOptions(None, True, False, "output.hdf", False, expects_output_file=False)


@pytest.mark.parametrize("name", ["output_file", "model_outputs", "extern_data"])
def test_whether_a_file_is_expected(name: str) -> None:
    value = {"output_file": "x.hdf"}.get(name, {"x": {"dim": 3}})
    assert ForwardOptions.from_config({name: value}).expects_output_file


def test_instances_classes_and_functions() -> None:
    instance = Callback("mine")
    assert make_callback(ForwardOptions.from_config({"forward_callback": instance}).callback) is instance
    for value, name in [(Callback, "default"), (functools.partial(Callback, "x"), "x"), (lambda: Callback("y"), "y")]:
        assert make_callback(ForwardOptions.from_config({"forward_callback": value}).callback).name == name
    assert isinstance(make_callback(Lookalike), Lookalike)


@pytest.mark.parametrize(
    ("opts", "error", "text"),
    [
        (
            {"forward_callback": 3},
            OptionError,
            "forward_callback.*an instance with the methods init, process_seq, finish",
        ),
        (
            {"forward_callback": WithoutFinish},
            OptionError,
            "It has no finish. Derive a class from returnn.forward_iface",
        ),
        ({"forward_callback": WithoutFinish()}, OptionError, "forward_callback"),
        ({"sort_dataset": "yes"}, OptionError, "sort_dataset.*True or False"),
        ({"forward_auto_split_batch_on_oom": 0.5}, OptionError, "forward_auto_split_batch_on_oom"),
        ({"output_file": ""}, OptionError, "output_file.*a file name"),
        (
            {"forward_callback": Callback, "forward_finish_hook": print},
            ConfigError,
            '"forward_callback" and "forward_finish_hook" are both set.*Keep the callback',
        ),
        ({"forward_callback": Callback, "forward_init_hook": print}, ConfigError, '"forward_init_hook" are both set'),
    ],
)
def test_mistakes(opts: dict[str, Any], error: type[Exception], text: str) -> None:
    with pytest.raises(error, match=text):
        ForwardOptions.from_config(opts)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (
            lambda: 3,
            r"forward_callback\(\) returned 3, expected an instance with the methods init, process_seq, finish",
        ),
        (lambda: Callback, r"forward_callback\(\) returned <class .*Callback'>, expected an instance"),
        (OtherArguments, "OtherArguments.process_seq .*requires argument 'hyps'.*offered are: seq_tag, outputs"),
    ],
)
def test_what_a_function_returns_is_checked(value: Any, text: str) -> None:
    with pytest.raises(ModelError, match=text):
        make_callback(value)
