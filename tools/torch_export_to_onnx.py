#!/usr/bin/env python3
"""Exports the model of a config and a checkpoint to an ONNX file, and compares the file with PyTorch."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

import returnn.__main__ as rnn
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool

__all__ = ["main"]

_EPILOG = """
A function "export" of the config does the export, if there is one: export(*, model, args, f), or, with extern_data in
the config, with the arguments of torch.onnx.export. Else forward_step is exported. Its inputs are the streams of
extern_data, or those that it reads from the dataset of the config, each followed by its lengths ("data", "data:size1");
its outputs are what it marks (run_ctx.mark_as_output) or returns.
"""


def _names(text: str) -> list[str]:
    return [name.strip() for name in text.split(",") if name.strip()]


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Export a model to ONNX.", epilog=_EPILOG)
    parser.add_argument("config", help="config file")
    parser.add_argument("checkpoint", help="checkpoint file (.pt)")
    parser.add_argument("out_onnx_filename", help="file to write")
    parser.add_argument("--verbosity", type=int, default=4, help="0 to 5 (default: 4)")
    parser.add_argument("--device", default="cpu", help="device to run the model on (default: cpu)")
    parser.add_argument("--input_names", type=_names, metavar="A,B", help="order of the inputs")
    parser.add_argument(
        "--output_names", type=_names, metavar="A,B", help="order of the outputs, or names of those that have none"
    )
    parser.add_argument(
        "--exporter",
        choices=["auto", "torchscript", "dynamo"],
        default="auto",
        help="which exporter of torch (default: auto, the first whose file gives the right results)",
    )
    parser.add_argument(
        "--example_len",
        type=int,
        default=16,
        help="length of the random example sequences for extern_data (default: 16); models that shorten much need more",
    )
    parser.add_argument("--no_verify", action="store_true", help="do not run the file with onnxruntime to compare it")
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    args = _make_parser().parse_args(list(argv[1:]))
    check_output_file(args.out_onnx_filename, option="out_onnx_filename")
    rnn.init_config(config_filename=args.config)
    config = rnn.config
    assert config is not None
    # The log file of the training stays as it is.
    config.update({"log": None, "log_verbosity": args.verbosity, "device": args.device, "task": "forward"})
    rnn.init_log()
    # With torch, so after the command line has been looked at.
    from returnn.torch.export.config_export import ExportArgs, export_model

    rnn.returnn_greeting(config_filename=args.config)
    export_model(
        config,
        args.checkpoint,
        args.out_onnx_filename,
        ExportArgs(
            input_names=args.input_names,
            output_names=args.output_names,
            exporter=args.exporter,
            verify=not args.no_verify,
            example_length=args.example_len,
        ),
    )
    rnn.finalize()


if __name__ == "__main__":
    run_tool(main)
