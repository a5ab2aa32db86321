"""Checks of the options of MetaDataset, and reading its length file."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError, DataFileError, describe

__all__ = ["check_data_map", "get_order_options", "load_json_lens"]


def check_data_map(
    datasets: Mapping[str, Any], data_map: Mapping[str, Sequence[str]], control: str | None, *, where: str
) -> dict[str, tuple[str, str]]:
    """
    :param datasets: option; Any: the children have any form
    :param data_map: option
    :param control: option seq_order_control_dataset
    :param where: for error texts
    :return: own stream -> (key of the child, stream of the child)
    :raises ConfigError: if they do not fit together
    """
    if not isinstance(datasets, Mapping) or not isinstance(data_map, Mapping) or not data_map:
        raise ConfigError(
            describe(
                "datasets and data_map must be nonempty dicts",
                where=where,
                expected='e.g. data_map={"data": ("features", "data")}',
                got=data_map,
            )
        )
    res = {}
    for stream, target in data_map.items():
        if not isinstance(target, (tuple, list)) or len(target) != 2 or target[0] not in datasets:
            raise ConfigError(
                describe(
                    f"data_map[{stream!r}] is invalid",
                    where=where,
                    expected=f"(key of datasets, stream of that dataset) with a key of {sorted(datasets)}",
                    got=target,
                )
            )
        res[stream] = (target[0], target[1])
    used = sorted({key for key, _ in res.values()})
    if control is not None and control not in used:
        raise ConfigError(
            describe(
                "seq_order_control_dataset must be a dataset that data_map uses",
                where=where,
                expected=f"one of {used}",
                got=control,
                todo="Map one of its streams in data_map",
            )
        )
    if control is None and "data" not in res:
        raise ConfigError(
            "If no seq_order_control_dataset is specified, a 'data' datastream is required.\n"
            "Nevertheless defining seq_order_control_dataset is strongly recommended."
            f" ({where}, streams {sorted(res)})"
        )
    return res


def get_order_options(dataset: Dataset) -> list[str]:
    """
    :param dataset: any
    :return: names of the options about the order that are not neutral
    """
    neutral: dict[str, tuple[str, Any]] = {
        "seq_ordering": ("seq_ordering", "default"),
        "partition_epoch": ("partition_epoch", 1),
        "repeat_epoch": ("repeat_epoch", 1),
        "fixed_random_seed": ("fixed_random_seed", None),
        "seq_list_filter_file": ("_seq_list_filter_file", None),
        "unique_seq_tags": ("unique_seq_tags", False),
        "seq_order_seq_lens_file": ("_seq_order_seq_lens_file", None),
    }
    return [name for name, (attr, value) in neutral.items() if getattr(dataset, attr, value) != value]


def load_json_lens(filename: str) -> dict[str, dict[str, float]]:
    """
    :param filename: JSON
    :return: tag -> stream -> length
    :raises DataFileError: if it is missing or has another form
    """
    try:
        with open(filename, encoding="utf8") as file:
            lens = json.load(file)
    except (OSError, ValueError, RecursionError) as exc:
        raise DataFileError(
            describe(
                f"Cannot read seq_lens_file {filename!r} ({type(exc).__name__}: {exc})",
                todo='It must be JSON: {"tag": {"data": length, ...}, ...}',
            )
        ) from exc
    if not isinstance(lens, dict):
        raise DataFileError(
            describe(f"seq_lens_file {filename!r} is invalid", expected="JSON dict tag -> stream -> length", got=lens)
        )
    return lens
