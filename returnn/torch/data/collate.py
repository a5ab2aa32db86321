"""
Collation of sequences into one batch of tensors, and numpy batches to tensors.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy
import torch

from returnn.datasets._loading.collate import NumpyBatch, collate_samples, target_dtype
from returnn.errors import NotSupportedError

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


def collate_batch(
    batch: Sequence[Mapping[str, Any]], device: str | torch.device = "cpu", *, packing: Any = ...
) -> RawBatch:
    """
    The form of the result is that of Mini-RETURNN or of mainline RETURNN. It is mainline's if ``packing`` is given, or if
    the sequences say more about the pass, as in mainline (``num_seqs``, ``complete_frac``, or ``seq_tag`` as array).

    :param batch: nonempty list of sequences; each: data key -> numpy array [T, ...] or scalar, seq_idx, seq_tag, ...
        Any: other values become lists
    :param device: where tensors go
    :param packing: only None. Any: mainline has options for packed batches
    :return: Mini: per key with numeric data, in this order: ``key:size1`` .. ``key:size<ndim>`` (int64 [B]), ``key``
        ([B, max T, ...], zero-padded), ``key:size0`` (int64 scalar: B). Others: list of B values.
        Mainline: per key ``key`` as above and ``key:seq_len`` (int32 [B]); strings: numpy array [B]; ``num_seqs`` and
        ``epoch`` of the first sequence; ``complete_frac``: the maximum
    :raises CollateError: the keys or shapes differ between the sequences
    :raises NotSupportedError: packing
    """
    if packing is not ... and packing is not None and packing is not False:
        raise NotSupportedError(
            f"collate_batch: packed batches are not supported, got packing = {packing!r}. Batches are padded."
        )
    tensors = batch_to_torch(collate_samples(batch))
    if packing is not ... or _is_mainline(batch[0]):
        tensors = _to_mainline(tensors, batch)
    if str(device) == "cpu":
        return tensors
    return {key: v.to(device) if isinstance(v, torch.Tensor) else v for key, v in tensors.items()}


def _is_mainline(sample: Mapping[str, Any]) -> bool:
    return "num_seqs" in sample or "complete_frac" in sample or isinstance(sample.get("seq_tag"), numpy.ndarray)


def _to_mainline(batch: RawBatch, samples: Sequence[Mapping[str, Any]]) -> RawBatch:
    """:param batch: Mini's form of the samples"""
    result: RawBatch = {}
    for key in samples[0]:
        value = batch[key]
        if key in ("num_seqs", "epoch"):
            result[key] = value[0]
        elif key == "complete_frac":
            result[key] = torch.as_tensor(value).max()
        elif isinstance(value, torch.Tensor):
            result[key] = value
            lens = batch.get(f"{key}:size1")
            if lens is not None:
                result[f"{key}:seq_len"] = lens.to(torch.int32)
        elif isinstance(value[0], numpy.ndarray):
            same_shape = len({v.shape for v in value}) == 1
            result[key] = numpy.stack(value) if same_shape else value
        elif isinstance(value[0], str):
            result[key] = numpy.array(value)
        else:
            result[key] = value
    return result
