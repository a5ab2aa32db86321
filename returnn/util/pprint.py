"""
Objects as text: deterministic, or shortened for the eye.
"""

from __future__ import annotations

import base64
import gzip
import math
from collections import deque
from collections.abc import Collection
from typing import Any

import numpy

from returnn._state import state
from returnn.util.kwargs import simple_obj_repr_args

__all__ = [
    "better_repr",
    "simple_obj_repr",
    "pretty_print",
    "set_pretty_print_default_limit",
    "set_pretty_print_as_bytes",
]

# A dict whose entries are not longer than this in sum stays on one line.
_DICT_ONE_LINE_MAX_LEN = 40


def better_repr(o: Any) -> str:
    """
    Deterministic text, for files that are compared and read again. Contract of the learning-rate file.

    :param o: lists with an item per line; dicts and sets sorted; non-finite floats as ``float('nan')``
    :return: a Python expression, if the leaves have one
    """
    if isinstance(o, list):
        return "[\n" + "".join(f"{better_repr(item)},\n" for item in o) + "]"
    if isinstance(o, deque):
        return "deque([\n" + "".join(f"{better_repr(item)},\n" for item in o) + "])"
    if type(o) is tuple:
        if len(o) == 1:
            return f"({better_repr(o[0])},)"
        return "(" + ", ".join(map(better_repr, o)) + ")"
    if isinstance(o, dict):
        entries = [
            f"{better_repr(key)}: {better_repr(value)}" for key, value in sorted(o.items(), key=lambda item: item[0])
        ]
        if sum(map(len, entries)) >= _DICT_ONE_LINE_MAX_LEN:
            return "{\n" + "".join(f"{entry},\n" for entry in entries) + "}"
        return "{" + ", ".join(entries) + "}"
    if isinstance(o, set):
        return "set([\n" + "".join(f"{better_repr(item)},\n" for item in sorted(o)) + "])"
    if isinstance(o, float) and not math.isfinite(o):
        return f"float('{float(o)}')"
    return repr(o)


def simple_obj_repr(obj: Any) -> str:
    """:return: ``Class(arg=value, ...)`` over the arguments of its ``__init__``, which must be attributes too"""
    args = ", ".join(f"{name}={better_repr(value)}" for name, value in simple_obj_repr_args(obj).items())
    return f"{type(obj).__name__}({args})"


def set_pretty_print_default_limit(limit: float) -> None:
    """:param limit: of :func:`pretty_print`, in characters; float("inf") for none"""
    state.pretty_print_limit = limit


def set_pretty_print_as_bytes(as_bytes: bool) -> None:
    """:param as_bytes: whether :func:`pretty_print` shows arrays as an expression that gives exactly this array"""
    state.pretty_print_as_bytes = as_bytes


def pretty_print(obj: Any, limit: float | None = None) -> str:
    """
    :param obj: anything
    :param limit: in characters; longer texts are cut, with "..."
    :return: repr, and for arrays the shape, for collections the length and the first item if that is not obvious
    """
    if isinstance(obj, numpy.ndarray) and state.pretty_print_as_bytes:
        data = base64.encodebytes(gzip.compress(numpy.ascontiguousarray(obj).tobytes(), mtime=0))
        return (
            f"numpy.frombuffer(gzip.decompress(base64.decodebytes({data!r})), dtype='{obj.dtype}').reshape({obj.shape})"
        )
    text = repr(obj)
    limit = state.pretty_print_limit if limit is None else limit
    if len(text) > limit:
        text = text[: max(int(limit) - 3, 0)] + "..."
    if isinstance(obj, numpy.ndarray):
        return f"{text}, shape={obj.shape}"
    if isinstance(obj, Collection) and not isinstance(obj, str):
        if len(obj) > 5 or not isinstance(obj, (list, tuple, dict)):
            text += f", len = {len(obj)}"
            if (
                isinstance(obj, (list, tuple))
                and isinstance(obj[0], (dict, Collection))
                and not isinstance(obj[0], str)
            ):
                text += f", _[0]: {{{pretty_print(obj[0], limit)}}}"
    return text
