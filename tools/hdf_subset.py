#!/usr/bin/env python3
"""Writes some sequences of HDF files to a new one: by tag, index, or chance."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401
import numpy

from returnn.cli._hdf_tools.choose import by_chance, by_indices, by_tags, parse_indices
from returnn.cli._hdf_tools.corpus import HdfCorpus, open_corpus
from returnn.cli._hdf_tools.output import HdfOutput
from returnn.cli.dataset_source import init_tool_log
from returnn.cli.tool_main import run_tool
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.errors import DatasetError

_EPILOG = """\
The sequences are written in the order of the files, unless --in_given_order is given.

examples:
  hdf_subset.py train.hdf --output small.hdf --random 1000 --seed 3
  hdf_subset.py train.hdf --output dev.hdf --segment_file dev.segments.gz
  hdf_subset.py train.hdf --output rest.hdf --segment_file dev.segments.gz --exclude
  hdf_subset.py train.hdf --output few.hdf --indices 0,5,10-19
"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Write some sequences of HDF files to a new one.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("files", nargs="+", metavar="FILE", help="HDF file; several count as one, file after file")
    parser.add_argument("-o", "--output", required=True, metavar="FILE", help="HDF file to write")
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--tags", metavar="A,B", help="tags, separated by commas")
    which.add_argument("--segment_file", metavar="FILE", help="file with a tag per line (text, .gz) or a list (.pkl)")
    which.add_argument(
        "--indices", metavar="0,5,10-19", help="numbers of sequences, counted from 0; ranges are inclusive"
    )
    which.add_argument("--random", type=int, metavar="N", help="N sequences, chosen at random")
    parser.add_argument("--seed", type=int, default=1, help="of --random: equal seeds choose the same (default: 1)")
    parser.add_argument("--exclude", action="store_true", help="write all other sequences instead")
    parser.add_argument("--in_given_order", action="store_true", help="write them in the order of the tags or indices")
    parser.add_argument("--ignore_missing", action="store_true", help="tags that no file has are no error")
    parser.add_argument(
        "--compression", choices=["gzip", "lzf"], help="of the arrays (default: none, which is read fastest)"
    )
    parser.add_argument("--overwrite", action="store_true", help="replace an existing output")
    return parser


def _choose(corpus: HdfCorpus, args: argparse.Namespace) -> numpy.ndarray:
    """:return: int64 corpus indices"""
    if args.random is not None:
        return by_chance(corpus, args.random, seed=args.seed, exclude=args.exclude)
    if args.indices is not None:
        idxs = parse_indices(args.indices, num_seqs=corpus.num_seqs)
        return by_indices(corpus, idxs, exclude=args.exclude, in_given_order=args.in_given_order)
    tags = args.tags.split(",") if args.tags is not None else load_seq_list_file(args.segment_file)
    return by_tags(
        corpus,
        [str(tag) for tag in tags],
        exclude=args.exclude,
        in_given_order=args.in_given_order,
        ignore_missing=args.ignore_missing,
    )


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    args = parser.parse_args(list(argv[1:]))
    if args.in_given_order and (args.exclude or args.random is not None):
        parser.error("--in_given_order goes together with --tags, --segment_file or --indices, and not with --exclude")
    init_tool_log(2)
    output = HdfOutput(args.output, inputs=args.files, overwrite=args.overwrite, compression=args.compression)
    with output:
        corpus = open_corpus(args.files)
        order = _choose(corpus, args)
        if not len(order):
            raise DatasetError(f"No sequence is left of {corpus.num_seqs} in {', '.join(args.files[:5])}.")
        corpus.write(order, output)
    for note in corpus.notes:
        print(note)
    print(f"{args.output}: {len(order)} of {corpus.num_seqs} sequences.")


if __name__ == "__main__":
    run_tool(main)
