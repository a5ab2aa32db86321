#!/usr/bin/env python3
"""Prints what a pickle file holds, in a form that is the same each time. No code of the file is run."""

from __future__ import annotations

import argparse
import sys
import zlib
from collections.abc import Sequence
from typing import Any

import _setup_returnn_env  # noqa: F401
import numpy

from returnn.cli.tool_main import run_tool
from returnn.errors import DataFileError
from returnn.util.fs import open_binary
from returnn.util.pprint import better_repr
from returnn.util.restricted_pickle import load

_EPILOG = """\
Only plain data is read: containers, texts, numbers, numpy arrays. A file with other objects is refused, since it could run code.

example:
  dump-pickle.py vocab.pkl.gz | head
"""


def _plain(value: Any) -> Any:
    """:return: the same with plain numbers and texts instead of numpy's, which print in another way. Any: plain data"""
    if isinstance(value, numpy.generic):
        return value.item()
    if type(value) is dict:
        return {_plain(key): _plain(item) for key, item in value.items()}
    if type(value) in (list, tuple, set, frozenset):
        return type(value)(map(_plain, value))
    return value


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(
        description="Print the content of a pickle file (plain or .gz): dicts and sets sorted, an item per line.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("file", help="pickle file")
    parser.add_argument("--encoding", default="ASCII", help="of 8-bit strings written by Python 2 (default: ASCII)")
    args = parser.parse_args(list(argv[1:]))
    with open_binary(args.file) as file:
        try:
            content = load(file, filename=args.file, encoding=args.encoding)
        except (OSError, zlib.error) as exc:
            if isinstance(exc, DataFileError):
                raise
            raise DataFileError(f"Cannot read {args.file!r}: {exc}. Is it a whole file?") from exc
    numpy.set_printoptions(threshold=sys.maxsize)  # arrays whole
    try:
        text = better_repr(_plain(content))
    except TypeError as exc:
        raise DataFileError(f"{args.file!r} has a dict or set whose entries cannot be sorted: {exc}.") from exc
    print(text)


if __name__ == "__main__":
    run_tool(main)
