#!/usr/bin/env python3
"""Joins HDF files with the same data keys into one."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._hdf_tools.choose import without_duplicates
from returnn.cli._hdf_tools.corpus import open_corpus
from returnn.cli._hdf_tools.output import HdfOutput
from returnn.cli.dataset_source import init_tool_log
from returnn.cli.tool_main import run_tool
from returnn.errors import DataFileError

_EPILOG = """\
The sequences of the first file come first. All files need the same data keys, dimensions, dtypes and labels.

examples:
  hdf_merge.py part.1.hdf part.2.hdf --output all.hdf
  hdf_merge.py part.*.hdf --output all.hdf --duplicates first
"""


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(
        description="Join HDF files into one.", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="HDF file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="HDF file to write")
    parser.add_argument(
        "--duplicates",
        choices=["error", "first", "keep"],
        default="error",
        help="what to do if a tag comes more than once: an error (default), keep only the first sequence, or keep all",
    )
    parser.add_argument(
        "--compression", choices=["gzip", "lzf"], help="of the arrays (default: none, which is read fastest)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    args = parser.parse_args(list(argv[1:]))
    init_tool_log(2)
    output = HdfOutput(args.output, inputs=args.files, overwrite=args.overwrite, compression=args.compression)
    with output:
        corpus = open_corpus(args.files)
        order = without_duplicates(corpus, args.duplicates)
        if not len(order):
            raise DataFileError(f"The files have no sequences: {', '.join(args.files[:5])}.")
        corpus.write(order, output)
    for note in corpus.notes:
        print(note)
    left_out = corpus.num_seqs - len(order)
    print(
        f"{args.output}: {len(order)} sequences of {len(args.files)} files"
        + (f", {left_out} with the tag of an earlier one are left out." if left_out else ".")
    )


if __name__ == "__main__":
    run_tool(main)
