#!/usr/bin/env python3
"""Prints what a PyTorch checkpoint has: names, types, shapes; values and statistics of tensors if wanted."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.checkpoint_args import add_print_arguments, set_print_options
from returnn.cli.tool_main import run_tool

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print the content of a PyTorch checkpoint.")
    parser.add_argument("checkpoint", help="file of torch.save, or .safetensors")
    add_print_arguments(parser)
    parser.add_argument("--stats", action="store_true", help="print statistics of all tensors")
    parser.add_argument(
        "--interesting_exclude", default="", metavar="A,B", help="parts of names that the summary of --stats leaves out"
    )
    parser.add_argument("--mmap", action="store_true", help="read only what is needed from the file")
    parser.add_argument(
        "--unsafe_load",
        "--load_unsafe_checkpoints",
        dest="unsafe_load",
        action="store_true",
        help="load any Python objects; only for files that you trust, since that can run any code",
    )
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    args = _make_parser().parse_args(list(argv[1:]))
    # With torch, so after the command line has been looked at.
    from returnn.torch.checkpoint import load_file
    from returnn.torch.device import choose_device
    from returnn.torch.inspection import TensorPrinter, find_entry

    set_print_options(args.printoptions)
    device = args.device if args.device == "cpu" else choose_device(args.device)
    state = load_file(
        args.checkpoint,
        map_location=device,
        mmap=args.mmap,
        weights_only=not args.unsafe_load,
    )
    printer = TensorPrinter(
        values=(args.all_tensors or args.key is not None) and not args.stats_only,
        stats=args.stats or args.stats_only,
        interesting_exclude=args.interesting_exclude.split(","),
    )
    if args.key is not None:
        printer.print_entry(args.key, find_entry(state, args.key, filename=args.checkpoint))
        return
    for name, value in state.items() if isinstance(state, dict) else [("", state)]:
        printer.print_entry(str(name), value)
    for line in printer.interesting_lines():
        print(line)


if __name__ == "__main__":
    run_tool(main)
