#!/usr/bin/env python3
"""Mean and standard deviation of what a submodule of the model gives over a dataset."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli.forward_tools import OutputStats, dataset_of_config, value_line
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError
from returnn.log import log
from returnn.util.literal import LiteralError, parse_literal

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run forward_step over a dataset and collect the output of one submodule of the model. The hooks of "
        "the config are not called."
    )
    parser.add_argument("config", help="config file, with load, or with the checkpoints of its training")
    parser.add_argument("--dataset", default="train", help="option with the dataset (default: train)")
    parser.add_argument("--reset_partition_epoch", type=int, default=1, help="of the dataset (default: 1, all data)")
    parser.add_argument(
        "--reset_seq_ordering", default="sorted_reverse", help="of the dataset (default: sorted_reverse); '' keeps it"
    )
    parser.add_argument(
        "--reset_epoch_wise_filter", metavar="E", help="of the dataset, as literal; None switches it off"
    )
    parser.add_argument("--layer", required=True, help='path of the submodule, e.g. "encoder.layers.0"')
    parser.add_argument("--epoch", type=int, default=1, help="whose order of sequences (default: 1)")
    parser.add_argument("--load", help="checkpoint (default: option load, else the newest one)")
    parser.add_argument("--endseq", type=int, default=-1, help="last sequence, inclusive (default: -1, all)")
    parser.add_argument("--stats", action="store_true", help="print mean and standard deviation, not each sequence")
    parser.add_argument("--dump_stats", metavar="P", help="write them to P.mean.txt and P.std_dev.txt")
    parser.add_argument("--verbosity", type=int, default=3, help="of the log, 0 to 5 (default: 3)")
    return parser


def _reset(dataset: Dataset, args: argparse.Namespace) -> None:
    """Set the order of the dataset, or of the child that decides about the order."""
    target: Any = dataset  # Any: classes with children have more attributes
    children = getattr(target, "datasets", None)
    control = getattr(target, "seq_order_control_dataset", None)
    if isinstance(children, dict) and control in children:
        target = children[control]
    target.partition_epoch = args.reset_partition_epoch
    if args.reset_seq_ordering:
        if args.reset_seq_ordering.startswith("sorted") and not _knows_lengths(target):
            print(f"{target} does not know the lengths of its sequences, so they are not sorted.", file=log.v2)
        else:
            target.seq_ordering = args.reset_seq_ordering


def _order_opts(args: argparse.Namespace) -> dict[str, Any]:
    """:return: options that only the constructor takes"""
    if args.reset_epoch_wise_filter is None:
        return {}
    try:
        return {"epoch_wise_filter": parse_literal(args.reset_epoch_wise_filter)}
    except LiteralError as exc:
        raise ConfigError(f"--reset_epoch_wise_filter is no Python literal: {exc}") from exc


def _knows_lengths(dataset: Dataset) -> bool:
    return dataset.supports_seq_order_sorting()


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    args = _make_parser().parse_args(list(argv[1:]))
    check_output_file(f"{args.dump_stats}.mean.txt" if args.dump_stats else None, option="--dump_stats")
    rnn.init_config(config_filename=args.config)
    config = rnn.config
    assert config is not None
    # The log file of the training stays as it is.
    config.update({"log": None, "log_verbosity": args.verbosity})
    rnn.init_log()
    # With torch, so after the command line has been looked at.
    from returnn.torch.forward_dump import ForwardDump, configure_dump

    configure_dump(config, load=args.load)
    dataset = dataset_of_config(config, args.dataset, order_opts=_order_opts(args))
    _reset(dataset, args)
    dump = ForwardDump(config, dataset, epoch=args.epoch, layer=args.layer)
    stats = OutputStats()
    wants_stats = args.stats or args.dump_stats
    for seq in dump.iter_seqs(end=args.endseq if args.endseq >= 0 else None):
        if wants_stats:
            stats.collect(seq.values)
            continue
        print(f"seq {seq.seq_idx} tag: {seq.seq_tag}")
        for name, value in seq.values.items():
            print(value_line(name, value))
    if wants_stats:
        stats.dump(prefix="Layer", output_file_prefix=args.dump_stats)


if __name__ == "__main__":
    run_tool(main)
