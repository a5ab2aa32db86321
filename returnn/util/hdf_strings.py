"""
Strings, shapes and attributes in HDF files. The package h5py is imported at first use.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy

from returnn.util.optional_import import optional_import

__all__ = ["hdf5_dimension", "hdf5_group", "hdf5_shape", "hdf5_strings"]


def _open(filename: str) -> Any:
    return optional_import("h5py", needed_by="HDF files").File(filename, "r")


def hdf5_dimension(filename: str, dimension: str) -> Any:
    """
    :param filename: HDF file
    :param dimension: attribute, with the path of its group before, e.g. "numTimesteps" or "targets/size/classes"
    :return: value of the attribute
    """
    with _open(filename) as file:
        group, _, name = dimension.rpartition("/")
        return (file[group] if group else file).attrs[name]


def hdf5_group(filename: str, dimension: str) -> dict[str, Any]:
    """
    :param filename: HDF file
    :param dimension: path of a group
    :return: its attributes
    """
    with _open(filename) as file:
        return dict(file[dimension].attrs)


def hdf5_shape(filename: str, dimension: str) -> tuple[int, ...]:
    """
    :param filename: HDF file
    :param dimension: path of a data set
    :return: its shape
    """
    with _open(filename) as file:
        shape: tuple[int, ...] = file[dimension].shape
        return shape


def hdf5_strings(handle: Any, name: str, data: Sequence[str]) -> None:
    """
    Write texts: of fixed length if all are ASCII, else of variable length (UTF-8).

    :param handle: h5py file or group
    :param name: of the new data set
    :param data: texts
    """
    h5py = optional_import("h5py", needed_by="HDF files")
    texts = list(data)
    if texts and all(text.isascii() for text in texts):
        max_len = max(map(len, texts))
        # S0 is not a valid type of HDF.
        array = numpy.array([text.encode("ascii") for text in texts], dtype=f"S{max(max_len, 1)}")
        handle.create_dataset(name, data=array)
    else:
        dataset = handle.create_dataset(name, (len(texts),), dtype=h5py.string_dtype("utf8"))
        if texts:
            dataset[...] = texts
