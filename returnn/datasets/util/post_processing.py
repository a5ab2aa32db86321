"""
The function str -> str behind an option like ``orth_post_process``: names of cleaners, a chain of them, or a function.
"""

from __future__ import annotations

import ast
import difflib
from collections.abc import Callable, Iterator
from typing import Any

from returnn.datasets.util import cleaners
from returnn.errors import DatasetOptionError

__all__ = ["PostProcessor", "get_post_processor_function", "is_only_cleaners"]

#: Function on the text of one sequence
PostProcessor = Callable[[str], str]

# Cleaners that are made by a call with arguments.
_FACTORIES = ("get_remove_chars", "get_replace")


def _identity(text: str) -> str:
    return text


class _Chain:
    """Applies functions one after the other. Can be pickled."""

    def __init__(self, functions: list[PostProcessor]) -> None:
        self._functions = functions

    def __call__(self, text: str) -> str:
        for function in self._functions:
            text = function(text)
        return text


def get_post_processor_function(opts: Any) -> PostProcessor:
    """
    :param opts: None or empty: no change. Function: itself. str: name of a cleaner in
        :mod:`returnn.datasets.util.cleaners`, or several with commas, each maybe with literal arguments,
        e.g. ``"lowercase,get_remove_chars(',/')"``. list or tuple: chain of these. Any: of any of these types
    :return: function str -> str, tried on one word. All but given functions can be pickled
    :raises DatasetOptionError: anything else; also an AssertionError and ValueError. Code in the text is not run
    """
    if not opts:
        return _identity
    functions = list(_iter_functions(opts))
    function = functions[0] if len(functions) == 1 else _Chain(functions)
    result = function("test")
    if not isinstance(result, str):
        raise DatasetOptionError(
            f"post-processing {opts!r} does not seem as a valid function str->str: for 'test' it returns {result!r} "
            f"({type(result).__name__}). Name text cleaners, e.g. 'english_cleaners', or give a function of one text."
        )
    return function


def is_only_cleaners(opts: Any) -> bool:
    """
    :param opts: as for :func:`get_post_processor_function`. Any: as there
    :return: whether they are text cleaners only, which give the same for the same text each time
    """
    if not callable(opts) or isinstance(opts, str):
        return isinstance(opts, str) or all(is_only_cleaners(item) for item in opts or ())
    return getattr(opts, "__module__", None) == cleaners.__name__


def _iter_functions(opts: Any) -> Iterator[PostProcessor]:
    if isinstance(opts, str):
        yield from _functions_of_text(opts)
    elif callable(opts):
        yield opts
    elif isinstance(opts, (list, tuple)):
        for item in opts:
            if item:
                yield from _iter_functions(item)
    else:
        raise DatasetOptionError(
            f"post-processing: expected the name of a text cleaner, a function or a list of these, got {opts!r} "
            f"({type(opts).__name__})."
        )


def _functions_of_text(text: str) -> Iterator[PostProcessor]:
    try:
        node = ast.parse(text.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError) as exc:
        raise _not_understood(text, f"syntax error: {getattr(exc, 'msg', exc)}") from exc
    for item in node.elts if isinstance(node, (ast.Tuple, ast.List)) else [node]:
        yield _function_of_node(item, text)


def _function_of_node(node: ast.expr, text: str) -> PostProcessor:
    if isinstance(node, ast.Name):
        if node.id in _FACTORIES:
            raise _not_understood(text, f"{node.id} needs arguments, e.g. {node.id}(',')")
        return _cleaner(node.id, text)
    if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name)):
        raise _not_understood(text, "expected names of text cleaners")
    if node.func.id not in _FACTORIES:
        _cleaner(node.func.id, text)
        raise _not_understood(text, f"{node.func.id} takes no arguments, write only its name")
    try:
        args = [ast.literal_eval(arg) for arg in node.args]
        kwargs = {keyword.arg or "**": ast.literal_eval(keyword.value) for keyword in node.keywords}
        if not all(isinstance(arg, str) for arg in [*args, *kwargs.values()]):
            raise ValueError("the arguments must be strings")
        function: PostProcessor = getattr(cleaners, node.func.id)(*args, **kwargs)
    except (ValueError, TypeError, SyntaxError) as exc:
        raise _not_understood(text, f"arguments of {node.func.id}: {exc}") from exc
    return function


def _cleaner(name: str, text: str) -> PostProcessor:
    if name not in cleaners.__all__:
        close = difflib.get_close_matches(name, cleaners.__all__, n=1)
        raise _not_understood(text, f"no text cleaner {name!r}" + (f", did you mean {close[0]!r}" if close else ""))
    function: PostProcessor = getattr(cleaners, name)
    return function


def _not_understood(text: str, problem: str) -> DatasetOptionError:
    return DatasetOptionError(
        f"post-processing {text!r} is not understood: {problem}. Text cleaners: {', '.join(cleaners.__all__)}; "
        "several with commas. Else give a function str -> str."
    )
