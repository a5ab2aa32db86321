"""
The conventions of ``num_outputs``: key -> (dim, number of axes including time).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.errors import DatasetError

__all__ = ["convert_data_dims", "dim_and_ndim", "dtype_of_dict", "shape_of"]


def _is_int(value: object) -> bool:
    return hasattr(value, "__index__") and not isinstance(value, bool)


def _invalid(data_dims: object) -> DatasetError:
    return DatasetError(
        "output dims of a dataset: expected an int (dim of key 'classes') or a dict key -> dim or (dim, ndim) "
        f"with ints and ndim >= 1, got {data_dims!r} ({type(data_dims).__name__}). "
        "ndim is 1 for sparse data, 2 for dense data."
    )


def convert_data_dims(
    data_dims: int | Mapping[str, Any], leave_dict_as_is: bool = False
) -> dict[str, tuple[int, int] | Any]:
    """
    Normalise what users give as output dims.

    :param data_dims: int, or key -> dim | (dim, ndim) | dict. Any: these forms
    :param leave_dict_as_is: keep values that are dicts
    :return: new dict, key -> (dim, ndim)
    :raises DatasetError: anything else
    """
    if _is_int(data_dims):
        data_dims = {"classes": data_dims}
    if not isinstance(data_dims, Mapping):
        raise _invalid(data_dims)
    result: dict[str, Any] = {}
    for key, value in data_dims.items():
        if _is_int(value):
            value = (value, 2 if key == "data" else 1)
        if isinstance(value, Mapping) and leave_dict_as_is:
            result[key] = value
            continue
        if not isinstance(value, (tuple, list)) or len(value) != 2 or not all(_is_int(v) for v in value):
            raise _invalid(data_dims)
        dim, ndim = (v.__index__() for v in value)
        if ndim < 1:
            raise _invalid(data_dims)
        result[key] = (dim, ndim)
    return result


def dim_and_ndim(entry: Any) -> tuple[int, int]:
    """
    :param entry: value of ``num_outputs``: (dim, ndim), or a dict as for ``extern_data``. Any: these forms
    :return: (dim, ndim)
    """
    if isinstance(entry, Mapping):
        shape = tuple(entry.get("shape", ()))
        dim = entry.get("dim", shape[-1] if shape and shape[-1] is not None else None)
        return (1 if dim is None else int(dim)), len(shape)
    if _is_int(entry):
        return int(entry), 1
    return entry[0], entry[1]


def dtype_of_dict(entry: Any) -> str | None:
    """
    :param entry: value of ``num_outputs``. Any: (dim, ndim) or dict
    :return: the dtype that a dict entry declares
    """
    return entry.get("dtype") if isinstance(entry, Mapping) else None


def shape_of(dim: int, ndim: int, sparse: bool) -> list[int | None]:
    """
    :param dim: feature size
    :param ndim: number of axes including time
    :param sparse: last axis is no feature axis
    :return: shape without the first (time) axis
    """
    if ndim <= 1:
        return []
    shape: list[int | None] = [None] * (ndim - 1)
    if not sparse:
        shape[-1] = dim
    return shape
