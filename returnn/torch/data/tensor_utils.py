"""Conversion of all values of a `TensorDict`, and their sizes, between numpy and torch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy
import torch

from returnn.tensor import Dim, TensorDict
from returnn.tensor._raw import to_numpy
from returnn.torch.data.collate import create_tensor

__all__ = ["tensor_dict_numpy_to_torch_", "tensor_dict_torch_to_numpy_"]


def tensor_dict_numpy_to_torch_(tensor_dict: TensorDict) -> None:
    """
    Make torch tensors on the CPU of all arrays of numbers, and of the sizes; uint16 becomes int32, uint32 becomes int64.
    Strings stay.

    :param tensor_dict: changed in place
    """
    _convert(tensor_dict, lambda raw: create_tensor(raw) if isinstance(raw, numpy.ndarray) else raw)


def tensor_dict_torch_to_numpy_(tensor_dict: TensorDict) -> None:
    """
    Make arrays of all torch tensors, and of the sizes; bfloat16 becomes float32. Waits for their device.

    :param tensor_dict: changed in place
    """
    _convert(tensor_dict, lambda raw: to_numpy(raw) if isinstance(raw, torch.Tensor) else raw)


def _convert(tensor_dict: TensorDict, func: Callable[[Any], Any]) -> None:  # Any: raw tensors
    seen: set[Dim] = set()
    for tensor in tensor_dict.data.values():
        for dim in tensor.dims:
            if dim not in seen and dim.dyn_size_ext is not None and dim.dyn_size_ext.raw_tensor is not None:
                # A new object: others may hold the old one.
                sizes = dim.dyn_size_ext.copy_template()
                sizes.raw_tensor = func(dim.dyn_size_ext.raw_tensor)
                dim.dyn_size_ext = sizes
            seen.add(dim)
        if tensor.raw_tensor is not None:
            tensor.raw_tensor = func(tensor.raw_tensor)
            if not (isinstance(tensor.raw_tensor, numpy.ndarray) and tensor.raw_tensor.dtype.kind in "UOS"):
                tensor.dtype = str(tensor.raw_tensor.dtype).removeprefix("torch.")
