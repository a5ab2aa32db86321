"""Conversion of raw option values to plain types, with the project's error text."""

from __future__ import annotations

import inspect
import math
import os
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.registry import read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["check_takes_any_keyword", "to_float", "read_float", "read_int", "read_bool", "read_path"]

# Any in this module: raw option values, of whatever type the user gave.
_TRUE = ("true", "yes", "on", "1")
_FALSE = ("false", "no", "off", "0", "", "none")


def to_float(value: Any) -> float | None:
    """
    :param value: number of any kind (numpy too), or its text
    :return: None if it is not a number
    """
    if value is None or isinstance(value, bool) or not (isinstance(value, str) or hasattr(value, "__float__")):
        return None
    try:
        return float(value)
    except (TypeError, ValueError, OverflowError):
        return None


def read_float(config: Config | Mapping[str, Any], name: str, *, if_none: float | None = None) -> float:
    """
    :param config:
    :param name: declared option
    :param if_none: used if the value is None
    :raises OptionError: not a number
    """
    value = read(config, name)
    if value is None and if_none is not None:
        return if_none
    res = to_float(value)
    if res is None or math.isnan(res):
        raise OptionError(name, expected="a number", got=value, todo=f"Set e.g. {name} = 0.001")
    return res


def read_int(config: Config | Mapping[str, Any], name: str, *, minimum: int, if_none: int | None = None) -> int:
    """
    :param config:
    :param name: declared option
    :param minimum: smallest allowed value
    :param if_none: used if the value is None
    :raises OptionError: not an int, or too small
    """
    value = read(config, name)
    if value is None and if_none is not None:
        return if_none
    if not isinstance(value, bool) and hasattr(value, "__index__") and int(value) >= minimum:
        return int(value)
    raise OptionError(name, expected=f"int >= {minimum}", got=value, todo=f"Set e.g. {name} = {max(minimum, 1)}")


def read_bool(config: Config | Mapping[str, Any], name: str) -> bool:
    """
    :param config:
    :param name: declared option. None counts as False
    :raises OptionError: not a bool
    """
    value = read(config, name)
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    if isinstance(value, str) and value.lower() in _TRUE + _FALSE:
        return value.lower() in _TRUE
    raise OptionError(name, expected="True or False", got=value)


def read_path(config: Config | Mapping[str, Any], name: str, *, example: str) -> str | None:
    """
    :param config:
    :param name: declared option
    :param example: of a right value, for the error
    :return: None if not set or empty
    :raises OptionError: not a path
    """
    value = read(config, name)
    if value is None or value == "":
        return None
    if not isinstance(value, (str, os.PathLike)):
        raise OptionError(name, expected="a file name", got=value, todo=f'Set e.g. {name} = "{example}"')
    return str(os.fspath(value))


def check_takes_any_keyword(name: str, func: Callable[..., Any]) -> None:
    """
    :param name: of the option
    :param func: its value. Any: the result is checked at each call
    :raises OptionError: no ``**kwargs``
    """
    try:
        params = inspect.signature(func).parameters.values()
    except (TypeError, ValueError):  # e.g. written in C
        return
    if not any(p.kind is p.VAR_KEYWORD for p in params):
        raise OptionError(
            name,
            expected="a function with **kwargs, so that later versions can pass more",
            got=func,
            todo="Add **_kwargs to its arguments",
        )
