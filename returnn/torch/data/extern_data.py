"""
A raw batch of the loader as `TensorDict`, which is what steps of mainline configs get as ``extern_data``; its templates;
and cutting a raw batch into smaller ones.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy
import torch

from returnn.errors import BatchKeyError, ModelError
from returnn.options.extern_data import extern_data_from_opts
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from returnn.tensor._assign import check_shape, lengths_in, set_lengths

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = [
    "extern_data_template_from_config_opts",
    "extern_data_template_from_dataset",
    "get_batch_dim_from_extern_data",
    "raw_dict_can_split_batch",
    "raw_dict_split_batch",
    "raw_dict_to_extern_data",
]

#: Entries that belong to the batch, not to one stream.
_SEQ_TAG = "seq_tag"


def extern_data_template_from_config_opts(opts: Mapping[str, Any] | TensorDict) -> TensorDict:
    """
    :param opts: value of the option extern_data. Any: descriptions and Tensors
    :return: templates by key; ``seq_tag`` ([batch], "string") is added if it is not there
    :raises OptionError: an entry is invalid; names it
    """
    res = extern_data_from_opts(opts)
    if _SEQ_TAG not in res:
        dim = get_batch_dim_from_extern_data(res) if res.data else batch_dim
        res.data[_SEQ_TAG] = Tensor(_SEQ_TAG, [dim], "string")
    return res


def extern_data_template_from_dataset(dataset: Dataset) -> TensorDict:
    """
    :param dataset: which describes its streams by get_data_shape and so on
    :return: templates by key, each with time axes of its own; ``seq_tag`` is added
    """
    res = TensorDict()
    for key in dataset.get_data_keys():
        if key == _SEQ_TAG:
            continue
        dtype = dataset.get_data_dtype(key)
        is_sparse = dataset.is_data_sparse(key)
        dims = [batch_dim, Dim(None, name=f"{key}:time", kind=Dim.Types.Spatial)]
        shape = list(dataset.get_data_shape(key))
        for axis, size in enumerate(shape):
            is_feature = axis == len(shape) - 1 and size is not None and not is_sparse
            kind = Dim.Types.Feature if is_feature else Dim.Types.Spatial
            dims.append(Dim(size, name=f"{key}:{'feature' if is_feature else f'axis{axis + 2}'}", kind=kind))
        classes = Dim(dataset.get_data_dim(key), name=f"{key}:classes", kind=Dim.Types.Feature) if is_sparse else None
        res.data[key] = Tensor(key, dims, dtype, sparse_dim=classes)
    return extern_data_template_from_config_opts(res)


def get_batch_dim_from_extern_data(extern_data: TensorDict) -> Dim:
    """
    :param extern_data: templates or values
    :return: the batch axis: the first axis of the first entry
    :raises ModelError: there is none
    """
    first = next(iter(extern_data.data.values()), None)
    if first is None or not first.dims:
        raise ModelError(
            "extern_data has no entry with a batch axis; the first axis of the first entry must be batch_dim."
        )
    return first.dims[0]


def raw_dict_to_extern_data(
    raw: Mapping[str, Any],
    *,
    extern_data_template: TensorDict,
    device: str | torch.device,
    float_dtype: str | torch.dtype | None = None,
    with_eval_targets: bool = False,
) -> TensorDict:
    """
    Give a batch its axes. The sizes of this batch are set on the axes of the template, so that they are known wherever
    the config uses the same Dim; those of the last batch are forgotten.

    :param raw: batch: per key a torch tensor ``[B, ...]``, a numpy array, or a list of strings or numbers; the lengths of a
        dynamic axis under ``<key>:seq_len`` (axis 1) or ``<key>:size<axis>``, int ``[B]``, on the CPU: on another device
        this would wait for it. Any: those types
    :param extern_data_template: by key
    :param device: where tensors go; copies do not wait. Sizes stay on the CPU, int32
    :param float_dtype: which floats are converted to, e.g. "bfloat16"; None: they stay
    :param with_eval_targets: also the entries with available_for_inference = False
    :return: new tensors with the axes of the template. Their dtype is that of the value
    :raises BatchKeyError: a key is missing
    :raises ModelError: "ndim mismatch for", "shape mismatch for" a key; lengths missing or inconsistent
    """
    batch = get_batch_dim_from_extern_data(extern_data_template)
    for template in extern_data_template.data.values():
        for dim in template.dims:
            dim.reset_eager()
    dtype = getattr(torch, float_dtype) if isinstance(float_dtype, str) else float_dtype
    res = TensorDict()
    num_seqs: int | None = None
    for key, template in extern_data_template.data.items():
        if not template.available_for_inference and not with_eval_targets:
            continue
        value = _value(raw, key)
        check_shape(template, value, key=key)
        if template.dims and template.dims[0] is batch:
            if num_seqs is None:
                num_seqs = int(value.shape[0])
                if batch.dyn_size_ext is None or batch.dyn_size_ext.dims:
                    batch.dyn_size_ext = Tensor("batch:size", (), Tensor.size_dtype)
                # A quarter of the time of torch.tensor.
                batch.dyn_size_ext.raw_tensor = torch.from_numpy(numpy.array(num_seqs, dtype=numpy.int32))
            elif value.shape[0] != num_seqs:
                raise ModelError(
                    f"shape mismatch for {key!r}: it has {int(value.shape[0])} sequences, but the streams before it have "
                    f"{num_seqs}. The dataset gives a stream for some of the sequences only."
                )
        _set_dynamic_sizes(raw, template, value, key=key, batch=batch, num_seqs=num_seqs or 0)
        tensor = template.copy_template()
        if isinstance(value, torch.Tensor):
            value = value.to(device, non_blocking=True)
            if dtype is not None and value.is_floating_point():
                value = value.to(dtype)  # there, so that the copy does not wait
            tensor.dtype = str(value.dtype).removeprefix("torch.")
        elif value.dtype.kind not in "UOS":
            tensor.dtype = str(value.dtype)
        tensor.raw_tensor = value
        res.data[key] = tensor
    return res


def _value(raw: Mapping[str, Any], key: str) -> Any:
    if key not in raw:
        keys = ", ".join(repr(k) for k in raw if ":" not in k)
        raise BatchKeyError(
            f"extern_data describes {key!r}, but the batch has no such stream; it has {keys}. Correct the option "
            "extern_data or the dataset; a stream that is only there with targets has available_for_inference = False."
        )
    value = raw[key]
    if isinstance(value, (torch.Tensor, numpy.ndarray)):
        return value
    return numpy.array(value)


def _set_dynamic_sizes(
    raw: Mapping[str, Any], template: Tensor, value: Any, *, key: str, batch: Dim, num_seqs: int
) -> None:
    for axis, dim in enumerate(template.dims):
        if dim.size is not None or dim is batch or dim.is_batch_dim():
            continue
        lens = lengths_in(raw, key, axis)
        if lens is None:
            if dim.is_dim_known():  # set by another stream
                continue
            if axis == 1:
                raise ModelError(
                    f"{key!r}: axis 1 is the dynamic {dim}, but the batch has no lengths for it: neither '{key}:seq_len' "
                    f"nor '{key}:size1'."
                )
            lens = torch.tensor(int(value.shape[axis]))
        elif not isinstance(lens, torch.Tensor):
            lens = torch.as_tensor(lens)
        set_lengths(
            dim,
            lens.to("cpu", torch.int32),
            key=key,
            axis=axis,
            size=int(value.shape[axis]),
            batch=batch,
            num_seqs=num_seqs,
            tags=raw.get(_SEQ_TAG),
        )


def raw_dict_can_split_batch(raw: Mapping[str, Any], *, num_splits: int = 2) -> bool:
    """
    :param raw: batch. Any: see :func:`raw_dict_to_extern_data`
    :param num_splits: number of parts
    :return: whether each part would have a sequence
    """
    return _num_seqs(raw) >= num_splits


def raw_dict_split_batch(raw: Mapping[str, Any], *, splits: int | Sequence[int]) -> list[dict[str, Any]]:
    """
    :param raw: batch as the loader gives it. Any: see :func:`raw_dict_to_extern_data`
    :param splits: number of parts (the first ones get one sequence more if it does not divide), or their sizes
    :return: batches, each padded to its own longest sequence, as if the loader had made it of these sequences
    :raises ModelError: the sizes do not sum up to the number of sequences, or a part is empty
    """
    num = _num_seqs(raw)
    if isinstance(splits, int):
        sizes = [num // splits + (i < num % splits) for i in range(splits)] if splits > 0 else []
    else:
        sizes = [int(n) for n in splits]
    if sum(sizes) != num or any(n <= 0 for n in sizes):
        raise ModelError(f"a batch of {num} sequences cannot be split into parts by {splits!r}: they would be {sizes}.")
    res = []
    start = 0
    for n in sizes:
        res.append(_part(raw, start, start + n, num_seqs=num))
        start += n
    return res


def _num_seqs(raw: Mapping[str, Any]) -> int:
    tags = raw.get(_SEQ_TAG)
    if tags is not None:
        return len(tags)
    for value in raw.values():
        if getattr(value, "ndim", 0):
            return int(value.shape[0])
    raise ModelError(f"the batch has no stream with a batch axis; it has {sorted(map(str, raw))}.")


def _part(raw: Mapping[str, Any], start: int, end: int, *, num_seqs: int) -> dict[str, Any]:
    part: dict[str, Any] = {}
    for key, value in raw.items():
        if isinstance(value, (list, tuple)) and len(value) == num_seqs:
            part[key] = value[start:end]
        elif key.endswith(":size0"):
            part[key] = torch.full_like(value, end - start) if isinstance(value, torch.Tensor) else end - start
        elif not getattr(value, "ndim", 0) or value.shape[0] != num_seqs:  # of the whole batch
            part[key] = value
        else:
            part[key] = value[start:end]
            lens = lengths_in(raw, key, 1)
            if value.ndim > 1 and lens is not None and getattr(lens, "ndim", 0):
                part[key] = part[key][:, : int(lens[start:end].max())]
    return part
