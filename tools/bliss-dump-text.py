#!/usr/bin/env python3
"""Prints the transcription of each segment of a Bliss corpus, one per line."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.datasets.util.bliss import iter_segments

__all__ = ["main"]


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(description="Print the transcription of each segment, one per line.")
    parser.add_argument("xml", help="Bliss XML (or .xml.gz)")
    args = parser.parse_args(list(argv[1:]))
    for segment in iter_segments(args.xml):
        print(segment.orth)


if __name__ == "__main__":
    run_tool(main)
