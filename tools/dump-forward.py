#!/usr/bin/env python3
"""Runs forward_step on some sequences, and prints shapes and figures of the outputs that it marks."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli.forward_tools import OutputStats, dataset_of_config, value_line
from returnn.cli.tool_main import run_tool

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Run forward_step on some sequences and print the shapes and figures of the outputs that it marks. "
        "The hooks of the config are not called, and no file is written."
    )
    parser.add_argument("config", help="config file, with load, or with the checkpoints of its training")
    parser.add_argument("--dataset", help="option with the dataset (default: forward, else dev, else train)")
    parser.add_argument("--load", help="checkpoint (default: option load, else the newest one)")
    parser.add_argument("--epoch", type=int, default=1, help="whose order of sequences (default: 1)")
    parser.add_argument("--startseq", type=int, default=0, help="first sequence, counted from 0 (default: 0)")
    parser.add_argument("--endseq", type=int, default=10, help="last sequence, inclusive; -1: all (default: 10)")
    parser.add_argument("--verbosity", type=int, default=3, help="of the log, 0 to 5 (default: 3)")
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    args = _make_parser().parse_args(list(argv[1:]))
    rnn.init_config(config_filename=args.config)
    config = rnn.config
    assert config is not None
    # The log file of the training stays as it is.
    config.update({"log": None, "log_verbosity": args.verbosity})
    rnn.init_log()
    # With torch, so after the command line has been looked at.
    from returnn.torch.forward_dump import ForwardDump, configure_dump

    configure_dump(config, load=args.load)
    dump = ForwardDump(config, dataset_of_config(config, args.dataset), epoch=args.epoch)
    stats = OutputStats()
    for seq in dump.iter_seqs(start=args.startseq, end=args.endseq if args.endseq >= 0 else None):
        print(f"seq {seq.seq_idx} tag: {seq.seq_tag}")
        for name, value in seq.values.items():
            print(value_line(name, value))
        stats.collect(seq.values)
    stats.dump(prefix="Output")


if __name__ == "__main__":
    run_tool(main)
