#!/usr/bin/env python3
"""Prints each parameter of the model of a config, with the state that the optimizer keeps for it."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli.checkpoint_args import add_print_arguments, set_print_options
from returnn.cli.tool_main import run_tool
from returnn.errors import CheckpointError

__all__ = ["main"]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Print the parameters of the newest checkpoint of a config (or of the option load), each with its "
        "state in the optimizer."
    )
    parser.add_argument("config", help="config file")
    parser.add_argument("--cwd", help="folder that the paths in the config are relative to (default: the current one)")
    parser.add_argument(
        "--fresh", action="store_true", help="show the model before training if there is no checkpoint, not an error"
    )
    add_print_arguments(parser)
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    :raises CheckpointError: no checkpoint, or no such parameter
    """
    args = _make_parser().parse_args(list(argv[1:]))
    config_filename = os.path.abspath(args.config)
    if args.cwd:
        os.chdir(args.cwd)
    rnn.init_config(config_filename=config_filename)
    config = rnn.config
    assert config is not None
    config.update({"log": None, "log_verbosity": 3, "device": args.device})
    rnn.init_log()
    # With torch, so after the command line has been looked at.
    from returnn.engine.model_files import optimizer_filename
    from returnn.options.checkpoint import CheckpointOptions
    from returnn.options.training import EngineOptions
    from returnn.torch.checkpoint import find_checkpoint_file
    from returnn.torch.device import choose_device
    from returnn.torch.engine import Engine
    from returnn.torch.inspection import TensorPrinter
    from returnn.torch.model_state import build_model
    from returnn.torch.updater import Updater

    set_print_options(args.printoptions)
    existing = Engine.get_existing_models(config)
    options = CheckpointOptions.from_config(config)
    filename = options.load or (existing[max(existing)] if existing else None)
    if filename is None and not args.fresh:
        raise CheckpointError(
            f"There is no checkpoint of the config {args.config}: model = {options.model!r}, seen from "
            f"{os.getcwd()}. Give the folder with --cwd, or set load, or use --fresh to see the model before training."
        )
    device = choose_device(EngineOptions.from_config(config).device)
    engine_options = EngineOptions.from_config(config)
    loaded = build_model(
        config=config, engine=None, device=device, epoch=None, filename=filename, options=engine_options
    )
    updater = Updater(config=config, network=loaded.model, device=device)
    updater.create_optimizer()
    print(f"Model: {find_checkpoint_file(filename) if filename else 'fresh, nothing was loaded'}")
    opt_filename = optimizer_filename(filename) if filename else None
    if opt_filename and os.path.exists(opt_filename):
        updater.load_optimizer(opt_filename)
        print(f"Optimizer: {opt_filename}")
    else:
        print(f"Optimizer: fresh, {opt_filename or 'its file'} does not exist")
    assert updater.optimizer is not None
    printer = TensorPrinter(
        values=(args.all_tensors or args.key is not None) and not args.stats_only, stats=args.stats_only
    )
    params = dict(loaded.model.named_parameters())
    if args.key is not None and args.key not in params:
        similar = [name for name in params if args.key in name] or list(params)
        raise CheckpointError(f"The model has no parameter {args.key!r}. It has: {', '.join(similar[:10])}.")
    for name, param in params.items():
        if args.key in (None, name):
            printer.print_entry(name, param)
            _print_state(printer, updater.optimizer.state.get(param))


def _print_state(printer: Any, state: Any) -> None:  # Any: TensorPrinter, imported late; what the optimizer keeps
    if not state:
        print("  (no optimizer state)")
        return
    for name, value in state.items():
        printer.print_entry(str(name), value, level=1)


if __name__ == "__main__":
    run_tool(main)
