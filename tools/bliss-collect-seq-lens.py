#!/usr/bin/env python3
"""Writes the length of each segment of Bliss corpora, in frames of 10 ms, as a Python dict."""

from __future__ import annotations

import argparse
import contextlib
import gzip
import io
import sys
from collections.abc import Iterator, Sequence
from typing import IO

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.datasets._audio.segment_items import seq_len_of_segment
from returnn.datasets.util.bliss import iter_segments
from returnn.util.fs import atomic_write

__all__ = ["main"]


@contextlib.contextmanager
def _output(filename: str) -> Iterator[IO[str]]:
    """:param filename: .gz is compressed. The file is there when all is written"""
    if filename in ("-", "/dev/stdout"):
        yield sys.stdout  # not opened anew, which would truncate a file
    elif not filename.endswith(".gz"):
        with atomic_write(filename) as file:
            yield file
    else:
        with (
            atomic_write(filename, "wb") as file,
            gzip.GzipFile(fileobj=file, mode="wb", filename="", mtime=0) as zipped,
            io.TextIOWrapper(zipped, encoding="utf8") as text,  # type: ignore[type-var]
        ):
            yield text


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(
        description="Length of each segment in frames of 10 ms, as a Python dict: segment name -> length."
    )
    parser.add_argument("bliss_filename", nargs="+", help="Bliss XML (or .xml.gz)")
    parser.add_argument("--output", default="/dev/stdout", help="file to write, also .gz (default: stdout)")
    args = parser.parse_args(list(argv[1:]))
    with _output(args.output) as file:
        file.write("{\n")
        for filename in args.bliss_filename:
            for segment in iter_segments(filename):
                file.write(f"{segment.name!r}: {seq_len_of_segment(segment)},\n")
        file.write("}\n")


if __name__ == "__main__":
    run_tool(main)
