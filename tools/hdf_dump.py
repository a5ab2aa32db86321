#!/usr/bin/env python3
"""Writes all sequences of a dataset into an HDF file: the dataset "train" of a config, or a dataset given as literal."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from typing import Any

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.config import Config, set_global_config
from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.util.hdf import HDFDatasetWriter
from returnn.errors import ConfigError, MissingOptionError, describe
from returnn.log import log
from returnn.util.literal import LiteralError, parse_literal

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
    config_filename: str | None, cmd_line_opts: Sequence[str] = (), dataset_config_str: str | None = None
) -> Dataset:
    """
    :param config_filename: config with the option "train"
    :param cmd_line_opts: further options of the config, as ``++key value``
    :param dataset_config_str: dataset as literal ``{"class": ...}``, instead of a config
    :return: the dataset
    :raises ConfigError: if there is no such dataset
    """
    config = Config()
    set_global_config(config)
    if config_filename:
        config.load_file(config_filename)
    config.parse_cmd_args(cmd_line_opts)
    # The log file of the training stays as it is.
    log.initialize(verbosity=config.int_list("log_verbosity", []) if config.has("log_verbosity") else [4])
    print("Returnn hdf_dump starting up.", file=log.v3)
    if dataset_config_str:
        opts = _parse_dataset(dataset_config_str)
    else:
        if not config.has("train"):
            raise MissingOptionError(
                "train", needed_for="hdf_dump", todo=f"Set train = {{'class': ...}} in {config_filename}"
            )
        opts = config.typed_value("train")
    dataset = init_dataset(opts, default_kwargs={"name": "train"})
    print("Source dataset:", dataset.len_info(), file=log.v3)
    return dataset


def _parse_dataset(text: str) -> Any:
    """:return: dict of options. Any: a literal"""
    try:
        return parse_literal(text)
    except LiteralError as exc:
        raise ConfigError(
            describe(
                f"The dataset argument is no Python literal ({exc})", todo='Write e.g. {"class": "HDFDataset", ...}'
            )
        ) from exc


def _end_seq(text: str) -> int | float:
    return float("inf") if text == "inf" else int(text)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description="Dump a dataset into an HDF file. An existing file is replaced.")
    parser.add_argument(
        "config_file_or_dataset",
        help='config file, whose dataset "train" is dumped; or a dataset as literal {"class": ...}',
    )
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
    source = args.config_file_or_dataset.strip()
    is_literal = source.startswith("{")
    if not is_literal and not os.path.isfile(source):
        raise ConfigError(
            describe(
                f"{source!r} is no config file", expected='file name, or dataset literal {"class": ...}', got=source
            )
        )
    dataset = init(None if is_literal else source, [], source if is_literal else None)
    with hdf_dataset_init(args.hdf_filename) as hdf_dataset:
        hdf_dump_from_dataset(dataset, hdf_dataset, args)
    print("Quitting", file=log.v4)


if __name__ == "__main__":
    run_tool(main)
