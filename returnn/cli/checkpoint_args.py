"""Command-line arguments that the tools for checkpoints share: what to print, and how."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy

from returnn.errors import ConfigError, describe
from returnn.util.literal import LiteralError, parse_literal

__all__ = ["add_print_arguments", "set_print_options"]


def add_print_arguments(parser: argparse.ArgumentParser) -> None:
    """
    :param parser: gets the arguments that the tools for checkpoints share
    """
    parser.add_argument("--key", help="print only this entry, with its values: of the file, else of its model")
    parser.add_argument("--all_tensors", action="store_true", help="print the values of all tensors")
    parser.add_argument("--stats_only", action="store_true", help="print statistics instead of values")
    parser.add_argument(
        "--printoptions", nargs="+", default=[], metavar="K=V", help="of numpy.set_printoptions, e.g. threshold=10000"
    )
    parser.add_argument("--device", default="cpu", help="device to load to (default: cpu)")


def set_print_options(options: Sequence[str]) -> None:
    """
    :param options: ``name=value`` for numpy.set_printoptions
    :raises ConfigError: not of this form, or no such option
    """
    numpy.set_printoptions(precision=4)
    for text in options:
        name, _, value = text.partition("=")
        try:
            numpy.set_printoptions(**{name: parse_literal(value)})
        except (LiteralError, TypeError, ValueError) as exc:
            raise ConfigError(
                describe("--printoptions is wrong", expected="name=value of numpy.set_printoptions", got=text)
                + f" {exc}"
            ) from exc
