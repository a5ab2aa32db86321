#!/usr/bin/env python3
"""Deletes old checkpoints of a training: the same as the task cleanup_old_models, without the rest of a run."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli.tool_main import run_tool
from returnn.engine.base import EngineBase
from returnn.engine.model_files import existing_models
from returnn.errors import DataFileError, MissingOptionError
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.learning_rate import LearningRateOptions
from returnn.options.task import TaskOptions

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Delete checkpoints that the option cleanup_old_models of the config does not keep, after asking."
    )
    parser.add_argument("--config", help="config of the training")
    parser.add_argument("--cwd", help="folder that the paths in the config are relative to (default: the current one)")
    parser.add_argument("--model", metavar="FILENAME", help="option model, e.g. models/epoch: path without .012.pt")
    parser.add_argument("--scores", metavar="FILE", help="option learning_rate_file: the best epochs are kept")
    parser.add_argument("--dry_run", action="store_true", help="say what would be deleted, delete nothing")
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    :raises UserError: missing files or options
    """
    args = _make_parser().parse_args(list(argv[1:]))
    config_filename = os.path.abspath(args.config) if args.config else None
    if args.cwd:
        os.chdir(args.cwd)
    updates: dict[str, Any] = {"task": "cleanup_old_models", "log": None, "log_verbosity": 3, "device": "cpu"}
    if args.model:
        updates["model"] = args.model
    if args.scores:
        if not os.path.isfile(args.scores):
            raise DataFileError(f"There is no learning-rate file {args.scores!r}, seen from {os.getcwd()}.")
        updates["learning_rate_file"] = args.scores
    if not config_filename and args.model:
        updates["num_epochs"] = max(existing_models(args.model), default=1)  # nobody said when the training ends
    if args.dry_run:
        updates["dry_run"] = True
    rnn.init_config(config_filename=config_filename, extra_updates=updates)
    config = rnn.config
    assert config is not None
    rnn.init_log()
    if not CheckpointOptions.from_config(config).model:
        raise MissingOptionError("model", needed_for="cleanup-old-models", todo="Give --config or --model models/epoch")
    if not LearningRateOptions.from_config(config).filename:
        raise MissingOptionError(
            "learning_rate_file",
            needed_for="cleanup-old-models",
            todo="Give --scores learning_rates, so that the best checkpoints are kept",
        )
    engine = EngineBase(config)
    if TaskOptions.from_config(config).custom_engine is not None:  # which may have its own rules
        rnn.init_engine()
        assert rnn.engine is not None
        engine = rnn.engine
    engine.cleanup_old_models(ask_for_confirmation=True)


if __name__ == "__main__":
    run_tool(main)
