"""
Reading of vocabulary files. Nothing in a file is executed, unless unsafe_load is set and it is a pickle.
"""

from __future__ import annotations

import json
import os
import zlib
from typing import Any

from returnn._state import state
from returnn.datasets._vocabulary.label_table import LabelTable
from returnn.errors import DataFileError, describe
from returnn.options.loading import LoadingOptions
from returnn.util import restricted_pickle
from returnn.util.fs import open_binary
from returnn.util.literal import parse_literal

__all__ = ["read_vocab_file", "read_literal_dict"]

# Files in the cache of the process.
_MAX_CACHED_FILES = 32
# First byte of every pickle since protocol 2. No UTF-8 text starts with it.
_PICKLE_MAGIC = b"\x80"


def read_vocab_file(filename: str) -> LabelTable:
    """
    Labels of a file. Each may be compressed, with name ``*.gz``:

    - pickled dict label -> id: ``*.pkl``, or recognised by its first byte; plain data only
    - ``*.json``: dict label -> id, or list of labels
    - text that starts with ``{``: Python dict literal label -> id
    - other text: one label per line, nothing stripped

    A file that did not change (by modification time and size) is read once per process.

    :param filename: text is UTF-8
    :raises DataFileError: missing or broken, ids not 0..n-1, or not plain data
    """
    try:
        stat = os.stat(filename)
    except OSError as exc:
        raise DataFileError(
            f"Cannot open vocabulary file {filename!r}: {exc.strerror or exc}. Check the path."
        ) from exc
    key = (os.path.abspath(filename), stat.st_mtime_ns, stat.st_size)
    # Take it out and put it in again: the oldest use is the first of the dict.
    table = state.vocab_files.pop(key, None)
    if table is None:
        table = _parse(_read_bytes(filename), filename)
        while len(state.vocab_files) >= _MAX_CACHED_FILES:
            del state.vocab_files[next(iter(state.vocab_files))]
    state.vocab_files[key] = table
    return table


def read_literal_dict(filename: str) -> dict[Any, Any]:
    """
    :param filename: text with one Python dict literal
    :return: Any: depends on the file
    :raises DataFileError: missing, not a literal, or no dict
    """
    value = _parse_literal(_decode(_read_bytes(filename), filename), filename)
    if not isinstance(value, dict):
        raise DataFileError(describe("Broken file", where=f"file {filename!r}", expected="a Python dict", got=value))
    return value


def _read_bytes(filename: str) -> bytes:
    try:
        with open_binary(filename) as f:
            return f.read()
    except DataFileError:
        raise
    except (OSError, EOFError, zlib.error) as exc:
        raise DataFileError(f"Cannot read file {filename!r}: {exc}.") from exc


def _decode(content: bytes, filename: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataFileError(
            f"Vocabulary file {filename!r} is not UTF-8 text: {exc}. Convert it, e.g. with iconv; a compressed file needs"
            " a name that ends with .gz, a pickle one that ends with .pkl."
        ) from exc


def _parse_literal(text: str, filename: str) -> Any:
    """:return: Any: depends on the text"""
    try:
        return parse_literal(text, filename=filename)
    except ValueError as exc:  # LiteralError
        raise DataFileError(
            f"{exc} A vocabulary file that starts with '{{' must be one Python dict literal, label to id."
        ) from exc


def _parse(content: bytes, filename: str) -> LabelTable:
    source = f"vocabulary file {filename!r}"
    name = filename.removesuffix(".gz")
    if name.endswith(".pkl") or content.startswith(_PICKLE_MAGIC):
        value = restricted_pickle.loads(
            content, filename=source, encoding="utf8", unsafe=LoadingOptions.from_global_config().allow_unsafe
        )
        if not isinstance(value, dict):
            raise DataFileError(describe("Broken vocabulary", where=source, expected="a pickled dict", got=value))
        return LabelTable.from_dict(value, source=source)
    text = _decode(content, filename)
    if name.endswith(".json"):
        return _parse_json(text, source)
    if text.startswith("{"):
        value = _parse_literal(text, filename)
        if not isinstance(value, dict):
            raise DataFileError(describe("Broken vocabulary", where=source, expected="a Python dict", got=value))
        return LabelTable.from_dict(value, source=source)
    labels = text.splitlines()
    if not labels:
        raise DataFileError(f"The vocabulary has no labels (in {source}): the file is empty.")
    return LabelTable.from_list(labels)


def _parse_json(text: str, source: str) -> LabelTable:
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as exc:
        raise DataFileError(f"Broken vocabulary (in {source}): not JSON: {exc}.") from exc
    if isinstance(value, dict):
        return LabelTable.from_dict(value, source=source)
    if isinstance(value, list) and value and all(isinstance(label, str) for label in value):
        return LabelTable.from_list(value)
    expected = "a dict label to id, or a list of labels"
    raise DataFileError(describe("Broken vocabulary", where=source, expected=expected, got=value))
