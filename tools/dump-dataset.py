#!/usr/bin/env python3
"""Shows the sequences of a dataset: data, shapes, tags, lengths, statistics."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli._dataset_tools.dump import DumpOptions, dump_dataset, parse_length_limit, show_num_seqs
from returnn.cli._dataset_tools.seq_dumpers import DUMPERS
from returnn.cli.dataset_source import (
    SOURCE_EPILOG,
    add_source_arguments,
    choose_key,
    greet,
    open_dataset,
    split_config_options,
)
from returnn.cli.tool_main import run_tool
from returnn.datasets._loading.len_filter import LenFilter

_EPILOG = """\
examples:
  dump-dataset.py my.config                              the first sequences of "train"
  dump-dataset.py my.config --dataset dev --type print_shape --endseq -1
  dump-dataset.py a.hdf --type null --stats --dump_stats mean_std --endseq -1
  dump-dataset.py a.hdf --type null --endseq -1 --histogram
  dump-dataset.py my.config --sample 100 --json | jq .seq.tag
  dump-dataset.py my.config ++my_option 3                another value for an option of the config

"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Show what a dataset gives: data, shapes, tags, lengths, statistics.",
        epilog=_EPILOG + SOURCE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--epoch", type=int, default=1, help="whose order (default: 1)")
    parser.add_argument("--startseq", type=int, default=0, help="first sequence, counted from 0 (default: 0)")
    parser.add_argument(
        "--endseq",
        type=int,
        help="last sequence, inclusive; negative: up to the end (default: 10; with --seqtags or --sample: the end)",
    )
    parser.add_argument("--seqtags", help="only these tags, separated by commas")
    parser.add_argument("--sample", type=int, metavar="N", help="only N sequences, chosen at random")
    parser.add_argument("--seed", type=int, default=1, help="of --sample (default: 1)")
    parser.add_argument("--get_num_seqs", action="store_true", help="print the number of sequences, and stop")
    parser.add_argument("--type", default="stdout", help=f"{', '.join(DUMPERS)} (default: stdout)")
    parser.add_argument("--stdout_limit", type=float, help="characters per array, inf for no limit (default: 300)")
    parser.add_argument(
        "--stdout_as_bytes", action="store_true", help="show each array as an expression that gives exactly this array"
    )
    parser.add_argument("--verbosity", type=int, default=4, choices=range(6), help="of the log (default: 4)")
    parser.add_argument("--dump_prefix", help="of written files (default: a new folder for temporary files)")
    parser.add_argument("--dump_postfix", default=".txt.gz", help="of the files of --type numpy (default: .txt.gz)")
    parser.add_argument("--key", help='data key that is shown first, for lengths and statistics (default: "data")')
    parser.add_argument("--stats", action="store_true", help="mean and standard deviation over the frames of --key")
    parser.add_argument("--dump_stats", metavar="PREFIX", help="write them to PREFIX.mean.txt and PREFIX.std_dev.txt")
    for name in ("max_seq_length", "min_seq_length"):
        parser.add_argument(
            f"--{name}",
            metavar="LIMIT",
            help='int, or dict literal per data key, or "config": the option of the config',
        )
    parser.add_argument(
        "--histogram", type=int, nargs="?", const=20, default=0, metavar="BINS", help="histogram of the lengths"
    )
    parser.add_argument(
        "--json",
        action="store_true",
        help="stdout gets one JSON object per line: dataset, each seq, summary; log to stderr",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    tool_args, config_options = split_config_options(argv[1:])
    args = parser.parse_args(tool_args)
    limits = (args.min_seq_length, args.max_seq_length)
    if args.get_num_seqs and limits != (None, None):
        parser.error("--min_seq_length and --max_seq_length do not go together with --get_num_seqs")
    if args.startseq < 0:
        parser.error(f"--startseq must not be negative, got {args.startseq}")
    if args.histogram < 0 or (args.sample is not None and args.sample < 0):
        parser.error("--histogram and --sample must not be negative")
    config, dataset = open_dataset(
        args.returnn_config,
        args.dataset,
        verbosity=args.verbosity,
        log_to_stderr=args.json,
        config_options=config_options,
    )
    greet("dump-dataset")
    if args.get_num_seqs:
        dataset.init_seq_order(epoch=args.epoch)
        show_num_seqs(dataset)
        rnn.finalize()
        return
    end = args.endseq
    if end is None:
        end = -1 if args.seqtags is not None or args.sample is not None else 10
    known_keys = list(dataset.get_data_keys())
    options = DumpOptions(
        kind=args.type,
        key=choose_key(dataset, args.key),
        epoch=args.epoch,
        start=args.startseq,
        end=None if end < 0 else end,
        tags=None if args.seqtags is None else tuple(args.seqtags.split(",")),
        sample=args.sample,
        seed=args.seed,
        prefix=args.dump_prefix,
        postfix=args.dump_postfix,
        stats=args.stats,
        stats_prefix=args.dump_stats,
        len_filter=LenFilter(
            parse_length_limit(args.min_seq_length, config, "min_seq_length", known_keys=known_keys),
            parse_length_limit(args.max_seq_length, config, "max_seq_length", known_keys=known_keys),
        ),
        histogram_bins=args.histogram,
        json=args.json,
    )
    dump_dataset(dataset, options, stdout_limit=args.stdout_limit, as_bytes=args.stdout_as_bytes)
    rnn.finalize()


if __name__ == "__main__":
    run_tool(main)
