"""The functions of the user are checked before anything expensive happens."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest

from returnn.errors import MissingOptionError, ModelError
from returnn.options.model import ModelOptions, describe_function


class Model:
    """As a user's model class."""

    def __init__(self, epoch: int, step: int, *, size: int, **kwargs: Any) -> None:
        pass


def good_1(*, model: object, data: object, run_ctx: object, **kwargs: Any) -> None:
    """Mini's form."""


def good_3(model: object, data: object, run_ctx: object) -> None:
    """Without further arguments."""


def good_4(model: object, **kwargs: Any) -> None:
    """Takes the rest as they come."""


def bad_1(*, model: object, data: object, ctx: object, **kwargs: Any) -> None:
    """ctx is never passed."""


def bad_2(model: object, /, data: object) -> None:
    """Is called by keyword."""


def good_5(*, model: object, extern_data: object, **_: Any) -> None:
    """Mainline's form."""


@pytest.mark.parametrize("func", [good_1, good_3, good_4, good_5, functools.partial(bad_1, ctx=3), print])
def test_good_train_step(func: Callable[..., Any]) -> None:
    assert ModelOptions.from_config({"train_step": func}).train_step is func


@pytest.mark.parametrize("func, name", [(bad_1, "'ctx'"), (bad_2, "'model'")])
def test_bad_train_step(func: Callable[..., Any], name: str) -> None:
    with pytest.raises(
        ModelError,
        match=rf"train_step \(bad_\d at .*requires argument {name}, which is never passed.*must accept \*\*kwargs",
    ):
        ModelOptions.from_config({"train_step": func})


def test_not_callable() -> None:
    with pytest.raises(ModelError, match='option "get_model" must be a function, got 3'):
        ModelOptions.from_config({"get_model": 3})


def test_partial_of_a_class() -> None:
    get_model = functools.partial(Model, size=3)
    assert ModelOptions.from_config({"get_model": get_model}).get_model is get_model
    with pytest.raises(ModelError, match="'size'"):
        ModelOptions.from_config({"get_model": Model})


def test_hooks_get_the_context_by_position() -> None:
    def hook(ctx: object, **kwargs: Any) -> None:
        pass

    def bad(*, run_ctx: object, **kwargs: Any) -> None:
        pass

    def bad_too(ctx: object, decoder: object) -> None:
        pass

    assert ModelOptions.from_config({"forward_init_hook": hook}).forward_init_hook is hook
    ModelOptions.from_config({"forward_finish_hook": functools.partial(bad_too, decoder=3)})
    with pytest.raises(ModelError, match="takes no positional argument"):
        ModelOptions.from_config({"forward_init_hook": bad})
    with pytest.raises(ModelError, match="'decoder'"):
        ModelOptions.from_config({"forward_finish_hook": bad_too})


def test_missing_function() -> None:
    with pytest.raises(
        MissingOptionError,
        match=r'"train_step" is not set.*Define a function train_step\(model, data, run_ctx, \*\*kwargs\)',
    ):
        ModelOptions.from_config({}, needed=["train_step"])


def test_missing_function_with_a_similar_one() -> None:
    with pytest.raises(MissingOptionError, match="Did you mean 'trainstep'"):
        ModelOptions.from_config({"trainstep": good_1, "x": 3}, needed=["train_step"])


def test_describe_function() -> None:
    assert describe_function(functools.partial(good_1, data=3)).startswith("good_1 at ")
    assert describe_function(functools.partial(good_1, data=3)).endswith(f"{__file__}:{good_1.__code__.co_firstlineno}")
    assert "Model" in describe_function(Model)
