"""Values and lengths from outside into tensors, checked against their templates."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.errors import ModelError
from returnn.tensor._raw import is_torch
from returnn.tensor.dim import Dim
from returnn.tensor.tensor import Tensor

__all__ = ["check_shape", "lengths_in", "set_lengths"]

# Any, in the whole module: raw tensors are numpy arrays or torch tensors.


def check_shape(template: Tensor, raw: Any, *, key: str) -> None:
    """
    :param template: with the expected axes
    :param raw: to be its value
    :param key: for messages
    :raises ModelError: another number of axes, another static size
    """
    shape = tuple(raw.shape)
    if len(shape) != len(template.dims):
        raise ModelError(
            f"ndim mismatch for {key!r}: the data have shape {list(shape)}, which is {len(shape)} axes, but the "
            f"description has the {len(template.dims)} axes {list(template.dims)}. Correct the entry {key!r} of "
            "extern_data, or the dataset."
        )
    for axis, (dim, size) in enumerate(zip(template.dims, shape, strict=True)):
        if dim.size is not None and dim.size != size:
            raise ModelError(
                f"shape mismatch for {key!r}: axis {axis} of the data has size {size}, but the description says {dim}; "
                f"the data have shape {list(shape)}. Correct the entry {key!r} of extern_data, or the dataset."
            )


def lengths_in(raw_dict: Mapping[str, Any], key: str, axis: int) -> Any | None:
    """
    :param raw_dict: batch
    :param key: stream
    :param axis: counted with the batch axis
    :return: lengths ``[B]`` or ``[]``: the entry ``<key>:seq_len`` for axis 1, else ``<key>:size<axis>``; None: not there
    """
    if axis == 1 and f"{key}:seq_len" in raw_dict:
        return raw_dict[f"{key}:seq_len"]
    name = f"{key}:size{axis}"
    return raw_dict[name] if name in raw_dict else None


def set_lengths(
    dim: Dim, lens: Any, *, key: str, axis: int, size: int, batch: Dim, num_seqs: int, tags: Any = None
) -> None:
    """
    Set the lengths of a dynamic axis, or, if another stream has set them in this step, check that they are the same.

    :param dim: the axis
    :param lens: ``[B]`` or ``[]``, on the CPU, of an int dtype
    :param key: stream, for messages
    :param axis: which axis of it
    :param size: of that axis
    :param batch: the batch axis
    :param num_seqs: in the batch
    :param tags: of the sequences, for messages
    :raises ModelError: they do not fit to the value, or to those of another stream
    """
    if lens.ndim > 1 or (lens.ndim and lens.shape[0] != num_seqs):
        raise ModelError(
            f"{key!r}: the lengths of axis {axis} have shape {list(lens.shape)}, expected one per sequence: [{num_seqs}]."
        )
    largest = int(lens.max()) if lens.ndim and lens.shape[0] else 0 if lens.ndim else int(lens)
    if largest > size:
        raise ModelError(
            f"{key!r}: the lengths of axis {axis} go up to {largest}, but the data have only {size} places."
        )
    old = None if dim.dyn_size_ext is None else dim.dyn_size_ext.raw_tensor
    if old is None:
        dims = (batch,) if lens.ndim else ()
        if dim.dyn_size_ext is None or dim.dyn_size_ext.dims != dims:
            dim.dyn_size_ext = Tensor(f"{dim.name or key}:size", dims, Tensor.size_dtype)
        dim.dyn_size_ext.raw_tensor = lens
        return
    if is_torch(old) != is_torch(lens):
        old, lens = (x.numpy() if is_torch(x) else x for x in (old, lens))
    differ = (old != lens).reshape(-1)
    if not bool(differ.any()):
        return
    seq = int(differ.argmax() if not is_torch(differ) else differ.int().argmax())
    first, second = (int(x[seq]) if x.ndim else int(x) for x in (old, lens))
    name = f" ({str(tags[seq])!r})" if tags is not None and len(tags) > seq else ""
    raise ModelError(
        f"{key!r}: its axis {axis} is {dim}, whose lengths another stream has set, but they differ: in sequence {seq} of "
        f"the batch{name} it is {first} there, and {second} in {key!r}. Streams that are not of equal lengths need "
        "Dims of their own in extern_data; else the dataset is wrong."
    )
