#!/usr/bin/env python3
"""Counts the parameters of a PyTorch checkpoint, per part of the model."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Count the parameters of a PyTorch checkpoint, per part of the model.")
    parser.add_argument("checkpoint", help="file of torch.save, or .safetensors")
    parser.add_argument(
        "--ignore-prefix", nargs="+", default=[], metavar="P", help="leave out parameters whose name starts so"
    )
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
    import torch

    from returnn.torch.checkpoint import get_model_state, load_file
    from returnn.torch.inspection import count_by_prefix, shape_text

    checkpoint = load_file(args.checkpoint, mmap=True, weights_only=not args.unsafe_load)
    counts = {}
    for name, value in get_model_state(checkpoint, filename=args.checkpoint).items():
        if isinstance(value, torch.Tensor) and not name.startswith(tuple(args.ignore_prefix)):
            counts[name] = value.numel()
            print(f"{name}: {shape_text(value)} {value.numel()}")
    print("Counts:")
    for line in count_by_prefix(counts):
        print(line)


if __name__ == "__main__":
    run_tool(main)
