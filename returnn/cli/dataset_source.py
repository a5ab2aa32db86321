"""
The dataset that a tool works on, as its command line names it: a config file, a dataset literal, or an HDF file.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import logging
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Literal

import returnn.__main__ as rnn
import returnn.options.data  # noqa: F401  # declares eval_datasets
from returnn.config import Config, set_global_config
from returnn.datasets.basic import Dataset, init_dataset
from returnn.errors import ConfigError, DataFileError, MissingOptionError, UnknownDataKeyError, describe
from returnn.log import log
from returnn.options.registry import read
from returnn.util.debug import init_faulthandler
from returnn.util.literal import LiteralError, parse_literal

__all__ = [
    "DatasetSource",
    "add_source_arguments",
    "parse_source",
    "init_tool_log",
    "load_config_for_tool",
    "create_dataset",
    "dataset_opts",
    "split_config_options",
    "open_dataset",
    "greet",
    "choose_key",
    "SOURCE_EPILOG",
]

#: For the help of tools, after their own examples.
SOURCE_EPILOG = """\
The dataset can be given as:
  my.config                    the dataset "train" of a config; another one with --dataset dev
  '{"class": "HDFDataset", "files": ["a.hdf"]}'
                               a Python literal
  a.hdf                        an HDF file (the name ends in .hdf)
"""


@dataclasses.dataclass(frozen=True)
class DatasetSource:
    """
    What the argument names.

    :param kind: form of the argument
    :param text: the argument, stripped
    :param opts: dataset dict, None for a config
    """

    kind: Literal["config", "literal", "hdf"]
    text: str
    opts: Mapping[str, Any] | None = None  # Any: options of datasets

    @property
    def info(self) -> str:
        """:return: line that says what is used"""
        if self.kind == "config":
            return f"Using config file {self.text!r}."
        return f"Using dataset {self.text if self.kind == 'literal' else dict(self.opts or {})}."


def add_source_arguments(parser: argparse.ArgumentParser) -> None:
    """:param parser: gets the arguments ``returnn_config`` and ``--dataset``"""
    parser.add_argument("returnn_config", help="config file, or dataset literal {...}, or HDF file (see below)")
    parser.add_argument(
        "--dataset",
        help='name of the dataset in the config: an option, e.g. "dev", or a name in eval_datasets (default: train)',
    )


def parse_source(argument: str) -> DatasetSource:
    """
    :param argument: of the command line
    :return: its form. Files are not opened
    :raises ConfigError: no literal, or no such config
    :raises DataFileError: no such HDF file
    """
    text = argument.strip()
    if text.startswith("{"):
        try:
            opts = parse_literal(text)
        except LiteralError as exc:
            raise ConfigError(
                describe(
                    f"The dataset argument is no Python literal ({exc})", todo='Write e.g. {"class": "HDFDataset", ...}'
                )
            ) from exc
        if not isinstance(opts, dict):
            raise ConfigError(describe("The dataset argument is invalid", expected="a dict literal", got=opts))
        return DatasetSource("literal", text, opts)
    if text.endswith(".hdf"):
        if not os.path.isfile(text):
            raise DataFileError(describe(f"HDF file {text!r} does not exist", todo="Check the path"))
        return DatasetSource("hdf", text, {"class": "HDFDataset", "files": [text]})
    if not os.path.isfile(text):
        raise ConfigError(
            describe(
                f"{text!r} is no file",
                expected='config file, or dataset literal {"class": ...}, or file that ends in .hdf',
                got=argument,
            )
        )
    return DatasetSource("config", text)


def init_tool_log(verbosity: int, *, to_stderr: bool = False) -> None:
    """
    Log to the console only: the log file of the training stays as it is.

    :param verbosity: 0 to 5
    :param to_stderr: instead of stdout, which then holds only the output of the tool
    """
    if to_stderr:
        log.initialize(logs=[logging.StreamHandler(sys.stderr)], verbosity=[verbosity], propagate=True)
    else:
        log.initialize(verbosity=[verbosity])


def load_config_for_tool(filename: str | None, *, verbosity: int | None, options: Sequence[str] = ()) -> Config:
    """
    :param filename: config file; None: an empty config
    :param verbosity: option log_verbosity of the result, None: as it is in the config; the option log is unset
    :param options: further options, as ``++key value``
    :return: the config, which is the global one from now on
    """
    rnn.init_config(config_filename=filename, command_line_options=options, default_config={"cache_size": "0"})
    config = rnn.config
    assert config is not None, "init_config sets it"
    set_global_config(config)
    config.set("log", None)
    if verbosity is not None:
        config.set("log_verbosity", verbosity)
    return config


def dataset_opts(config: Config, name: str | None, filename: str) -> tuple[str, Any]:
    """
    :param config: loaded
    :param name: option, also as "config:NAME"; or name in eval_datasets; or dataset literal; None: train
    :param filename: of the config, for the error
    :return: name, and what init_dataset takes. Any: of the user
    :raises MissingOptionError: there is no such dataset
    """
    name = "train" if name is None else name.strip()
    if name.startswith("{"):
        return "dataset", parse_source(name).opts
    if name.startswith("config:"):
        name = name[len("config:") :]
    opts = config.typed_value(name)
    if opts is None:
        eval_datasets = read(config, "eval_datasets")
        if isinstance(eval_datasets, Mapping):
            opts = eval_datasets.get(name)
    if opts is None:
        known = [
            key
            for key, value in config.typed_dict.items()
            if isinstance(value, Mapping) and value.get("class") is not None
        ]
        raise MissingOptionError(
            name,
            needed_for="this tool, as the dataset to use",
            todo=f"Set {name} = {{'class': ...}} in {filename}, or give --dataset NAME"
            + (f" with one of {', '.join(known)}" if known else ""),
        )
    return name, opts


def create_dataset(source: DatasetSource, config: Config, dataset_name: str | None = None) -> Dataset:
    """
    :param source: from :func:`parse_source`
    :param config: loaded from it, if it is a config
    :param dataset_name: option of the config; None: train
    :return: the dataset, without the order of an epoch
    :raises ConfigError: there is no such dataset, or a name was given although the source is no config
    """
    if source.kind != "config":
        if dataset_name is not None:
            raise ConfigError(
                describe(
                    f"--dataset {dataset_name} names a dataset of a config, but {source.text!r} is none",
                    todo="Leave --dataset out, or give a config file",
                )
            )
        return init_dataset(source.opts or {}, default_kwargs={"name": "dataset"})
    name, opts = dataset_opts(config, dataset_name, source.text)
    if isinstance(opts, (dict, str)) or callable(opts):
        return init_dataset(opts, default_kwargs={"name": name})
    return init_dataset(opts)


def split_config_options(args: Sequence[str]) -> tuple[list[str], list[str]]:
    """
    :param args: of the command line, without the program
    :return: arguments of the tool; and options of the config: each ``++key`` with the value that follows
    """
    of_tool: list[str] = []
    of_config: list[str] = []
    rest = iter(args)
    for arg in rest:
        if arg.startswith("++"):
            of_config += [arg, *itertools.islice(rest, 1)]
        else:
            of_tool.append(arg)
    return of_tool, of_config


def open_dataset(
    argument: str,
    dataset_name: str | None,
    *,
    verbosity: int,
    log_to_stderr: bool = False,
    config_options: Sequence[str] = (),
) -> tuple[Config, Dataset]:
    """
    All of the common start: log, config, dataset.

    :param argument: of the command line
    :param dataset_name: option of the config; None: train
    :param verbosity: of the log
    :param log_to_stderr: see :func:`init_tool_log`; there also goes what the config prints while it is loaded
    :param config_options: further options, as ``++key value``
    :return: config (empty if the argument is none) and dataset
    """
    init_tool_log(verbosity, to_stderr=log_to_stderr)
    source = parse_source(argument)
    print(source.info, file=log.v3)
    with contextlib.redirect_stdout(sys.stderr) if log_to_stderr else contextlib.nullcontext():
        config = load_config_for_tool(
            source.text if source.kind == "config" else None, verbosity=verbosity, options=config_options
        )
        init_tool_log(verbosity, to_stderr=log_to_stderr)  # the config may have changed it
        return config, create_dataset(source, config, dataset_name)


def greet(tool: str) -> None:
    """:param tool: name for the line that says that it starts"""
    print(f"Returnn {tool} starting up.", file=log.v3)
    rnn.returnn_greeting()
    init_faulthandler()


def choose_key(dataset: Dataset, key: str | None) -> str:
    """
    :param dataset:
    :param key: wanted data key; None: "data", or the first one if there is no such key
    :return: data key of the dataset
    :raises UnknownDataKeyError: it has no such key
    """
    keys = list(dataset.get_data_keys())
    if key is None and keys and "data" not in keys:
        print(f"Using the data key {keys[0]!r}, as there is no key 'data'; see --key.", file=log.v3)
        return keys[0]
    key = key or "data"
    if key not in keys:
        raise UnknownDataKeyError(
            describe(f"Dataset {dataset.name!r} has no data key {key!r}", expected=f"--key, one of {keys}", got=key)
        )
    return key
