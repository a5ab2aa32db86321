"""
Files with lists of sequence tags or with sequence lengths.
"""

from __future__ import annotations

import gzip
import json
import os
import zlib
from typing import Any

import numpy

from returnn.errors import DataFileError, DatasetOptionError
from returnn.options.loading import LoadingOptions
from returnn.util import restricted_pickle
from returnn.util.bounded_read import read_all
from returnn.util.literal import LiteralError, parse_literal

__all__ = ["load_seq_list_file", "load_seq_lens_file"]


def _check_filename(filename: object, purpose: str) -> str:
    if not isinstance(filename, (str, os.PathLike)):
        raise DatasetOptionError(
            f"the name of the {purpose} must be a str, got {filename!r} ({type(filename).__name__})."
        )
    return os.fspath(filename)


def _read_bytes(filename: str, purpose: str) -> bytes:
    """:return: content, unzipped for ``.gz``"""
    try:
        if filename.endswith(".gz"):
            with gzip.open(filename, "rb") as zipped:
                return read_all(zipped, packed_bytes=os.path.getsize(filename), filename=filename)
        with open(filename, "rb") as file:
            return file.read()
    except DataFileError:
        raise
    except (OSError, EOFError, zlib.error) as exc:
        reason = "it does not exist" if not os.path.exists(filename) else f"{type(exc).__name__}: {exc}"
        raise DataFileError(f"cannot read the {purpose} {filename!r}: {reason}. Check the path and the file.") from exc


def _decode(data: bytes, filename: str, purpose: str) -> str:
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        raise DataFileError(f"the {purpose} {filename!r} is no UTF-8 text: {exc}.") from exc


def load_seq_list_file(filename: str, expect_list: bool = True) -> Any:
    """
    Read a sequence list file: ``.pkl`` / ``.pkl.gz`` with plain data, else text (``.gz`` or not) with one tag per line.

    :param filename: path
    :param expect_list: a pickle must hold a list. Otherwise e.g. a dict of lists is fine too
    :return: list of tags. Any: another plain object, only from a pickle with expect_list=False
    :raises DataFileError: missing, unreadable, or not of that form
    """
    purpose = "sequence list file"
    filename = _check_filename(filename, purpose)
    data = _read_bytes(filename, purpose)
    if not filename.endswith((".pkl", ".pkl.gz")):
        return _decode(data, filename, purpose).splitlines()
    obj = restricted_pickle.loads(data, filename=filename, unsafe=LoadingOptions.from_global_config().allow_unsafe)
    if expect_list and not (isinstance(obj, list) and all(isinstance(tag, str) for tag in obj)):
        got = "other things in the list" if isinstance(obj, list) else type(obj).__name__
        raise DataFileError(
            f"the {purpose} {filename!r} must hold a list of tags, got {got}. "
            "Write it with pickle.dump([...]), or as text with one tag per line."
        )
    return obj


def load_seq_lens_file(filename: str) -> dict[str, int | float]:
    """
    Read sequence lengths: text (or ``.gz``) with one dict tag -> length, as Python literal or JSON.

    :param filename: path
    :return: tag -> number of frames
    :raises DataFileError: missing, unreadable, or anything else than such a dict; code is never run
    """
    purpose = "sequence length file"
    filename = _check_filename(filename, purpose)
    text = _decode(_read_bytes(filename, purpose), filename, purpose)
    try:
        lens: Any = json.loads(text)
    except (ValueError, RecursionError):
        try:
            lens = parse_literal(text, filename=filename)
        except LiteralError as exc:
            raise DataFileError(
                f"the {purpose} {filename!r} is neither a Python literal nor JSON: {exc} "
                "Expected one dict tag -> length, e.g. {'tag-1': 12, 'tag-2': 7}."
            ) from exc
    if not isinstance(lens, dict):
        raise DataFileError(f"the {purpose} {filename!r} must hold a dict tag -> length, got {type(lens).__name__}.")
    for tag, num in lens.items():
        ok = isinstance(num, (int, float, numpy.number)) and not isinstance(num, bool)
        if not isinstance(tag, str) or not ok:
            raise DataFileError(
                f"the {purpose} {filename!r} must map tags (str) to lengths (numbers), got {tag!r}: {num!r}."
            )
    return lens
