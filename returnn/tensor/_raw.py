"""
What axes need of raw tensors of any framework (numpy, torch): this layer does not import torch.

A torch tensor can only exist where torch is imported already, so its module is found among the loaded ones.
"""

from __future__ import annotations

import sys
from typing import Any

import numpy

__all__ = ["arange_like", "is_torch", "new_scalar", "on_device", "to_numpy"]

# Any, in the whole module: a raw tensor is a numpy array or a torch tensor.


def is_torch(raw: Any) -> bool:
    """:return: whether it is a torch tensor"""
    torch = sys.modules.get("torch")
    return torch is not None and hasattr(torch, "Tensor") and isinstance(raw, torch.Tensor)


def arange_like(size: int, raw: Any) -> Any:
    """:return: 0 .. size-1, [size] int32, of the same framework and on the same device as the raw tensor"""
    if is_torch(raw):
        torch: Any = sys.modules["torch"]
        return torch.arange(size, dtype=torch.int32, device=raw.device)
    return numpy.arange(size, dtype=numpy.int32)


def new_scalar(value: int, device: Any = None) -> Any:
    """
    :param value: below 2**31
    :param device: of the result, for torch
    :return: 0-dim int32: a torch tensor where torch is loaded, else a numpy array
    """
    torch: Any = sys.modules.get("torch")
    if torch is not None and hasattr(torch, "Tensor"):
        return torch.tensor(value, dtype=torch.int32, device=device)
    return numpy.array(value, dtype=numpy.int32)


def on_device(raw: Any, device: Any) -> Any:
    """
    :param raw: any raw tensor
    :param device: e.g. "cuda"; None: as it is
    :return: there, without waiting for the device. Numpy arrays stay
    """
    if device is None or not is_torch(raw):
        return raw
    if raw.is_cpu and str(device).startswith("cuda"):  # only from pinned memory CUDA copies without waiting
        raw = raw.pin_memory()
    return raw.to(device, non_blocking=raw.is_cpu)


def to_numpy(raw: Any) -> numpy.ndarray:
    """:return: the values as an array; bfloat16, which numpy lacks, as float32. Waits for the device of the tensor"""
    if is_torch(raw):
        raw = raw.detach()
        if str(raw.dtype) == "torch.bfloat16":
            raw = raw.float()
        return raw.cpu().numpy()  # type: ignore[no-any-return]
    return numpy.asarray(raw)
