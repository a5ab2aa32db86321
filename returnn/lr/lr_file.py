"""
The text format of the learning-rate file: ``{epoch: EpochData(learningRate=..., error={...})}``.

The file is data. It is read by a parser that knows numbers, strings and EpochData, and executes nothing.
"""

from __future__ import annotations

import ast
import math
import os
from collections.abc import Mapping
from typing import Any

import numpy

from returnn.errors import DataFileError
from returnn.lr.epoch_data import META_PREFIX, EpochData
from returnn.util.fs import fsync_dir, maybe_make_dirs

__all__ = ["dumps", "loads", "save", "load"]

# A dict whose entries are together at least that long is written with one entry per line.
_ONE_LINE_LIMIT = 40
# Constructors of numbers that older writers left in the file.
_NUMBER_MODULES = ("np", "numpy")
_NUMBER_TYPES = ("float64", "float32", "float16", "longdouble", "int64", "int32", "int16", "int8")


def dumps(epoch_data: Mapping[int, EpochData]) -> str:
    """
    :param epoch_data: by epoch
    :return: file content, with final newline. Numbers are written as plain Python numbers,
        so that each reader of the format can read them
    """
    return _dump(dict(epoch_data)) + "\n"


def save(filename: str, epoch_data: Mapping[int, EpochData]) -> None:
    """
    Write the file such that at each moment either the old or the new content is there, whole.

    :param filename: its directory is created if needed. If it is a link, the file behind it is written
    :param epoch_data: by epoch
    :raises DataFileError: it cannot be written. The old content is still there
    """
    content = dumps(epoch_data)
    filename = os.path.realpath(filename)  # a link stays a link
    try:
        _write(filename, content)
    except OSError as exc:
        raise DataFileError(
            f"Cannot write the learning-rate file {filename!r}: {exc.strerror or exc}."
            ' Check the permissions and the free space of its folder, or change the option "learning_rate_file".'
        ) from exc


def _write(filename: str, content: str) -> None:
    directory = os.path.dirname(filename)
    maybe_make_dirs(directory)
    tmp_filename = filename + ".new_tmp"
    try:
        with open(tmp_filename, "w", encoding="utf8") as f:
            f.write(content)
            f.flush()
            os.fsync(f.fileno())
        os.replace(tmp_filename, filename)
    except BaseException:
        if os.path.exists(tmp_filename):
            os.remove(tmp_filename)
        raise
    fsync_dir(directory)


def load(filename: str) -> dict[int, EpochData]:
    """
    :param filename: written by this package or by a peer
    :return: by epoch
    :raises DataFileError: not readable, or its content is not of this format; names file and position
    """
    try:
        with open(filename, encoding="utf8") as f:
            text = f.read()
    except OSError as exc:
        raise DataFileError(f"learning-rate file {filename!r} cannot be read: {exc.strerror or exc}.") from exc
    except UnicodeDecodeError as exc:
        raise DataFileError(
            f"learning-rate file {filename!r} is not a text file (byte {exc.start} is not UTF-8). {_TODO}"
        ) from exc
    return loads(text, filename=filename)


def loads(text: str, *, filename: str = "<string>") -> dict[int, EpochData]:
    """
    :param text: content of a learning-rate file
    :param filename: for the error message
    :return: by epoch
    :raises DataFileError: the content is not of this format
    """
    if not text.strip():
        raise DataFileError(f"learning-rate file {filename!r} is empty. {_TODO}")
    try:
        # Spaces before the expression would be an indentation error; keep line numbers.
        content = "\n" * text[: len(text) - len(text.lstrip())].count("\n") + text.strip()
        return _Parser(content).epochs(ast.parse(content, mode="eval").body)
    except _FormatError as exc:
        raise DataFileError(f"learning-rate file {filename!r} is broken at {exc}. {_TODO}") from exc
    except SyntaxError as exc:
        where = f"line {exc.lineno}, column {exc.offset}"
        raise DataFileError(f"learning-rate file {filename!r} is broken at {where}: {exc.msg}. {_TODO}") from exc
    except (RecursionError, MemoryError, ValueError) as exc:  # nested too deeply, null bytes
        raise DataFileError(f"learning-rate file {filename!r} is broken: {exc}. {_TODO}") from exc


_TODO = (
    "Repair it, or restore a copy, or remove it to go on without the stored learning rates and scores. "
    'Expected is {1: EpochData(learningRate=0.1, error={"dev_loss_ce": 1.0}), ...}.'
)


# Any: whatever may stand in the file.
def _dump(value: Any) -> str:
    if isinstance(value, numpy.generic) or (isinstance(value, numpy.ndarray) and value.ndim == 0):
        value = value.item()
    if isinstance(value, EpochData):
        return f"EpochData(learningRate={_dump(value.learning_rate)}, error={_dump(value.error_with_meta())})"
    if isinstance(value, float):
        if math.isnan(value):
            return "float('nan')"
        if math.isinf(value):
            return "float('inf')" if value > 0 else "float('-inf')"
        return repr(float(value))
    if isinstance(value, Mapping):
        entries = [f"{_dump(key)}: {_dump(value[key])}" for key in sorted(value, key=_sort_key)]
        if sum(map(len, entries)) >= _ONE_LINE_LIMIT:
            return "{\n" + "".join(entry + ",\n" for entry in entries) + "}"
        return "{" + ", ".join(entries) + "}"
    if isinstance(value, list):
        return "[\n" + "".join(_dump(item) + ",\n" for item in value) + "]"
    if isinstance(value, tuple):
        return f"({_dump(value[0])},)" if len(value) == 1 else "(" + ", ".join(map(_dump, value)) + ")"
    if value is None or isinstance(value, (bool, int, str)):
        return repr(value)
    # A fact of unknown type (":meta:..."): a string can be read by everyone.
    return repr(str(value))


def _sort_key(key: Any) -> tuple[str, Any]:
    return type(key).__name__, key


class _FormatError(Exception):
    pass


class _Parser:
    """Turns the syntax tree of the file into EpochData; anything else than data is an error."""

    def __init__(self, text: str):
        self._lines = text.splitlines()

    def epochs(self, node: ast.expr) -> dict[int, EpochData]:
        if not isinstance(node, ast.Dict):
            raise self._error(node, "expected a dict {epoch: EpochData(...)}")
        res: dict[int, EpochData] = {}
        for key_node, value_node in self._items(node):
            epoch = self._literal(key_node)
            if not isinstance(epoch, int) or isinstance(epoch, bool):
                raise self._error(key_node, f"expected an epoch number, got {epoch!r}")
            if epoch in res:
                raise self._error(key_node, f"epoch {epoch} occurs twice")
            res[epoch] = self._epoch_data(value_node)
        return res

    def _epoch_data(self, node: ast.expr) -> EpochData:
        if not (isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id == "EpochData"):
            raise self._error(node, "expected EpochData(...)")
        args: dict[str, ast.expr] = {}
        if len(node.args) > 2 or any(isinstance(arg, ast.Starred) for arg in node.args):
            raise self._error(node, "expected EpochData(learningRate=..., error=...)")
        args.update(zip(("learning_rate", "error"), node.args, strict=False))
        for keyword in node.keywords:
            name = "learning_rate" if keyword.arg == "learningRate" else keyword.arg
            if name not in ("learning_rate", "error", "meta") or name in args:
                raise self._error(keyword.value, f"unexpected argument {keyword.arg!r} of EpochData")
            args[name] = keyword.value
        if "learning_rate" not in args:
            raise self._error(node, "EpochData without learningRate")
        learning_rate = self._literal(args["learning_rate"])
        if learning_rate is not None:
            learning_rate = self._number(args["learning_rate"])
        res = EpochData(learning_rate)
        if "error" in args:
            self._fill_error(res, args["error"])
        if "meta" in args:
            meta = self._literal(args["meta"])
            if meta is not None and not isinstance(meta, dict):
                raise self._error(args["meta"], "expected a dict as meta")
            res.meta.update(meta or {})
        return res

    def _fill_error(self, epoch_data: EpochData, node: ast.expr) -> None:
        if not isinstance(node, ast.Dict):
            if self._literal(node) is not None:
                epoch_data.update(EpochData(None, self._number(node)).error)
            return
        for key_node, value_node in self._items(node):
            key = self._literal(key_node)
            if not isinstance(key, str):
                raise self._error(key_node, f"expected a score name, got {key!r}")
            value = self._literal(value_node) if key.startswith(META_PREFIX) else self._number(value_node)
            epoch_data.update({key: value})

    def _items(self, node: ast.Dict) -> list[tuple[ast.expr, ast.expr]]:
        items = []
        for key_node, value_node in zip(node.keys, node.values, strict=True):
            if key_node is None:
                raise self._error(value_node, "** is not allowed")
            items.append((key_node, value_node))
        return items

    def _number(self, node: ast.expr) -> float:
        value = self._literal(node)
        if not isinstance(value, (int, float)):
            raise self._error(node, f"expected a number, got {value!r}")
        try:
            return float(value)
        except OverflowError as exc:
            raise self._error(node, "number is too large") from exc

    def _literal(self, node: ast.expr) -> Any:
        """:return: the value of a literal, or of one of the known forms of numbers"""
        if isinstance(node, ast.Constant) and isinstance(node.value, (int, float, str, type(None))):
            return node.value
        if isinstance(node, ast.Name) and node.id in ("nan", "inf"):
            return float(node.id)
        if isinstance(node, ast.Attribute) and self._is_number_module(node.value) and node.attr in ("nan", "inf"):
            return float(node.attr)
        if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
            value = self._literal(node.operand)
            if isinstance(value, (int, float)):
                return -value if isinstance(node.op, ast.USub) else value
        if isinstance(node, ast.Call):
            return self._number_call(node)
        if isinstance(node, ast.List):
            return [self._literal(item) for item in node.elts]
        if isinstance(node, ast.Tuple):
            return tuple(self._literal(item) for item in node.elts)
        if isinstance(node, ast.Dict):
            res = {}
            for key_node, value_node in self._items(node):
                key = self._literal(key_node)
                if not isinstance(key, (int, float, str, type(None))):
                    raise self._error(key_node, "expected a simple key")
                res[key] = self._literal(value_node)
            return res
        raise self._error(node, "only numbers, strings and EpochData(...) are allowed here")

    def _number_call(self, node: ast.Call) -> float | int:
        """float("inf"), np.float64(0.1)"""
        func = node.func
        is_float = isinstance(func, ast.Name) and func.id == "float"
        is_numpy = isinstance(func, ast.Attribute) and self._is_number_module(func.value) and func.attr in _NUMBER_TYPES
        if not (is_float or is_numpy) or len(node.args) != 1 or node.keywords:
            raise self._error(node, "only numbers, strings and EpochData(...) are allowed here")
        value = self._literal(node.args[0])
        if isinstance(value, int) and isinstance(func, ast.Attribute) and func.attr.startswith("int"):
            return value
        if isinstance(value, (int, float, str)):
            try:
                return float(value)
            except (ValueError, OverflowError):
                pass
        raise self._error(node, f"not a number: {value!r}")

    @staticmethod
    def _is_number_module(node: ast.expr) -> bool:
        return isinstance(node, ast.Name) and node.id in _NUMBER_MODULES

    def _error(self, node: ast.expr, what: str) -> _FormatError:
        line = self._lines[node.lineno - 1] if 0 < node.lineno <= len(self._lines) else ""
        shown = line[node.col_offset : node.col_offset + 60]
        return _FormatError(f"line {node.lineno}, column {node.col_offset + 1}: {what}, near {shown!r}")
