"""Axes of raw tensors: the per-axis entries that users give, and what follows for padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from returnn.errors import ModelError
from returnn.tensor import Dim, Tensor, batch_dim

__all__ = ["AxisSpec", "resolve_dims", "masked_sum_and_count", "lengths_of", "check_lengths"]

#: What users may give per axis: static size, Dim, or the lengths per sequence ``[B]``.
AxisSpec = int | Dim | torch.Tensor


def resolve_dims(tensor: torch.Tensor, dims: Sequence[AxisSpec] | None, *, name: str) -> tuple[Dim, ...]:
    """
    Turn the user's per-axis entries into Dims, and check them against the shape.

    :param tensor: raw value
    :param dims: one entry per axis; None: axis 0 is the batch, the others are static
    :param name: of the loss or output, for messages
    :raises ModelError: wrong number of entries, wrong static size, lengths that do not fit
    """
    if dims is None:
        if tensor.ndim == 0:
            return ()
        last = tensor.ndim - 1
        return (
            batch_dim,
            *(
                # kind: what the axis most likely is. [B,T,F] has a feature axis, [B,T] has none.
                Dim(
                    int(tensor.shape[axis]),
                    name=f"{name}_dim{axis}",
                    kind=Dim.Types.Feature if axis == last and axis > 1 else Dim.Types.Spatial,
                )
                for axis in range(1, tensor.ndim)
            ),
        )
    if len(dims) != tensor.ndim:
        raise ModelError(
            f"{name!r}: the tensor of shape {tuple(tensor.shape)} has {tensor.ndim} axes, but dims has {len(dims)} "
            f"entries. Give one entry per axis: int, Dim, or the lengths per sequence [B]."
        )
    batch_given = any(isinstance(entry, Dim) and entry.is_batch_dim() for entry in dims)
    return tuple(
        _resolve_axis(tensor, axis, entry, is_batch=axis == 0 and not batch_given, name=name)
        for axis, entry in enumerate(dims)
    )


def _resolve_axis(tensor: torch.Tensor, axis: int, entry: AxisSpec, *, is_batch: bool, name: str) -> Dim:
    size = int(tensor.shape[axis])
    if isinstance(entry, torch.Tensor):
        if entry.ndim == 0:
            entry = int(entry)
        else:
            lens = Tensor(f"{name}:size{axis}", dims=[batch_dim], dtype="int32", raw_tensor=entry)
            return Dim(lens, name=f"{name}_dim{axis}")
    if isinstance(entry, bool) or not isinstance(entry, (int, Dim)):
        raise ModelError(
            f"{name!r}: entry {axis} of dims is {entry!r} ({type(entry).__name__}), "
            "expected int, Dim, or the lengths per sequence [B] as a tensor."
        )
    if isinstance(entry, int):
        if entry != size:
            raise ModelError(f"{name!r}: axis {axis} has size {size}, but dims says {entry}.")
        return batch_dim if is_batch else Dim(entry, name=f"{name}_dim{axis}", kind=Dim.Types.Feature)
    if entry.size is not None and entry.size != size:
        raise ModelError(f"{name!r}: axis {axis} has size {size}, but {entry} is static.")
    return entry


def lengths_of(dim: Dim, *, name: str) -> torch.Tensor | None:
    """
    :return: lengths per sequence ``[B]`` of a dynamic axis, None for a static or batch axis
    :raises ModelError: dynamic without lengths
    """
    if dim.is_batch_dim() or dim.is_static():
        return None
    lens = dim.lengths()
    if lens is None:
        raise ModelError(
            f"{name!r}: Cannot infer dynamic size of {dim}: its dyn_size_ext.raw_tensor is not set. "
            "Set it, or give the lengths [B] directly in dims."
        )
    res = lens if isinstance(lens, torch.Tensor) else torch.as_tensor(lens)
    if res.ndim == 0:
        return None
    return res


def check_lengths(lens: torch.Tensor, size: int, *, axis: int, name: str) -> None:
    """
    :param lens: [B]. Only checked on the CPU, since it would wait for another device
    :param size: of the axis
    :param axis: which one it is
    :param name: for messages
    :raises ModelError: a sequence is longer than the axis
    """
    if lens.device.type == "cpu" and lens.numel() and int(lens.max()) > size:
        raise ModelError(
            f"{name!r}: the lengths go up to {int(lens.max())}, but axis {axis} has size {size}. "
            "Are they those of another axis, e.g. before subsampling?"
        )


def masked_sum_and_count(
    tensor: torch.Tensor, dims: Sequence[Dim], *, name: str
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """
    :param tensor: ``[...]`` with an axis per dim; the batch axis is axis 0 unless batch_dim stands elsewhere
    :param dims: the axes; a dynamic one has lengths ``[B]``
    :param name: for messages
    :return: sum over all valid elements (padding excluded); number of valid elements: product of the static sizes
        and, per sequence, of the lengths
    """
    if not dims:
        return tensor, 1
    batch_axis = next((i for i, d in enumerate(dims) if d.is_batch_dim()), 0)
    mask: torch.Tensor | None = None
    per_seq: Any = None  # valid elements per sequence over the dynamic axes [B]
    static = 1
    for axis, dim in enumerate(dims):
        lens = lengths_of(dim, name=name)
        if lens is None:
            if axis != batch_axis:
                static *= int(tensor.shape[axis])
            continue
        if axis == batch_axis or lens.shape[0] != tensor.shape[batch_axis]:
            raise ModelError(
                f"{name!r}: lengths of shape {tuple(lens.shape)} for axis {axis} do not fit to the tensor of shape "
                f"{tuple(tensor.shape)} with batch axis {batch_axis}. Give one length per sequence; if the batch is "
                "another axis, give returnn.tensor.batch_dim for it."
            )
        check_lengths(lens, int(tensor.shape[axis]), axis=axis, name=name)
        per_seq = lens if per_seq is None else per_seq * lens
        index_shape, lens_shape = [1] * tensor.ndim, [1] * tensor.ndim
        index_shape[axis], lens_shape[batch_axis] = int(tensor.shape[axis]), int(tensor.shape[batch_axis])
        index = torch.arange(tensor.shape[axis], device=tensor.device).reshape(index_shape)
        axis_mask = index < lens.to(tensor.device).reshape(lens_shape)
        mask = axis_mask if mask is None else mask & axis_mask
    if mask is None:
        return tensor.sum(), static * int(tensor.shape[batch_axis])
    # where, not a product: padding may hold inf or nan
    summed = torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)).sum()
    return summed, per_seq.sum() * static
