#!/usr/bin/env python3
"""Checks HDF files: whole, consistent, readable, tags unique."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._hdf_tools.verify import find_problems, find_problems_together
from returnn.cli.dataset_source import init_tool_log
from returnn.cli.tool_main import run_tool

_EPILOG = """\
Found are, among others: truncated files, lengths that do not fit to the data, tags that are missing or come twice, class
indices out of range, inf and nan, wrong numbers of labels, blocks that cannot be read.
Exit code: 0 if all files are fine, 1 if there are problems; each is a line "FILE: sentence".

examples:
  hdf_verify.py train.hdf
  hdf_verify.py --quick --together part.*.hdf
"""


def main(argv: Sequence[str]) -> int:
    """
    :param argv: argv[0] is the program
    :return: exit code
    """
    parser = argparse.ArgumentParser(
        description="Check HDF files.", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="HDF file")
    parser.add_argument("--quick", action="store_true", help="do not read the data itself")
    parser.add_argument("--allow_nonfinite", action="store_true", help="inf and nan in the data are fine")
    parser.add_argument("--together", action="store_true", help="check also that they fit together into one dataset")
    args = parser.parse_args(list(argv[1:]))
    init_tool_log(0)
    num_bad = 0
    for filename in args.files:
        problems = find_problems(filename, read_data=not args.quick, allow_nonfinite=args.allow_nonfinite)
        for problem in problems:
            print(f"{filename}: {problem}", flush=True)
        if not problems:
            print(f"{filename}: ok", flush=True)
        num_bad += bool(problems)
    if args.together and not num_bad:
        problems = find_problems_together(args.files)
        for problem in problems:
            print(f"together: {problem}")
        num_bad += bool(problems)
    print(f"{len(args.files)} files checked, " + (f"{num_bad} with problems." if num_bad else "all ok."))
    return 1 if num_bad else 0


if __name__ == "__main__":
    run_tool(main)
