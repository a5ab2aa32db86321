"""Axes of raw tensors: the per-axis entries that users give, and what follows for padding."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from returnn.errors import ModelError
from returnn.tensor import Dim, Tensor, batch_dim
from returnn.tensor._raw import on_device

__all__ = ["AxisSpec", "in_order", "resolve_dims", "masked_sum_and_count", "lengths_of", "check_lengths"]

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
        raise ModelError(
            f"{name!r}: axis {axis} has size {size}, but {entry} is static. "
            f"The tensor has shape {tuple(tensor.shape)}. Correct dims or the tensor."
        )
    return entry


def in_order(tensor: Tensor, dims: Sequence[AxisSpec], *, name: str) -> torch.Tensor:
    """
    :param tensor: with a value
    :param dims: its axes in another order
    :param name: for messages
    :return: its value with the axes in this order
    :raises ModelError: they are others
    """
    raw: torch.Tensor = tensor.raw_tensor
    if tuple(dims) == tensor.dims:
        return raw
    if len(dims) != len(tensor.dims) or any(not isinstance(d, Dim) or d not in tensor.dims for d in dims):
        raise ModelError(f"{name}: it is a Tensor with dims {list(tensor.dims)}, expected {list(dims)}.")
    return raw.permute([tensor.dims.index(d) for d in dims if isinstance(d, Dim)])


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
    :param lens: [B]. Only checked on the CPU, since it would wait for another device, and not in compiled steps
    :param size: of the axis
    :param axis: which one it is
    :param name: for messages
    :raises ModelError: a sequence is longer than the axis
    """
    if lens.device.type != "cpu" or torch.compiler.is_compiling():
        return
    if lens.numel() and int(lens.max()) > size:
        raise ModelError(
            f"{name!r}: the lengths go up to {int(lens.max())}, but axis {axis} has size {size}. "
            "Are they those of another axis, e.g. before subsampling?"
        )


def masked_sum_and_count(
    tensor: torch.Tensor, dims: Sequence[Dim], *, name: str
) -> tuple[torch.Tensor, torch.Tensor | int]:
    """
    :param tensor: ``[...]`` with an axis per dim; the batch axis is axis 0 unless batch_dim stands elsewhere
    :param dims: the axes; a dynamic one has lengths ``[B]``, or over several of the other axes
    :param name: for messages
    :return: sum over all valid elements (padding excluded); number of valid elements: product of the static sizes
        and, per sequence, of the lengths
    """
    if not dims:
        return tensor, 1
    batch_axis = next((i for i, d in enumerate(dims) if d.is_batch_dim()), 0)
    mask: torch.Tensor | None = None
    valid: Any = None  # number of valid elements over the dynamic axes, a tensor that broadcasts over the other ones
    counted = [False] * tensor.ndim  # axes that valid has
    nested = False  # whether lengths are given per place of another dynamic axis
    static = 1
    for axis, dim in enumerate(dims):
        lens = lengths_of(dim, name=name)
        if lens is None:
            continue
        lens_axes = _axes_of_lengths(lens, dim, dims, axis=axis, batch_axis=batch_axis, tensor=tensor, name=name)
        check_lengths(lens, int(tensor.shape[axis]), axis=axis, name=name)
        index_shape, lens_shape = [1] * tensor.ndim, [1] * tensor.ndim
        index_shape[axis] = int(tensor.shape[axis])
        for lens_axis in lens_axes:
            lens_shape[lens_axis] = int(tensor.shape[lens_axis])
            counted[lens_axis] = True
            nested = nested or dims[lens_axis].is_dynamic()
        counted[axis] = True
        lens = lens.reshape(lens_shape)
        valid = lens if valid is None else valid * lens
        index = torch.arange(tensor.shape[axis], device=tensor.device).reshape(index_shape)
        axis_mask = index < on_device(lens, tensor.device)
        mask = axis_mask if mask is None else mask & axis_mask
    for axis, size in enumerate(tensor.shape):
        if not counted[axis]:
            static *= int(size)
    if mask is None:
        return tensor.sum(), static
    # where, not a product: padding may hold inf or nan
    summed = torch.where(mask, tensor, torch.zeros((), dtype=tensor.dtype, device=tensor.device)).sum()
    if nested:  # a product of lengths would count padding
        return summed, mask.sum() * static
    return summed, valid.sum() * static


def _axes_of_lengths(
    lens: torch.Tensor,
    dim: Dim,
    dims: Sequence[Dim],
    *,
    axis: int,
    batch_axis: int,
    tensor: torch.Tensor,
    name: str,
) -> list[int]:
    """:return: the axis of the tensor for each axis of the lengths"""
    if lens.ndim == 1:
        axes = [batch_axis]
    else:
        over = () if dim.dyn_size_ext is None else dim.dyn_size_ext.dims
        axes = [next((i for i, d in enumerate(dims) if d is o), -1) for o in over]
    if axis in axes or -1 in axes or axes != sorted(axes) or tuple(lens.shape) != tuple(tensor.shape[i] for i in axes):
        raise ModelError(
            f"{name!r}: lengths of shape {tuple(lens.shape)} for axis {axis} do not fit to the tensor of shape "
            f"{tuple(tensor.shape)} with batch axis {batch_axis}. Give one length per sequence; if the batch is "
            "another axis, give returnn.tensor.batch_dim for it."
        )
    return axes
