#!/usr/bin/env python3
"""Prints what HDF files hold: data keys, shapes, lengths, labels, and some sequences."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._dataset_tools.seq_dumpers import print_json
from returnn.cli._hdf_tools.show import (
    describe_file,
    iter_chosen_seqs,
    iter_description,
    open_hdf_dataset,
    seq_json,
    seq_lines,
)
from returnn.cli.dataset_source import choose_key, init_tool_log
from returnn.cli.tool_main import run_tool
from returnn.util.pprint import set_pretty_print_default_limit

_EPILOG = """\
examples:
  hdf_print.py train.hdf
  hdf_print.py train.hdf --seqs -1 | grep my-segment
  hdf_print.py train.hdf --tags a/b/1,a/b/2 --data
  hdf_print.py train.hdf --json --seqs 0 | jq .file.num_seqs
"""


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(
        description="Print what HDF files hold.", epilog=_EPILOG, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="HDF file")
    parser.add_argument(
        "--seqs", type=int, default=5, metavar="N", help="show the first N sequences; -1: all (default: 5)"
    )
    parser.add_argument("--tags", metavar="A,B", help="show these sequences, separated by commas")
    parser.add_argument("--data", action="store_true", help="show the data of the sequences, not only the lengths")
    parser.add_argument("--keys", metavar="A,B", help="only these data keys of the sequences")
    parser.add_argument(
        "--limit", type=float, default=300, help="characters per array, inf for no limit (default: 300)"
    )
    parser.add_argument("--json", action="store_true", help="a JSON object per line: file, then each sequence")
    args = parser.parse_args(list(argv[1:]))
    init_tool_log(0)
    set_pretty_print_default_limit(args.limit)
    for filename in args.files:
        info = describe_file(filename)
        if args.json:
            print_json({"file": info})
        else:
            print("\n".join(iter_description(info)))
        if (not args.seqs and args.tags is None) or not info["num_seqs"]:
            continue
        dataset = open_hdf_dataset(filename)
        tags = None if args.tags is None else args.tags.split(",")
        keys = None if args.keys is None else [choose_key(dataset, key) for key in args.keys.split(",")]
        num = None if args.seqs < 0 or tags is not None else args.seqs
        for seq in iter_chosen_seqs(dataset, keys=keys, tags=tags, num=num, with_data=args.data):
            if args.json:
                print_json(seq_json(seq))
            else:
                print("\n".join(seq_lines(seq)))


if __name__ == "__main__":
    run_tool(main)
