"""Calling the functions of the config: by keyword, with one extra argument, and only with what they accept."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping
from typing import Any

__all__ = ["UserFunction", "random_arg_format", "takes_argument"]

#: Formats of the name of the random argument, see :class:`UserFunction`.
_MINI_RANDOM_ARG = "__fwd_compatible_random_arg_%i"
_MAINLINE_RANDOM_ARG = "__fwd_compat_random_arg_%03i"
_rnd = random.Random()  # not the global one: the numbers that user code draws must not depend on ours


def random_arg_format(*, mainline: bool) -> str:
    """
    :param mainline: dialect of the config
    :return: format of the random argument name
    """
    return _MAINLINE_RANDOM_ARG if mainline else _MINI_RANDOM_ARG


class UserFunction:
    """
    A callable of the config. Its signature was checked by ``returnn.options.model``.

    It gets one more keyword argument with a random number in its name and value None, so that functions
    need ``**kwargs`` and later versions can pass more. Functions without ``**kwargs`` are tolerated:
    they get what they declare.
    """

    def __init__(self, func: Callable[..., Any], *, random_arg: str = _MINI_RANDOM_ARG):
        """
        :param func: the user's
        :param random_arg: format of the random name
        """
        self.func = func
        self._random_args = tuple(random_arg % i for i in range(100))
        self._has_kwargs = True
        self._names: frozenset[str] = frozenset()
        try:
            params = inspect.signature(func).parameters.values()
        except (TypeError, ValueError):  # builtins without signature: pass everything
            return
        self._has_kwargs = any(p.kind is p.VAR_KEYWORD for p in params)
        self._names = frozenset(p.name for p in params if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY))

    def takes(self, name: str, *, usual: bool = False) -> bool:
        """
        :param name: of a keyword argument
        :param usual: whether functions with ``**kwargs`` expect it
        :return: whether the function is to get it
        """
        return name in self._names or (usual and self._has_kwargs)

    def __call__(self, *args: Any, only_if_declared: Mapping[str, Any] | None = None, **kwargs: Any) -> Any:
        """
        Any: what is passed and returned is the user's business.

        :param args: passed by position
        :param only_if_declared: passed only to functions that name these arguments: newer ones, which a function that
            hands its ``**kwargs`` on does not expect
        :param kwargs: passed by keyword
        """
        if only_if_declared:
            kwargs.update({name: value for name, value in only_if_declared.items() if name in self._names})
        if not self._has_kwargs:
            return self.func(*args, **{k: v for k, v in kwargs.items() if k in self._names})
        kwargs[self._random_args[int(_rnd.random() * 100)]] = None
        return self.func(*args, **kwargs)


def takes_argument(func: Callable[..., Any], name: str, *, num_before: int | None = None) -> bool:
    """
    For methods of custom engines, which may be overridden in the form of an older version.

    :param func: bound method
    :param name: of an argument that not all versions have
    :param num_before: arguments before it, if it may be passed by position under another name
    :return: whether it can be passed
    """
    params = inspect.signature(func).parameters.values()
    other = inspect.Parameter.VAR_KEYWORD if num_before is None else inspect.Parameter.VAR_POSITIONAL
    if any(p.name == name or p.kind is other for p in params):
        return True
    num_positional = sum(p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD) for p in params)
    return num_before is not None and num_positional > num_before
