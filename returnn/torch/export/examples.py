"""Example inputs for an export: random by the description of the streams, or the first sequences of a dataset."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError
from returnn.tensor import Dim, Tensor, batch_dim
from returnn.torch.data.collate import create_tensor
from returnn.torch.export.interface import Slot

__all__ = ["Examples", "templates_of_dataset"]


class Examples:
    """Makes inputs of any batch size and length."""

    def __init__(
        self,
        templates: Mapping[str, Tensor],
        *,
        size_dtype: torch.dtype,
        known: Mapping[str, torch.Tensor] | None = None,
    ):
        """
        :param templates: of the streams
        :param size_dtype: of the lengths
        :param known: values of some sequences by key, [B, ...]; they are repeated to fill the wanted size. None: random values
        """
        self._templates = templates
        self._size_dtype = size_dtype
        self._known = known

    def length(self, default: int) -> int:
        """:return: of the longest axis of the known values, else the default"""
        sizes = [
            value.shape[axis]
            for key, value in (self._known or {}).items()
            for axis, dim in enumerate(self._templates[key].dims)
            if dim.is_dynamic()
        ]
        return max(sizes, default=default)

    def make(
        self, slots: Sequence[Slot], *, batch: int, length: int, generator: torch.Generator, device: str
    ) -> list[torch.Tensor]:
        """
        :param slots: wanted inputs
        :param batch: number of sequences
        :param length: of the longest dynamic axis; known values keep the ratio between their axes
        :param generator: of random numbers
        :param device: of the result
        """
        sizes: dict[Dim, int] = {}
        values = {}
        for key, template in self._templates.items():
            for axis, dim in enumerate(template.dims):
                if dim.is_dynamic():
                    sizes.setdefault(dim, self._size(key, axis, length))
            shape = [
                dim.size if dim.size is not None else batch if dim.is_batch_dim() else sizes[dim]
                for dim in template.dims
            ]
            values[key] = self._value(key, template, shape, generator)
        res = []
        for slot in slots:
            value = values[slot.key]
            if slot.size_of_axis is not None:
                longest = value.shape[slot.size_of_axis]
                # Different lengths, descending: some models ask for that.
                value = torch.tensor([max(longest - i, 1) for i in range(batch)], dtype=self._size_dtype)
            res.append(value.to(device))
        return res

    def _size(self, key: str, axis: int, length: int) -> int:
        if self._known is None:
            return length
        return max(2, self._known[key].shape[axis] * length // self.length(length))

    def _value(self, key: str, template: Tensor, shape: Sequence[int], generator: torch.Generator) -> torch.Tensor:
        if self._known is not None:
            value = self._known[key]
            for axis, size in enumerate(shape):
                value = value.index_select(axis, torch.arange(size) % value.shape[axis])
            return value
        dtype = getattr(torch, template.dtype)
        if template.sparse_dim is not None:
            return torch.randint(template.sparse_dim.size or 2, list(shape), generator=generator).to(dtype)
        value = torch.randn(list(shape), generator=generator)
        return (value * 1000 if not dtype.is_floating_point and dtype != torch.bool else value).to(dtype)


def templates_of_dataset(dataset: Dataset, *, num_seqs: int = 4) -> tuple[dict[str, Tensor], dict[str, torch.Tensor]]:
    """
    :param dataset: its first sequences are loaded
    :param num_seqs: at most so many
    :return: by data key: template; padded values [B, ...]
    :raises DatasetError: no sequences
    """
    dataset.init_seq_order(epoch=1)
    seqs: list[dict[str, torch.Tensor]] = []
    while len(seqs) < num_seqs and dataset.is_less_than_num_seqs(len(seqs)):
        idx = len(seqs)
        dataset.load_seqs(idx, idx + 1)
        arrays = {key: create_tensor(dataset.get_data(idx, key)) for key in dataset.get_data_keys()}
        seqs.append({key: value for key, value in arrays.items() if isinstance(value, torch.Tensor)})
    if not seqs:
        raise DatasetError(f"Dataset {dataset.name!r} has no sequences; the export needs one as example.")
    templates, values = {}, {}
    for key, first in seqs[0].items():
        of_key = [seq[key] for seq in seqs]
        static = _static_sizes(dataset, key, first.ndim)
        dims: list[Dim] = [batch_dim]
        for axis, size in enumerate(static):
            kind = "time" if axis == 0 else f"spatial{axis}"
            name = f"{kind}:var-unk:{key}" if size is None else f"{key}:static-dim{axis + 1}"
            dims.append(Dim(size, name=name, kind=Dim.Types.Spatial))
        templates[key] = Tensor(key, dims, str(first.dtype).split(".")[-1])
        values[key] = _pad(of_key)
    return templates, values


def _static_sizes(dataset: Any, key: str, ndim: int) -> list[int | None]:  # Any: not each dataset has get_data_shape
    """:return: per axis of one sequence: size, None if it differs between sequences"""
    if not ndim:
        return []
    get_shape = getattr(dataset, "get_data_shape", None)
    shape = list(get_shape(key)) if get_shape is not None else []
    if len(shape) == ndim - 1:
        return [None, *shape]
    return [None] * ndim


def _pad(values: Sequence[torch.Tensor]) -> torch.Tensor:
    shape = [max(sizes) for sizes in zip(*(value.shape for value in values), strict=True)]
    res = torch.zeros([len(values), *shape], dtype=values[0].dtype)
    for i, value in enumerate(values):
        where: tuple[int | slice, ...] = (i, *(slice(size) for size in value.shape))
        res[where] = value
    return res
