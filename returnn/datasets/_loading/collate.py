"""
Collation: sequences to one padded batch, as numpy arrays.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from returnn.errors import DatasetError

__all__ = ["NumpyBatch", "collate_samples", "target_dtype", "is_list_dtype", "CollateError"]

#: Values: padded arrays and sizes, or lists (tags, indices, strings, objects).
NumpyBatch = dict[str, Any]

# Torch (or rather most of its operations) has no unsigned types beyond 8 bit.
_DTYPE_MAP: dict[numpy.dtype, numpy.dtype] = {
    numpy.dtype("uint16"): numpy.dtype("int32"),
    numpy.dtype("uint32"): numpy.dtype("int64"),
}


class CollateError(DatasetError, RuntimeError):
    """Sequences do not fit into one batch. RuntimeError is what the peers raise."""


def target_dtype(dtype: numpy.dtype) -> numpy.dtype:
    """:return: native dtype of the batch: uint16 -> int32, uint32 -> int64, others as is"""
    native = numpy.dtype(dtype.newbyteorder("="))
    return _DTYPE_MAP.get(native, native)


def is_list_dtype(dtype: numpy.dtype) -> bool:
    """:return: whether such values stay a plain list in a batch (strings, objects)"""
    return dtype.kind in "UOSV"


def _collate_arrays(key: str, arrays: Sequence[numpy.ndarray], tags: Sequence[Any]) -> NumpyBatch:
    first = arrays[0]
    if any(a.ndim != first.ndim or a.shape[1:] != first.shape[1:] for a in arrays):
        bad = next(i for i, a in enumerate(arrays) if a.ndim != first.ndim or a.shape[1:] != first.shape[1:])
        raise CollateError(
            f"data key {key!r}: sequence {tags[bad]!r} has shape {list(arrays[bad].shape)}, "
            f"but sequence {tags[0]!r} in the same batch has shape {list(first.shape)}. "
            "All axes but the first must have the same size in all sequences."
        )
    dtype = target_dtype(first.dtype)
    num = len(arrays)
    batch: NumpyBatch = {}
    if first.ndim == 0:
        data = numpy.array([a[()] for a in arrays], dtype=dtype)
    else:
        lens = numpy.array([len(a) for a in arrays], dtype=numpy.int64)
        batch[f"{key}:size1"] = lens
        for axis in range(1, first.ndim):
            batch[f"{key}:size{axis + 1}"] = numpy.full(num, first.shape[axis], dtype=numpy.int64)
        data = numpy.zeros((num, int(lens.max()), *first.shape[1:]), dtype=dtype)
        for i, a in enumerate(arrays):
            data[i, : len(a)] = a
    batch[key] = data
    batch[f"{key}:size0"] = numpy.array(num, dtype=numpy.int64)
    return batch


def collate_samples(samples: Sequence[Mapping[str, Any]]) -> NumpyBatch:
    """
    :param samples: nonempty; per sequence: data key -> array, and any other values. The keys of the first decide.
        Any: arrays [T, ...], scalars, strings
    :return: per key with numeric data: ``key:size1`` .. ``key:size<ndim>`` (int64 [B]), ``key`` ([B, max T, ...],
        zero-padded), ``key:size0`` (int64 scalar B). Others: list of B values
    :raises CollateError: keys or shapes differ
    """
    batch: NumpyBatch = {}
    tags = [sample.get("seq_tag", i) for i, sample in enumerate(samples)]
    for key in samples[0]:
        try:
            values = [sample[key] for sample in samples]
        except KeyError:
            bad = next(i for i, sample in enumerate(samples) if key not in sample)
            raise CollateError(
                f"data key {key!r} is missing in sequence {tags[bad]!r}, which has {sorted(samples[bad])}, "
                f"while sequence {tags[0]!r} in the same batch has it. All sequences need the same data keys."
            ) from None
        if isinstance(values[0], numpy.ndarray) and not is_list_dtype(values[0].dtype):
            batch.update(_collate_arrays(key, [numpy.asarray(v) for v in values], tags))
        else:
            batch[key] = values
    return batch
