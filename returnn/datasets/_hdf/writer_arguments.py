"""The arguments of SimpleHDFWriter: do labels, dimensions and streams fit together."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from returnn.datasets._hdf.batch_to_frames import is_storable_text, num_entries
from returnn.datasets._hdf.format import INPUTS_KEY
from returnn.errors import ConfigError, DatasetError, describe

__all__ = ["check_labels_and_types", "checked_streams", "problem_of_key"]


def check_labels_and_types(
    dim: int | None,
    labels: Sequence[str] | None,
    extra_labels: Mapping[str, Sequence[str]],
    extra_type: Mapping[str, tuple[int | None, int, Any]],
    *,
    where: str,
) -> None:
    """
    :param dim: of the main stream
    :param labels: of the main stream
    :param extra_labels: key -> labels of an extra stream
    :param extra_type: key -> (dim or None, ndim, dtype)
    :param where: for error texts
    :raises ConfigError: if they do not fit together
    """
    if labels is not None and len(labels) != dim:
        raise ConfigError(describe("labels do not fit to dim", where=where, expected=f"{dim} labels", got=len(labels)))
    for key, values in extra_labels.items():
        key_dim = extra_type[key][0] if key in extra_type else None
        if key_dim is not None and len(values) != key_dim:
            raise ConfigError(
                describe(
                    f"extra_labels[{key!r}] do not fit to dim",
                    where=where,
                    expected=f"{key_dim} labels",
                    got=len(values),
                )
            )
    for key, entry in extra_type.items():
        problem = problem_of_key(key)
        if problem:
            raise ConfigError(describe(problem, where=f"{where}, extra_type", todo="Choose another key"))
        _check_extra_type(key, entry, where=where)
    bad_labels = [
        label for label in [*(labels or ()), *itertools.chain(*extra_labels.values())] if not is_storable_text(label)
    ]
    if bad_labels:
        raise ConfigError(describe("bad label", where=where, expected="UTF-8 text without NUL", got=bad_labels[0]))


def problem_of_key(key: object) -> str | None:
    """
    :param key: of the user
    :return: why this cannot be the key of an extra stream; None if it can
    """
    if key in (INPUTS_KEY, "data"):
        return f"{key!r} cannot be an extra stream, it is the main one"
    if not is_storable_text(key) or not isinstance(key, str) or not key or "/" in key or key == ".":
        return f"{key!r} cannot be the key of an extra stream, it must be a text without '/'"
    return None


def checked_streams(value: Any, name: str, *, where: str) -> Mapping[str, Any]:
    """
    :param value: of the user, supposed to be a mapping key -> values of an extra stream. Any: as there
    :param name: of the argument
    :param where: for error texts
    :return: it; empty for None and whatever else is empty
    :raises DatasetError: it is no mapping
    """
    if isinstance(value, Mapping):
        return value
    if value is None or num_entries(value) == 0:
        return {}
    raise DatasetError(
        describe(
            f"insert_batch: bad {name}", where=where, expected="dict: key of the extra stream -> values", got=value
        )
    )


def _check_extra_type(key: str, entry: Any, *, where: str) -> None:
    """:param entry: Any: of the user, supposed to be (dim or None, ndim, dtype)"""
    try:
        dim, ndim, dtype = entry
        ok = isinstance(dim, (int, np.integer, type(None))) and isinstance(ndim, (int, np.integer)) and ndim >= 0
        if dtype != "string":
            np.dtype(dtype)
    except (TypeError, ValueError):
        ok = False
    if not ok:
        raise ConfigError(
            describe(
                f"extra_type[{key!r}] is invalid",
                where=where,
                expected='(dim or None, ndim, dtype), dtype a numpy dtype or "string"',
                got=entry,
            )
        )
