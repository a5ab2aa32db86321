#!/usr/bin/env python3
"""Writes the sequences of a dataset into an HDF file: a dataset of a config, or given as literal, or HDF files again."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.dataset_source import (
    SOURCE_EPILOG,
    add_source_arguments,
    create_dataset,
    load_config_for_tool,
    parse_source,
)
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.datasets.basic import Dataset
from returnn.datasets.util.hdf import HDFDatasetWriter
from returnn.log import log

__all__ = ["hdf_dataset_init", "hdf_dump_from_dataset", "hdf_close", "init", "main"]


def hdf_dataset_init(file_name: str) -> HDFDatasetWriter:
    """
    :param file_name: of the HDF file
    :return: its writer
    """
    return HDFDatasetWriter(file_name)


def hdf_dump_from_dataset(dataset: Dataset, hdf_dataset: HDFDatasetWriter, parser_args: argparse.Namespace) -> None:
    """
    :param dataset: to read
    :param hdf_dataset: to write
    :param parser_args: epoch, start_seq, end_seq (inclusive)
    """
    hdf_dataset.dump_from_dataset(
        dataset, epoch=parser_args.epoch, start_seq=parser_args.start_seq, end_seq=parser_args.end_seq
    )


def hdf_close(hdf_dataset: HDFDatasetWriter) -> None:
    """
    :param hdf_dataset: the file gets its name
    """
    hdf_dataset.close()


def init(
    config_filename: str | None,
    cmd_line_opts: Sequence[str] = (),
    dataset_config_str: str | None = None,
    dataset_name: str | None = None,
) -> Dataset:
    """
    :param config_filename: config with the dataset, or HDF file
    :param cmd_line_opts: further options of the config, as ``++key value``
    :param dataset_config_str: dataset as literal ``{"class": ...}``, instead of a config
    :param dataset_name: option of the config; None: train
    :return: the dataset
    :raises ConfigError: if there is no such dataset
    """
    source = parse_source(dataset_config_str or config_filename or "")
    config = load_config_for_tool(
        source.text if source.kind == "config" else None, verbosity=None, options=cmd_line_opts
    )
    # The log file of the training stays as it is.
    log.initialize(verbosity=config.int_list("log_verbosity", []) if config.has("log_verbosity") else [4])
    print("Returnn hdf_dump starting up.", file=log.v3)
    dataset = create_dataset(source, config, dataset_name)
    print("Source dataset:", dataset.len_info(), file=log.v3)
    return dataset


def _end_seq(text: str) -> int | float:
    return float("inf") if text == "inf" else int(text)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Dump a dataset into an HDF file. An existing file is replaced.",
        epilog=SOURCE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("hdf_filename", help="file to write")
    parser.add_argument("--start_seq", type=int, default=0, help="first sequence, counted from 0 (default: 0)")
    parser.add_argument(
        "--end_seq",
        type=_end_seq,
        default=float("inf"),
        help="last sequence, inclusive: --start_seq 0 --end_seq 1 dumps two sequences (default: inf)",
    )
    parser.add_argument("--epoch", type=int, default=1, help="whose order is dumped (default: 1)")
    return parser


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    args = _make_parser().parse_args(list(argv[1:]))
    check_output_file(args.hdf_filename, option="hdf_filename")
    dataset = init(args.returnn_config, dataset_name=args.dataset)
    with hdf_dataset_init(args.hdf_filename) as hdf_dataset:
        hdf_dump_from_dataset(dataset, hdf_dataset, args)
    print("Quitting", file=log.v4)


if __name__ == "__main__":
    run_tool(main)
