"""From the outputs of a batch to outputs per sequence: numpy arrays without batch axis and without padding."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from returnn.errors import ModelError
from returnn.frontend.axes import check_lengths, lengths_of
from returnn.tensor import Dim, Tensor, TensorDict
from returnn.tensor._raw import to_numpy

__all__ = ["SeqOutputs", "split_outputs"]


@dataclasses.dataclass(frozen=True)
class SeqOutputs:
    """Of one sequence."""

    seq_tag: str
    outputs: TensorDict  # raw tensors are numpy arrays


@dataclasses.dataclass(frozen=True)
class _Sizes:
    """Lengths of one axis, per sequence: [B], or [B, ...] if they differ also along other axes of the sequence."""

    lens: np.ndarray
    dims: tuple[Dim, ...]  # of the lengths, without the batch


def split_outputs(outputs: TensorDict, seq_tags: Sequence[str]) -> list[SeqOutputs]:
    """
    Take a batch apart, in its order.

    The batch axis is removed, wherever it is. An axis with one length per sequence becomes a copy whose length is a
    scalar, the same copy in all outputs of the sequence, and the padding is cut off. If the lengths of an axis differ
    further within a sequence (lengths ``[B, beam]``), it is cut to the longest of them. bfloat16 becomes float32.

    :param outputs: marked by forward_step; the raw tensors on any device
    :param seq_tags: of the batch
    :return: one entry per tag. Each array has its own memory, and 0 axes for an output ``[B]``
    :raises ModelError: an output without batch axis, or with lengths that do not fit
    """
    sizes: dict[Dim, _Sizes | None] = {}
    batches: list[_Batch] = []
    for name, output in outputs.data.items():
        array = _batch_to_numpy(output, num_seqs=len(seq_tags))
        dims = tuple(dim for dim in output.dims if not dim.is_batch_dim())
        for axis, dim in enumerate(dims, 1):
            if dim not in sizes:
                sizes[dim] = _sizes_of(dim, name=output.name, num_seqs=len(seq_tags))
            size = sizes[dim]
            if size is not None:
                check_lengths(torch.from_numpy(size.lens), array.shape[axis], axis=axis, name=output.name)
        batches.append(_Batch(name, output, array, dims, str(array.dtype)))
    known = {dim: size for dim, size in sizes.items() if size is not None}
    return [SeqOutputs(str(tag), _one_seq(i, batches, known)) for i, tag in enumerate(seq_tags)]


@dataclasses.dataclass(frozen=True)
class _Batch:
    """One output of the batch."""

    name: str
    output: Tensor
    array: np.ndarray  # batch axis first
    dims: tuple[Dim, ...]  # of the other axes
    dtype: str


def _one_seq(i: int, batches: Sequence[_Batch], sizes: Mapping[Dim, _Sizes]) -> TensorDict:
    new_dims: dict[Dim, Dim] = {}
    new_len: dict[Dim, int] = {}
    for dim, size in sizes.items():
        lens = np.asarray(size.lens[i])
        new_len[dim] = int(lens.max()) if lens.size else 0
        own = Tensor(f"{dim.name or 'dim'}:size", size.dims, "int32", raw_tensor=lens.astype(np.int32))
        new_dims[dim] = Dim(None, name=dim.name, kind=dim.kind, dyn_size_ext=own)
    res = TensorDict()
    for batch in batches:
        cut = (i, *(slice(new_len[dim]) if dim in new_len else slice(None) for dim in batch.dims), ...)
        feature_dim = batch.output.feature_dim
        res.data[batch.name] = Tensor(
            batch.name,
            [new_dims.get(dim, dim) for dim in batch.dims],
            batch.dtype,
            sparse_dim=batch.output.sparse_dim,
            feature_dim=new_dims.get(feature_dim, feature_dim) if feature_dim is not None else None,
            raw_tensor=batch.array[cut].copy(),
        )
    return res


def _batch_to_numpy(output: Tensor, *, num_seqs: int) -> np.ndarray:
    """:return: batch axis first"""
    batch_axes = [axis for axis, dim in enumerate(output.dims) if dim.is_batch_dim()]
    if not batch_axes:
        raise ModelError(
            f"output {output.name!r} has no batch axis, its dims are {list(output.dims)}. Mark one value per sequence, "
            "with dims=[batch_dim, ...] (from returnn.tensor), or without dims if axis 0 is the batch."
        )
    array = np.moveaxis(to_numpy(output.raw_tensor), batch_axes[0], 0)
    if array.shape[0] != num_seqs:
        raise ModelError(f"output {output.name!r} has {array.shape[0]} sequences, but the batch has {num_seqs}.")
    return array


def _sizes_of(dim: Dim, *, name: str, num_seqs: int) -> _Sizes | None:
    """:return: None: the same for all sequences"""
    lens = lengths_of(dim, name=name)
    if lens is None:
        return None
    assert dim.dyn_size_ext is not None
    axes = dim.dyn_size_ext.dims
    batch_axis = next((axis for axis, d in enumerate(axes) if d.is_batch_dim()), 0 if len(axes) <= 1 else None)
    if batch_axis is None:
        return None
    array = np.moveaxis(to_numpy(lens), batch_axis, 0)
    if array.shape[0] != num_seqs or (array.ndim > 1 and array.ndim != len(axes)):
        raise ModelError(
            f"output {name!r}: lengths of shape {tuple(lens.shape)}, but there are {num_seqs} sequences. "
            "Give one length per sequence."
        )
    return _Sizes(array, tuple(d for axis, d in enumerate(axes) if axis != batch_axis))
