"""
Parsing of Python literals in data files and command lines, without eval.
"""

from __future__ import annotations

import ast
import contextlib
import json
import re
from collections.abc import Callable, Mapping
from typing import Any

import numpy

from returnn.errors import UserError

__all__ = ["LiteralError", "NUMPY_SCALARS", "parse_literal", "parse_literal_file"]


class LiteralError(UserError, ValueError):
    """A text is not a literal. The message has file, line and column."""


def _numpy_scalars() -> dict[str, Callable[..., Any]]:
    names = ["float16", "float32", "float64", "bool_"] + [
        f"{u}int{bits}" for u in ("", "u") for bits in (8, 16, 32, 64)
    ]
    result: dict[str, Callable[..., Any]] = {}
    for prefix in ("np.", "numpy."):
        result.update({prefix + name: getattr(numpy, name) for name in names})
        result.update({prefix + name: bool for name in ("True_", "False_")})
    return result


#: ``np.float32(...)`` and co, as numpy >= 2 prints its scalars
NUMPY_SCALARS: Mapping[str, Callable[..., Any]] = _numpy_scalars()

_BUILTIN_CONSTRUCTORS: Mapping[str, Callable[..., Any]] = {
    "float": float,
    "int": int,
    "set": set,
    "frozenset": frozenset,
    "dict": dict,
    "list": list,
    "tuple": tuple,
    "OrderedDict": dict,
    "collections.OrderedDict": dict,
}
_NAMES: Mapping[str, Any] = {
    "nan": float("nan"),
    "inf": float("inf"),
    "NaN": float("nan"),
    "Infinity": float("inf"),  # str(Decimal), e.g. a duration in the meta text of an ogg-zip
    "np.nan": float("nan"),
    "np.inf": float("inf"),
    "numpy.nan": float("nan"),
    "numpy.inf": float("inf"),
    "np.True_": True,
    "np.False_": False,
}


def parse_literal(
    text: str | bytes,
    *,
    constructors: Mapping[str, Callable[..., Any]] | None = None,
    filename: str | None = None,
) -> Any:
    """
    Value of a Python literal.

    Beyond what ``ast.literal_eval`` accepts: ``nan``, ``inf``, ``float("nan")``, ``set([..])``, ``dict(..)``,
    numpy scalars as numpy prints them, and calls of the given constructors. Never runs code of the text.
    Large lists and dicts of strings, numbers and None take a fast path.

    :param text: bytes are decoded as UTF-8
    :param constructors: dotted name -> function, e.g. {"EpochData": EpochData}
    :param filename: for the error text
    :return: the value; Any: depends on the text
    :raises LiteralError: with file (if given), line and column
    """
    if isinstance(text, bytes):
        try:
            text = text.decode("utf8")
        except UnicodeDecodeError as exc:
            raise LiteralError(f"{filename or 'The text'} is not UTF-8: {exc}.") from exc
    if len(text) > _FAST_PATH_MIN_LEN:
        found, value = _parse_via_json(text)
        if found:
            return value
    try:
        tree = ast.parse(text.strip(), mode="eval", filename=filename or "<literal>")
    except SyntaxError as exc:
        # Positions count from the stripped text; give them in the whole text.
        lines_before = text[: len(text) - len(text.lstrip())].count("\n")
        raise LiteralError(
            _describe(
                filename, (exc.lineno or 1) + lines_before, exc.offset or 1, f"{exc.msg}", _line(text, exc.lineno)
            )
        ) from exc
    except (ValueError, RecursionError, MemoryError) as exc:
        raise LiteralError(f"Not a Python literal{f' (in {filename})' if filename else ''}: {exc}.") from exc
    evaluator = _Evaluator(constructors or {}, filename, text)
    try:
        return evaluator.value(tree.body)
    except RecursionError as exc:
        raise LiteralError(f"Too deeply nested literal{f' (in {filename})' if filename else ''}.") from exc


def parse_literal_file(filename: str, *, constructors: Mapping[str, Callable[..., Any]] | None = None) -> Any:
    """As :func:`parse_literal`, of the whole UTF-8 text file (not compressed)."""
    with open(filename, encoding="utf8") as f:
        return parse_literal(f.read(), constructors=constructors, filename=filename)


def _line(text: str, lineno: int | None) -> str:
    lines = text.strip().splitlines()
    return lines[lineno - 1] if lineno and 0 < lineno <= len(lines) else text


def _describe(filename: str | None, lineno: int, column: int, problem: str, source: str) -> str:
    source = source.strip()
    if len(source) > 60:
        source = source[:60] + "..."
    where = f"{filename}, line {lineno}, column {column}" if filename else f"line {lineno}, column {column}"
    return f"Not a Python literal (in {where}): {problem}: {source!r}."


class _Evaluator:
    """Walks the syntax tree of one literal."""

    def __init__(self, constructors: Mapping[str, Callable[..., Any]], filename: str | None, text: str) -> None:
        self._constructors = constructors
        self._filename = filename
        self._text = text

    def _error(self, node: ast.AST, problem: str) -> LiteralError:
        lineno, column = getattr(node, "lineno", 1), getattr(node, "col_offset", 0) + 1
        source = ast.get_source_segment(self._text.strip(), node) if len(self._text) < 1_000_000 else ""  # type: ignore[arg-type]
        lines_before = self._text[: len(self._text) - len(self._text.lstrip())].count("\n")
        return LiteralError(_describe(self._filename, lineno + lines_before, column, problem, source or ""))

    def value(self, node: ast.expr) -> Any:
        if isinstance(node, ast.Constant):
            return node.value
        if isinstance(node, ast.List):
            return [self.value(item) for item in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple([self.value(item) for item in node.elts])
        if isinstance(node, ast.Set):
            return self._checked(node, set, [self.value(item) for item in node.elts])
        if isinstance(node, ast.Dict):
            return self._dict(node)
        if (
            isinstance(node, ast.UnaryOp)
            and isinstance(node.op, (ast.UAdd, ast.USub))
            and not isinstance(node.operand, ast.UnaryOp)
        ):
            operand = self.value(node.operand)
            if isinstance(operand, (int, float, complex)) and not isinstance(operand, bool):
                return -operand if isinstance(node.op, ast.USub) else +operand
        if isinstance(node, ast.BinOp) and isinstance(node.op, (ast.Add, ast.Sub)):
            left, right = self.value(node.left), self.value(node.right)
            if isinstance(right, complex) and isinstance(left, (int, float)):
                return left + right if isinstance(node.op, ast.Add) else left - right
        if isinstance(node, (ast.Name, ast.Attribute)):
            name = _dotted_name(node)
            if name in _NAMES:
                return _NAMES[name]
            raise self._error(node, "unknown name")
        if isinstance(node, ast.Call):
            return self._call(node)
        raise self._error(node, "expected a literal value, got an expression")

    def _dict(self, node: ast.Dict) -> dict[Any, Any]:
        result = {}
        for key, value in zip(node.keys, node.values, strict=True):
            if key is None:
                raise self._error(node, "'**' is not allowed")
            key_value = self.value(key)
            try:
                result[key_value] = self.value(value)
            except TypeError as exc:
                raise self._error(key, str(exc)) from exc
        return result

    def _call(self, node: ast.Call) -> Any:
        name = _dotted_name(node.func)
        func = self._constructors.get(name) or NUMPY_SCALARS.get(name) or _BUILTIN_CONSTRUCTORS.get(name)
        if func is None:
            known = sorted([*self._constructors, "float", "set", "np.float64"])
            raise self._error(node, f"call of {name or 'an expression'}, only {', '.join(known)} and co are allowed")
        args = [self.value(arg) for arg in node.args]
        kwargs = {}
        for keyword in node.keywords:
            if keyword.arg is None:
                raise self._error(node, "'**' is not allowed")
            kwargs[keyword.arg] = self.value(keyword.value)
        return self._checked(node, func, *args, **kwargs)

    def _checked(self, node: ast.expr, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        try:
            return func(*args, **kwargs)
        except (TypeError, ValueError, OverflowError) as exc:
            raise self._error(node, str(exc)) from exc


def _dotted_name(node: ast.expr) -> str:
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        base = _dotted_name(node.value)
        return f"{base}.{node.attr}" if base else ""
    return ""


# Below that, building the syntax tree is fast enough.
_FAST_PATH_MIN_LEN = 2000
# Simple strings of both quotes; strings with escapes; words outside of strings.
_TOKEN_RE = re.compile(
    r"""'([^'"\\\n]*)'|("[^"\\\n]*")|('(?:[^'\\\n]|\\[^\n])*'|"(?:[^"\\\n]|\\[^\n])*")|([A-Za-z_]\w*)|(#)"""
)
_WORDS = {"None": "null", "True": "true", "False": "false"}
_JSON_WORDS = ("true", "false", "null")


class _NotSimple(Exception):
    """Text for which the conversion to json is not certain to be right."""


def _to_json_token(match: re.Match[str]) -> str:
    kind = match.lastindex
    if kind == 1:
        return f'"{match[1]}"'
    if kind == 2:
        return match[2]
    if kind == 3:
        try:
            # Not as ASCII: two escaped surrogates would become one character.
            return json.dumps(ast.literal_eval(match[3]), ensure_ascii=False)
        except (SyntaxError, ValueError) as exc:
            raise _NotSimple from exc
    if kind == 4:
        word = _WORDS.get(match[4])
        if word is not None:
            return word
        # The exponent of a number, as the "e" in 1e-5, is the only other word in a simple literal.
        start = match.start()
        if match[4][0] in "eE" and start and match.string[start - 1].isdigit() and not match[4][1:].strip("0123456789"):
            return match[4]
    raise _NotSimple


def _parse_via_json(text: str) -> tuple[bool, Any]:
    """
    Lists, dicts, strings, numbers, bools and None written such that json means the same: several times faster.
    Everything else (tuples, other keys than strings, comments, prefixes of strings, ...) is not accepted by the json
    parser after this conversion, so the slow path decides.

    :return: whether it worked, the value
    """
    if text.lstrip()[:1] not in ("[", "{"):
        return False, None
    text = _without_last_comma(text)
    try:
        if "\\" not in text and not ("'" in text and '"' in text) and not any(word in text for word in _JSON_WORDS):
            # Each quote is a delimiter: faster still, unless there is None, True or False.
            with contextlib.suppress(ValueError):
                return True, json.loads(text.replace("'", '"'), parse_constant=_refuse)
        return True, json.loads(_TOKEN_RE.sub(_to_json_token, text))
    except (_NotSimple, ValueError, RecursionError):
        return False, None


def _refuse(_word: str) -> None:
    """:raises ValueError: for NaN and Infinity, which json knows"""
    raise ValueError


def _without_last_comma(text: str) -> str:
    """:return: without a comma before the last bracket, which json does not allow"""
    text = text.rstrip()
    body = text[:-1].rstrip()
    if body.endswith(","):
        body = body[:-1].rstrip()
        if not body.endswith(("[", "{", ",")):
            return body + text[-1]
    return text
