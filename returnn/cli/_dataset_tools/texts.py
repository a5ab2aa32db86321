"""Texts of the sequences of a dataset, e.g. the reference transcriptions of a recognition."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy

from returnn.cli._dataset_tools.reading import iter_seqs, positions_from
from returnn.cli.dataset_source import choose_key, dataset_opts, init_tool_log, load_config_for_tool
from returnn.datasets.basic import Dataset, init_dataset, init_dataset_via_str
from returnn.errors import ConfigError, DatasetError, describe

__all__ = ["open_text_dataset", "iter_texts", "text_of_data"]


def open_text_dataset(
    config_filename: str | None, dataset_str: str | None, *, option_names: Sequence[str], verbosity: int
) -> Dataset:
    """
    Log, config and dataset, without the order of an epoch.

    :param config_filename: None: only a dataset string is given
    :param dataset_str: with a config, the name of a dataset there; else a dataset literal, or HDF files separated by commas
    :param option_names: options of the config that may hold the dataset or its name; the first one that is set is used
    :param verbosity: of the log
    :raises ConfigError: neither is given, or there is no such dataset
    """
    init_tool_log(verbosity)
    if config_filename is None and dataset_str is None:
        raise ConfigError(f"Which dataset? Give --dataset, or --config with the option {' or '.join(option_names)}.")
    config = load_config_for_tool(config_filename, verbosity=verbosity)
    init_tool_log(verbosity)
    if config_filename is None:
        return init_dataset_via_str(dataset_str or "")
    if dataset_str is not None and dataset_str.startswith("{"):
        return init_dataset(dataset_str)
    name = dataset_str or next((n for n in option_names if config.typed_value(n) is not None), option_names[-1])
    name, opts = dataset_opts(config, name, config_filename)
    if isinstance(opts, str) and not opts.startswith("{"):
        name, opts = dataset_opts(config, opts, config_filename)  # the option names another one
    if isinstance(opts, (dict, str)) or callable(opts):
        return init_dataset(opts, default_kwargs={"name": name})
    return init_dataset(opts)


def iter_texts(dataset: Dataset, *, key: str, start: int = 0, end: int = -1) -> Iterator[tuple[str, str]]:
    """
    :param dataset: starts epoch 1
    :param key: data key with texts
    :param start: first position
    :param end: last position, inclusive; negative: up to the end
    :return: tag and text of each sequence
    :raises DatasetError: the data is no text
    """
    dataset.init_seq_order(epoch=1)
    key = choose_key(dataset, key)
    for seq in iter_seqs(dataset, positions_from(start, None if end < 0 else end), keys=[key]):
        yield seq.tag, text_of_data(seq.data[key], where=f"dataset {dataset.name!r}, key {key!r}, sequence {seq.tag!r}")


def text_of_data(data: numpy.ndarray, *, where: str) -> str:
    """
    :param data: one text: 0-d or [1], of str or UTF-8 bytes; or [num_bytes] uint8, UTF-8
    :param where: for the error
    :return: builtin str
    :raises DatasetError: none of these
    """
    data = numpy.asarray(data)
    value: object = None
    if data.dtype.kind in "USO" and data.size == 1:
        value = data.reshape(()).item()
    elif data.dtype == numpy.uint8 and data.ndim == 1:
        value = data.tobytes()
    if isinstance(value, bytes):
        try:
            return value.decode("utf8")
        except UnicodeDecodeError as exc:
            raise DatasetError(describe(f"The text is not UTF-8 ({exc})", where=where)) from exc
    if not isinstance(value, str):
        raise DatasetError(
            describe(
                "The data is no text",
                where=where,
                expected="a string (0-d, str or bytes), or uint8 [num_bytes]",
                got=f"{data.dtype} {list(data.shape)}",
                todo="Give another --key",
            )
        )
    return str(value)
