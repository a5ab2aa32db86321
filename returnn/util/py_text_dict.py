"""
Files with one Python dict as text, tag -> value: what search jobs write and tools read. No code of the file is run.
"""

from __future__ import annotations

import gzip
import io
import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy

from returnn.errors import DataFileError
from returnn.util.fs import atomic_write, read_text
from returnn.util.literal import LiteralError, parse_literal

__all__ = ["load_text_dict", "save_text_dict"]

# As numpy >= 2 prints its strings.
_CONSTRUCTORS = {"np.str_": str, "numpy.str_": str}
# Entries which are parsed at once: the syntax tree of a large file would need much memory.
_BLOCK_CHARS = 1 << 18
# An item that starts a line, after a line that ends an item.
_ITEM_START = re.compile(r",[ \t]*\r?\n(?=[ \t]*['\"])")


def load_text_dict(filename: str) -> dict[str, Any]:
    """
    Read a text file (UTF-8, gzip if the name ends with ``.gz``) with one dict literal, as written by
    :func:`save_text_dict` or by ``pprint``. ``nan``, ``inf`` and numpy scalars as numpy prints them are fine.

    :param filename: path
    :return: key -> value, in the order of the file. Any: depends on the file
    :raises DataFileError: missing, not text, no dict literal (with file and line), or keys that are not strings
    """
    text = read_text(filename)
    result = _parse_in_blocks(text, filename)
    if result is None:
        try:
            result = parse_literal(text, constructors=_CONSTRUCTORS, filename=filename)
        except LiteralError as exc:
            raise DataFileError(
                f"{exc} Expected one Python dict literal, e.g. {{'tag-1': 'some text', 'tag-2': 'more'}}."
            ) from exc
    if not isinstance(result, dict):
        raise DataFileError(
            f"{filename}: expected one Python dict literal {{'tag': value, ...}}, got {type(result).__name__}."
        )
    for key in result:
        if not isinstance(key, str):
            raise DataFileError(f"{filename}: expected tags (str) as keys, got {key!r} ({type(key).__name__}).")
    return result


def _parse_in_blocks(text: str, filename: str) -> dict[Any, Any] | None:
    """:return: None if the layout of the file is another one, or broken: then only parsing it at once can tell"""
    stripped = text.strip()
    if len(stripped) <= _BLOCK_CHARS or not (stripped.startswith("{") and stripped.endswith("}")):
        return None
    result: dict[Any, Any] = {}
    for block in _iter_blocks(stripped[1:-1]):
        try:
            # The newline ends a comment.
            part = parse_literal("{" + block + "\n}", constructors=_CONSTRUCTORS, filename=filename)
        except LiteralError:
            return None
        if not isinstance(part, dict):
            return None
        result.update(part)
    return result


def _iter_blocks(body: str) -> Iterator[str]:
    """:return: pieces that end where a new item seems to start in a new line"""
    start = 0
    while start < len(body):
        match = _ITEM_START.search(body, start + _BLOCK_CHARS)
        end = match.end() if match else len(body)
        yield body[start:end]
        start = end


def save_text_dict(filename: str, items: Iterable[tuple[str, Any]] | Mapping[str, Any]) -> None:
    """
    Write a file for :func:`load_text_dict`, one item per line. It is there only when it is complete.

    :param filename: path, gzip if it ends with ``.gz``
    :param items: tag and value; numpy scalars become plain numbers. Any: whatever has a literal: str, numbers, None,
        lists, tuples, dicts, sets of such
    :raises TypeError: a value that has no literal
    """
    pairs = items.items() if isinstance(items, Mapping) else items
    with atomic_write(filename, "wb") as raw:
        if filename.endswith(".gz"):
            # No name and time inside: equal content gives equal files.
            with gzip.GzipFile(filename="", mode="wb", fileobj=raw, mtime=0) as zipped:
                _write_items(zipped, pairs)  # type: ignore[arg-type]
        else:
            _write_items(raw, pairs)


def _write_items(raw: io.BufferedIOBase | Any, pairs: Iterable[tuple[str, Any]]) -> None:
    raw.write(b"{\n")
    for key, value in pairs:
        raw.write(f"{str(key)!r}: {_plain(value)!r},\n".encode())
    raw.write(b"}\n")


def _plain(value: Any) -> Any:
    """:return: the same of builtin types only"""
    if value is None or type(value) in (str, int, float, bool, bytes, complex):
        return value
    if isinstance(value, numpy.generic):
        return _plain(value.item())
    if isinstance(value, numpy.ndarray):
        return value.tolist()
    if isinstance(value, Mapping):
        return {_plain(key): _plain(item) for key, item in value.items()}
    for kind in (list, tuple, set, frozenset):
        if isinstance(value, kind):
            return kind([_plain(item) for item in value])
    if isinstance(value, (int, float, str)):  # of a subclass
        for scalar in (int, float, str):
            if isinstance(value, scalar):
                return scalar(value)
    raise TypeError(f"save_text_dict: {value!r} ({type(value).__name__}) has no Python literal")
