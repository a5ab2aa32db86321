"""Checks of the options of CombinedDataset."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np

from returnn.datasets._basic.data_dims import dim_and_ndim
from returnn.datasets._meta.children import DatasetSpec
from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError, describe
from returnn.log import log

__all__ = ["check_data_map", "check_no_parts", "check_same_dims", "check_sampling_sizes"]


def check_data_map(
    datasets: Mapping[str, DatasetSpec], data_map: Mapping[tuple[str, str], str], *, where: str
) -> Mapping[tuple[str, str], str]:
    """
    :param datasets: option
    :param data_map: option
    :param where: for the error text
    :return: data_map
    :raises ConfigError: they do not fit together
    """
    if not isinstance(datasets, Mapping) or not isinstance(data_map, Mapping) or not data_map:
        raise ConfigError(
            describe(
                "datasets and data_map must be nonempty dicts",
                where=where,
                expected='e.g. data_map={("audio", "data"): "audio"}',
                got=data_map,
            )
        )
    seen: set[tuple[str, str]] = set()
    for source, stream in data_map.items():
        is_source = isinstance(source, tuple) and len(source) == 2 and source[0] in datasets
        if not is_source or not isinstance(stream, str):
            swapped = isinstance(source, str) and isinstance(stream, (tuple, list))
            raise ConfigError(
                describe(
                    f"data_map entry {source!r}: {stream!r} is invalid",
                    where=where,
                    expected=f"(key of datasets, stream of that dataset) -> own stream, with a key of {sorted(datasets)}",
                    got=source,
                    todo="Swap key and value: it is the other way round than in MetaDataset" if swapped else None,
                )
            )
        if (source[0], stream) in seen:
            raise ConfigError(
                describe(
                    f"data_map: two streams of the child {source[0]!r} are mapped to the same own stream {stream!r}",
                    where=where,
                )
            )
        seen.add((source[0], stream))
    return data_map


def check_same_dims(stream: str, key: str, first: Any, second: Any, *, where: str) -> None:
    """
    :param stream: own stream
    :param key: of the second child
    :param first: dims there. Any: (dim, ndim) or dict
    :param second: dims in the second child
    :param where: for the error text
    :raises ConfigError: the data of both cannot be in one stream
    """
    (dim1, ndim1), (dim2, ndim2) = dim_and_ndim(first), dim_and_ndim(second)
    if (dim1, ndim1) == (dim2, ndim2):
        return
    text = f"the children have different dims of stream {stream!r}"
    if ndim1 == ndim2 and ndim1 <= 1:
        # Labels: the data goes together, the vocabularies may not.
        print(f"Warning: {where}: {text}: {dim1}, and {dim2} of {key!r}, which counts.", file=log.v2)
        return
    raise ConfigError(
        describe(
            text,
            where=where,
            expected=f"(dim, ndim) = {(dim1, ndim1)} in all of them",
            got=(dim2, ndim2),
            todo="Map them to different streams",
        )
    )


def check_sampling_sizes(
    dataset: Dataset, sizes: int | Mapping[str, int] | None, keys: Sequence[str], *, unused: Collection[str]
) -> list[int] | None:
    """
    :param dataset: whose option it is
    :param sizes: the option
    :param keys: of the children
    :param unused: of children that no stream is mapped from: the option may have them
    :return: per child; None if the option is not given
    :raises ConfigError: it is wrong, or does not fit to other options
    """
    if sizes is None:
        return None
    per_child = sizes if isinstance(sizes, Mapping) else dict.fromkeys(keys, sizes)
    missing = set(keys) - set(per_child)
    unknown = set(per_child) - set(keys) - set(unused)
    ok = all(isinstance(k, (int, np.integer)) and not isinstance(k, bool) and k >= 0 for k in per_child.values())
    if missing or unknown or not ok:
        raise ConfigError(
            describe(
                'option "sampling_sizes" is invalid',
                where=dataset._where(),
                expected=f"int >= 0, or a dict with one for each of {keys}",
                got=sizes,
            )
        )
    for name, neutral in (
        ("partition_epoch", dataset.partition_epoch == 1),
        ("unique_seq_tags", not dataset.unique_seq_tags),
        ("seq_list_filter_file", dataset.seq_tags_filter is None),
        ("seq_order_seq_lens_file", not dataset._seq_order_seq_lens_file),
    ):
        if not neutral:
            raise ConfigError(
                describe(
                    f'option "{name}" cannot be combined with sampling_sizes',
                    where=dataset._where(),
                    todo=f'Set "{name}" in the children',
                )
            )
    return [int(per_child[key]) for key in keys]


def check_no_parts(dataset: Dataset, what: str) -> None:
    """
    That no option cuts, repeats or selects within the order of all children together.

    :param dataset: whose options
    :param what: with which such options do not go together
    :raises ConfigError: there is one
    """
    for name, value in (
        ("partition_epoch", dataset.partition_epoch),
        ("repeat_epoch", dataset.repeat_epoch),
        ("_num_shards", dataset._num_shards),
    ):
        if value != 1:
            raise ConfigError(
                describe(
                    f'option "{name}" cannot be combined with {what}',
                    where=dataset._where(),
                    expected="1",
                    got=value,
                    todo=f'Set "{name}" in the children',
                )
            )
    for name, is_set in (
        ("unique_seq_tags", dataset.unique_seq_tags),
        ("seq_list_filter_file", dataset.seq_tags_filter is not None),
    ):
        if is_set:
            raise ConfigError(
                describe(
                    f'option "{name}" cannot be combined with {what}',
                    where=dataset._where(),
                    todo=f'Set "{name}" in the children',
                )
            )
