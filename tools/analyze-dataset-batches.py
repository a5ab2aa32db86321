#!/usr/bin/env python3
"""Shows the batches that the engine would make of a dataset: number of steps, padding, dropped sequences, largest batch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli._dataset_tools.batches import analyze_batches
from returnn.cli._dataset_tools.dump import show_dataset_info
from returnn.cli.dataset_source import SOURCE_EPILOG, add_source_arguments, greet, open_dataset, split_config_options
from returnn.cli.tool_main import run_tool
from returnn.datasets._loading.source import Role, SourceOptions
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.options.training import EngineOptions

_EPILOG = """\
Filter, chunking, batch size and number of workers come from the config: batch_size, max_seqs, max_seq_length, chunking_options,
num_workers_per_gpu, ... No data is loaded if the dataset knows its lengths.

examples:
  analyze-dataset-batches.py my.config
  analyze-dataset-batches.py my.config --dataset dev --verbosity 4
  analyze-dataset-batches.py my.config --epoch 3 ++batch_size 20000

"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Show the batches of an epoch: number of steps, padding, dropped sequences, largest batch.",
        epilog=_EPILOG + SOURCE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--epoch", type=int, default=1, help="whose order (default: 1)")
    parser.add_argument("--endseq", type=int, default=-1, help="last sequence, inclusive (default: -1, all)")
    parser.add_argument("--verbosity", type=int, default=5, choices=range(6), help="5: each batch (default: 5)")
    parser.add_argument("--key", default="data", help="accepted for old callers; all data keys are shown")
    parser.add_argument("--use_pretrain", action="store_true", help="accepted for old callers, without effect")
    parser.add_argument("--num_workers", type=int, help="instead of num_workers_per_gpu of the config")
    parser.add_argument(
        "--role",
        choices=["train", "eval", "forward"],
        help="what the data is for (default: train for the dataset train)",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    tool_args, config_options = split_config_options(argv[1:])
    args = parser.parse_args(tool_args)
    if args.num_workers is not None and args.num_workers < 0:
        parser.error(f"--num_workers must not be negative, got {args.num_workers}")
    config, dataset = open_dataset(
        args.returnn_config, args.dataset, verbosity=args.verbosity, config_options=config_options
    )
    greet("analyze-dataset-batches")
    if args.use_pretrain:
        print("Note: --use_pretrain has no effect.", file=log.v2)
    role: Role = args.role or ("train" if args.dataset in (None, "train") else "eval")
    loader = LoaderOptions.from_config(config)
    options = SourceOptions.create(
        BatchingOptions.from_config(config, role=role),
        name=dataset.name,
        role=role,
        seed=EngineOptions.from_config(config).random_seed,
        is_global=loader.worker_batching == "global",
    )
    dataset.init_seq_order(epoch=args.epoch)
    show_dataset_info(dataset, args.epoch)
    analyze_batches(
        dataset,
        options,
        epoch=args.epoch,
        end=None if args.endseq < 0 else args.endseq,
        num_workers=loader.num_workers if args.num_workers is None else args.num_workers,
    )
    rnn.finalize()


if __name__ == "__main__":
    run_tool(main)
