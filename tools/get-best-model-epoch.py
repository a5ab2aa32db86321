#!/usr/bin/env python3
"""Prints the epochs with the best scores of a training."""

from __future__ import annotations

import argparse
import math
import os
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.config import Config, set_global_config
from returnn.errors import ConfigError, DataFileError, MissingOptionError
from returnn.learning_rate_control import LearningRateControl

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Print the epochs with the best scores. Lower is better.")
    parser.add_argument("--config", help="config of the training, with the option learning_rate_file")
    parser.add_argument("--learning-rate-file", help="learning-rate file of the training")
    parser.add_argument("--key", help="score to sort by (default: the one that the learning-rate control looks at)")
    parser.add_argument("--n", type=int, default=5, help="how many epochs to print (default: 5)")
    return parser


def _load(args: argparse.Namespace) -> LearningRateControl:
    """:return: the scores, and which of them the training looks at"""
    if args.config:
        config = Config()
        set_global_config(config)
        config.load_file(args.config)
        control = LearningRateControl.load_initial_from_config(config)
        if not control.filename:
            raise MissingOptionError("learning_rate_file", needed_for="get-best-model-epoch")
    else:
        control = LearningRateControl(default_learning_rate=1.0, filename=args.learning_rate_file)
    assert control.filename is not None
    if not os.path.exists(control.filename):
        raise DataFileError(f"There is no learning-rate file {control.filename!r}, seen from {os.getcwd()}.")
    return control


def main(argv: Sequence[str]) -> int | None:
    """
    :param argv: argv[0] is the program
    :return: exit code
    """
    parser = _make_parser()
    args = parser.parse_args(list(argv[1:]))
    if bool(args.config) == bool(args.learning_rate_file):
        print("Error: provide either --config or --learning-rate-file")
        parser.print_help()
        return 1
    control = _load(args)
    epochs = sorted(epoch for epoch, data in control.epoch_data.items() if data.error)
    if not epochs:
        print(f"Error: no epoch has scores yet in {control.filename}")
        return 1
    print(f"Loaded epochs {epochs[0]} .. {epochs[-1]}")
    if args.key:
        key = args.key
        print(f"Using key {key}")
    else:
        auto_key = control.get_error_key(epochs[-1])
        assert auto_key is not None  # it has scores
        key = auto_key
        print(f"Using key {key} (auto via epoch {epochs[-1]})")
    scores = {epoch: control.epoch_data[epoch].error for epoch in epochs if key in control.epoch_data[epoch].error}
    if not scores:
        known = sorted({name for epoch in epochs for name in control.epoch_data[epoch].error})
        raise ConfigError(f"No epoch has the score {key!r}. There are: {', '.join(known)}.")
    missing = [epoch for epoch in epochs if epoch not in scores]
    print(f"Epochs missing the key: {missing}" if missing else "All epochs have the key.")
    # nan has no order: last
    best = sorted(scores, key=lambda epoch: (math.isnan(scores[epoch][key]), scores[epoch][key], epoch))
    for epoch in best[: args.n]:
        others = [(name, value) for name, value in sorted(scores[epoch].items()) if name != key]
        print(
            f"Epoch {epoch}, "
            + ", ".join(f"{name!r} {value!r}" for name, value in [(key, scores[epoch][key]), *others])
        )
    return None


if __name__ == "__main__":
    run_tool(main)
