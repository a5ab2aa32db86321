"""Calling the functions of the config: by keyword, with one extra argument, and only with what they accept."""

from __future__ import annotations

import functools
import inspect
import random
from collections.abc import Callable, Sequence
from typing import Any

from returnn.errors import ModelError

__all__ = ["UserFunction", "get_user_function"]

_rnd = random.Random()  # not the global one: the numbers that user code draws must not depend on ours


class UserFunction:
    """
    A callable of the config, checked when it is looked up, before any data is loaded.

    It gets one more keyword argument with a random number in its name and value None, so that functions
    need ``**kwargs`` and later versions can pass more. Functions without ``**kwargs`` are tolerated:
    they get what they declare.
    """

    def __init__(
        self,
        func: Callable[..., Any],
        *,
        option: str,
        offers: Sequence[str],
        num_positional: int = 0,
        random_arg: str = "__fwd_compatible_random_arg_%i",
    ):
        """
        :param func: the user's
        :param option: its name in the config
        :param offers: names of the keyword arguments that will be passed
        :param num_positional: how many of the offers are passed by position (first ones)
        :param random_arg: format of the random name
        :raises ModelError: not callable, or it requires arguments that are not offered
        """
        if not callable(func):
            raise ModelError(f'option "{option}" must be a function, got {func!r} ({type(func).__name__}).')
        self.func = func
        self.option = option
        self._offers = tuple(offers)
        self._num_positional = num_positional
        self._random_arg = random_arg
        self._accepts: frozenset[str] | None = None  # None: everything
        self._check_signature()

    def _check_signature(self) -> None:
        try:
            params = list(inspect.signature(self.func).parameters.values())
        except (TypeError, ValueError):  # builtins without signature
            return
        has_kwargs = any(p.kind is p.VAR_KEYWORD for p in params)
        named = [p for p in params if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
        positional = [p for p in params if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
        by_position = {p.name for p in positional[: self._num_positional]}
        if self._num_positional > len(positional) and not any(p.kind is p.VAR_POSITIONAL for p in params):
            raise ModelError(
                f'option "{self.option}": {describe_function(self.func)} must take '
                f"{', '.join(self._offers[: self._num_positional])} as first argument."
            )
        keyword_offers = set(self._offers[self._num_positional :])
        missing = [
            p.name for p in named if p.default is p.empty and p.name not in by_position and p.name not in keyword_offers
        ]
        if missing:
            hint = ""
            if "extern_data" in missing:
                hint = " A step with extern_data (mainline dialect) is not supported yet: use data and run_ctx."
            raise ModelError(
                f'option "{self.option}": {describe_function(self.func)} requires the arguments {missing}, which are '
                f"not passed. {self.option} is called with {', '.join(self._offers)} and must accept **kwargs.{hint}"
            )
        if not has_kwargs:
            self._accepts = frozenset(p.name for p in named)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """Any: what is passed and returned is the user's business."""
        if self._accepts is not None:
            return self.func(*args, **{k: v for k, v in kwargs.items() if k in self._accepts})
        return self.func(*args, **kwargs, **{self._random_arg % _rnd.randint(0, 99): None})


def describe_function(func: Callable[..., Any]) -> str:
    """:return: name, file and line of a function, partials and classes unwrapped"""
    while isinstance(func, functools.partial):
        func = func.func
    name = getattr(func, "__qualname__", None) or type(func).__name__
    code = getattr(func, "__code__", None) or getattr(getattr(func, "__init__", None), "__code__", None)
    return f"{name} ({code.co_filename}:{code.co_firstlineno})" if code is not None else name


def get_user_function(
    value: Any,
    *,
    option: str,
    offers: Sequence[str],
    needed_for: str | None = None,
    num_positional: int = 0,
    random_arg: str = "__fwd_compatible_random_arg_%i",
) -> UserFunction | None:
    """
    :param value: of the option, or None. Any: checked here
    :param option: name
    :param offers: see UserFunction
    :param needed_for: e.g. "training"; None: optional
    :param num_positional: see UserFunction
    :param random_arg: see UserFunction
    :raises ModelError: needed, but not set; or see UserFunction
    """
    if value is None:
        if needed_for:
            raise ModelError(
                f"{option} not defined: {needed_for} needs a function {option} in the config, "
                f"def {option}(*, {', '.join(offers)}, **kwargs)."
            )
        return None
    return UserFunction(value, option=option, offers=offers, num_positional=num_positional, random_arg=random_arg)
