"""
Files of orthography symbols for LmDataset: lists, maps to indices, maps to replacements.
"""

from __future__ import annotations

import re
from typing import Any

from returnn.errors import DataFileError
from returnn.util import restricted_pickle
from returnn.util.fs import open_binary, read_text
from returnn.util.json_comments import load_json
from returnn.util.literal import LiteralError, parse_literal
from returnn.util.strings import parse_orthography_into_symbols

__all__ = ["load_symbol_list", "load_symbol_map", "load_replace_map", "labels_of_symbols"]

_LITERAL_BEGIN = re.compile(r"""^\{["'].+["']:[0-9]+,""")
_LITERAL_BEGIN_CHARS = 1024


def _lines(text: str) -> list[str]:
    """:return: split at newlines only: a symbol can be another white space character"""
    lines = text.replace("\r\n", "\n").split("\n")
    return lines[:-1] if lines and not lines[-1] else lines


def load_symbol_list(filename: str) -> dict[str, int]:
    """
    :param filename: text with one symbol per line
    :return: symbol -> line number from 0
    :raises DataFileError: missing, no text, empty, or a symbol twice
    """
    symbols: dict[str, int] = {}
    for idx, symbol in enumerate(_lines(read_text(filename))):
        if symbol in symbols:
            raise DataFileError(f"{filename}, line {idx + 1}: symbol {symbol!r} is also in line {symbols[symbol] + 1}.")
        symbols[symbol] = idx
    if not symbols:
        raise DataFileError(f"{filename}: expected one orthography symbol per line, the file is empty.")
    return symbols


def load_symbol_map(filename: str) -> dict[str, int]:
    """
    :param filename: ``.pkl`` with a dict; text with a Python dict; or text lines ``<symbol> <index>``
    :return: symbol -> index
    :raises DataFileError: missing, of another form, or the indices do not begin at 0
    """
    symbols: Any
    if filename.endswith(".pkl"):
        with open_binary(filename) as file:
            symbols = restricted_pickle.load(file, filename=filename)
    else:
        text = read_text(filename)
        begin = text[:_LITERAL_BEGIN_CHARS].replace("\n", "").replace("\r", "").replace(" ", "")
        symbols = _literal(text, filename) if _LITERAL_BEGIN.match(begin) else _map_of_lines(text, filename)
    if not isinstance(symbols, dict) or not symbols:
        raise DataFileError(
            f"{filename}: expected a non-empty dict symbol -> index, got {type(symbols).__name__} {symbols!r:.60}."
        )
    for symbol, idx in symbols.items():
        if not isinstance(symbol, str) or not isinstance(idx, int) or isinstance(idx, bool) or idx < 0:
            raise DataFileError(f"{filename}: expected symbol (str) -> index (int >= 0), got {symbol!r}: {idx!r}.")
    smallest = min(symbols, key=symbols.__getitem__)
    if symbols[smallest] != 0:
        raise DataFileError(
            f"{filename}: the smallest index must be 0, it is {symbols[smallest]} (of symbol {smallest!r})."
        )
    return symbols


def _literal(text: str, filename: str) -> Any:
    try:
        return parse_literal(text, filename=filename)
    except LiteralError as exc:
        raise DataFileError(f"{exc} Expected a Python dict symbol -> index, or lines '<symbol> <index>'.") from exc


def _map_of_lines(text: str, filename: str) -> dict[str, int]:
    symbols: dict[str, int] = {}
    for number, line in enumerate(_lines(text), 1):
        if not line.strip():
            continue
        fields = line.split(None, 1)
        if len(fields) != 2 or not (fields[1].strip().isascii() and fields[1].strip().isdigit()):
            raise DataFileError(f"{filename}, line {number}: expected '<symbol> <index>', got {line!r}.")
        if fields[0] in symbols:
            raise DataFileError(f"{filename}, line {number}: symbol {fields[0]!r} was there before.")
        symbols[fields[0]] = int(fields[1])
    return symbols


def load_replace_map(filename: str, *, word_based: bool) -> dict[str, list[str]]:
    """
    :param filename: JSON dict (comments allowed) symbol -> replacement text
    :param word_based: symbols are words, else characters
    :return: symbol -> replacement symbols
    :raises DataFileError: missing, or of another form
    """
    try:
        mapping = load_json(filename)
    except OSError as exc:
        raise DataFileError(f"Cannot read orth_replace_map_file {filename!r}: {exc}.") from exc
    except ValueError as exc:
        raise DataFileError(
            f"orth_replace_map_file {filename!r}: {exc} Expected a JSON dict symbol -> replacement."
        ) from exc
    if not isinstance(mapping, dict) or not all(isinstance(value, str) for value in mapping.values()):
        raise DataFileError(
            f"orth_replace_map_file {filename!r}: expected a JSON dict symbol -> replacement text, got {mapping!r:.100}."
        )
    return {key: parse_orthography_into_symbols(value, word_based=word_based) for key, value in mapping.items()}


def labels_of_symbols(symbols: dict[str, int]) -> list[str]:
    """
    :param symbols: symbol -> index
    :return: label per index, up to the largest: of symbols with the same index the lexicographically last;
        ``<unused i>`` for an index without symbol
    """
    by_idx: dict[int, str] = {}
    for symbol, idx in symbols.items():
        if idx not in by_idx or symbol > by_idx[idx]:
            by_idx[idx] = symbol
    return [by_idx.get(idx, f"<unused {idx}>") for idx in range(max(by_idx) + 1)]
