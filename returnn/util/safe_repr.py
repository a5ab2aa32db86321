"""
Values as text for error dumps and messages: bounded in size, time and memory, without secrets, and never an exception.
"""

from __future__ import annotations

import dataclasses
import types
from collections import deque
from collections.abc import Callable, Iterable
from itertools import islice
from typing import Any

from returnn.util.secret_names import HIDDEN, hidden_args, hides, mask_text

__all__ = ["safe_repr", "shorten", "cut_middle"]

_MAX_DEPTH = 6
_MAX_ITEMS = 100
#: Arrays and tensors with more numbers are shown by shape and type only.
_MAX_NUMBERS = 16
_MAX_INT_BITS = 8000
_BRACKETS: dict[type, tuple[str, str]] = {
    dict: ("{", "}"),
    list: ("[", "]"),
    tuple: ("(", ")"),
    set: ("{", "}"),
    frozenset: ("frozenset({", "})"),
    deque: ("deque([", "])"),
    type({}.keys()): ("dict_keys([", "])"),
    type({}.values()): ("dict_values([", "])"),
    type({}.items()): ("dict_items([", "])"),
}


def shorten(text: str, limit: int) -> str:
    """:return: at most so many characters of the text, and ``...`` if there are more"""
    return text if len(text) <= limit else text[:limit] + "..."


def cut_middle(text: str, limit: int) -> str:
    """:return: at most so many characters of the text, from its start and its end, and a line about what is left out"""
    if len(text) <= limit:
        return text
    return (
        f"{text[: limit // 4]}\n... ({len(text) - limit} characters are left out) ...\n{text[-(limit - limit // 4) :]}"
    )


def safe_repr(value: Any, *, limit: int = 300, name: object = None) -> str:
    """
    :param value: anything
    :param limit: characters; longer ones end with ``...``
    :param name: of the variable or option, if there is one; it decides whether the value is shown
    :return: as ``repr`` for small builtin values. Values under the names of secrets (dict keys, attributes of dataclasses,
        the name itself) are ``<hidden>``, large arrays and tensors are shown by shape and type, and
        ``<repr failed: ...>`` is what a broken class gives
    """
    if hides(name, value):
        return _hidden(value)
    try:
        text = _Writer(limit).show(value, 0)
    except RecursionError:
        return f"<repr failed: RecursionError, {type(value).__name__}>"
    return shorten(mask_text(text), limit)


def _hidden(value: object) -> str:
    return f"{HIDDEN[:-1]}, {type(value).__name__}>"


class _Writer:
    """One value, with a budget of characters."""

    def __init__(self, limit: int) -> None:
        self._left = limit + 1  # one more, so that it is seen that something is missing
        self._limit = limit
        self._path: set[int] = set()

    def show(self, value: Any, depth: int) -> str:
        """:return: the text, about as long as the budget allows at most"""
        cls = type(value)
        if cls in (str, bytes, bytearray):
            text = repr(value[: self._limit + 1])
        elif cls is int:
            text = repr(value) if value.bit_length() < _MAX_INT_BITS else f"<int of {value.bit_length()} bits>"
        elif dataclasses.is_dataclass(cls) and hasattr(cls.__repr__, "__wrapped__"):  # not one that the user wrote
            return self._fields(value, [field.name for field in dataclasses.fields(value) if field.repr], depth)
        elif isinstance(value, tuple) and hasattr(cls, "_fields"):
            return self._fields(value, list(cls._fields), depth)
        elif (base := next((base for base in _BRACKETS if isinstance(value, base)), None)) is not None:
            inner = self._container(value, base, depth)
            return inner if cls is base else f"{cls.__name__}({inner})"
        else:
            text = self._other(value)
        self._left -= len(text)
        return text

    def _container(self, value: Any, base: type, depth: int) -> str:
        start, end = _BRACKETS[base]
        if id(value) in self._path or depth >= _MAX_DEPTH:
            return f"{start}...{end}"
        if base in (set, frozenset) and not value:
            return f"{base.__name__}()"
        self._path.add(id(value))
        try:
            if base is dict:
                return (
                    start
                    + self._join(value.items(), len(value), lambda item: self._entry(item[0], item[1], depth))
                    + end
                )
            if base is tuple and len(value) == 1:
                end = ",)"
            if base is tuple and len(value) == 2 and hides(*value):  # an item of a dict
                return f"({self.show(value[0], depth + 1)}, {_hidden(value[1])})"
            hidden = set(hidden_args(value[:_MAX_ITEMS])) if base in (list, tuple) else ()
            items = ((i in hidden, item) for i, item in enumerate(value))
            return start + self._join(items, len(value), lambda item: self._item(item[0], item[1], depth)) + end
        finally:
            self._path.discard(id(value))

    def _item(self, is_hidden: bool, value: object, depth: int) -> str:
        return _hidden(value) if is_hidden else self.show(value, depth + 1)

    def _entry(self, key: object, value: object, depth: int) -> str:
        shown = _hidden(value) if hides(key, value) else None
        return f"{self.show(key, depth + 1)}: {shown or self.show(value, depth + 1)}"

    def _join(self, items: Iterable[Any], num: int, show: Callable[[Any], str]) -> str:
        """Any: items of the container."""
        parts: list[str] = []
        try:
            for item in islice(items, _MAX_ITEMS):
                if self._left <= 0:
                    break
                parts.append(show(item))
                self._left -= 2
        except RuntimeError:  # another thread changed it
            parts.append("<changed meanwhile>")
        text = ", ".join(parts)
        return text if len(parts) >= num else f"{text}, ... ({num} items)"

    def _other(self, value: Any) -> str:
        try:
            if _is_array(value):
                return _array(value)
            if isinstance(value, types.ModuleType):
                return f"<module {value.__name__!r}>"
            return shorten(repr(value), max(self._limit * 4, 1000))
        except Exception as exc:  # any class may have a broken repr, which must not hide the error that is reported
            return f"<repr failed: {type(exc).__name__}>"

    def _fields(self, value: Any, names: list[str], depth: int) -> str:
        name = type(value).__qualname__
        if id(value) in self._path or depth >= _MAX_DEPTH:
            return f"{name}(...)"
        self._path.add(id(value))
        try:
            return f"{name}({self._join(names, len(names), lambda field: self._field(value, field, depth))})"
        finally:
            self._path.discard(id(value))

    def _field(self, obj: Any, name: str, depth: int) -> str:
        try:
            value = getattr(obj, name)
        except Exception as exc:  # a property, or not set yet
            return f"{name}=<{type(exc).__name__}>"
        return f"{name}={_hidden(value) if hides(name, value) else self.show(value, depth + 1)}"


def _is_array(value: Any) -> bool:
    """:return: whether it is an array of numpy or a tensor of torch. Neither is imported for that"""
    return any(
        cls.__module__.partition(".")[0] in ("numpy", "torch") and cls.__name__ in ("ndarray", "Tensor")
        for cls in type(value).__mro__
    )


def _array(value: Any) -> str:
    # A tensor on a device: its numbers would have to be waited for, maybe forever.
    device = str(getattr(value, "device", "cpu"))
    num = 1
    for size in value.shape:
        num *= int(size)
    if num <= _MAX_NUMBERS and device == "cpu":
        return repr(value)
    place = f", {device}" if device != "cpu" else ""
    return f"<{type(value).__name__} {list(value.shape)} {str(value.dtype).removeprefix('torch.')}{place}>"
