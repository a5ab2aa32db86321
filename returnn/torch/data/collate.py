"""
Collation of sequences into one batch of tensors, and numpy batches to tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch

from returnn.datasets._loading.collate import NumpyBatch, collate_samples, target_dtype

__all__ = ["create_tensor", "collate_batch", "batch_to_torch", "RawBatch"]

#: Tensors and lists, see :func:`collate_batch`.
RawBatch = dict[str, Any]


def create_tensor(array: Any) -> Any:  # Any: also values that stay as they are
    """
    :param array: numpy array of numbers; strings, objects and other types stay as they are
    :return: CPU tensor; uint16 becomes int32, uint32 becomes int64, since torch does not support them well
    """
    if not isinstance(array, numpy.ndarray) or array.dtype.kind in "UOSV":
        return array
    return torch.tensor(numpy.ascontiguousarray(array, dtype=target_dtype(array.dtype)).reshape(array.shape))


def batch_to_torch(batch: NumpyBatch) -> RawBatch:
    """
    :param batch: arrays of numbers which nobody else writes to, and lists
    :return: the same with CPU tensors, which share the memory of the arrays
    """
    from_numpy = torch.from_numpy
    return {key: from_numpy(v) if isinstance(v, numpy.ndarray) else v for key, v in batch.items()}


def collate_batch(batch: Sequence[Mapping[str, Any]], device: str | torch.device = "cpu") -> RawBatch:
    """
    :param batch: nonempty list of sequences; each: data key -> numpy array [T, ...] or scalar, seq_idx, seq_tag, ...
        Any: other values become lists
    :param device: where tensors go
    :return: per key with numeric data, in this order: ``key:size1`` .. ``key:size<ndim>`` (int64 [B]), ``key``
        ([B, max T, ...], zero-padded), ``key:size0`` (int64 scalar: B). Others: list of B values
    :raises CollateError: the keys or shapes differ between the sequences
    """
    tensors = batch_to_torch(collate_samples(batch))
    if str(device) == "cpu":
        return tensors
    return {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in tensors.items()}
