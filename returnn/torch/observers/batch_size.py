"""The option log_batch_size."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from returnn.tensor import Dim, TensorDict
from returnn.torch.observers.base import PassObserver

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["BatchSize"]


class BatchSize(PassObserver):
    """Shows the number of sequences of each batch and their lengths. Sizes are on the CPU, so nothing waits for the device."""

    def __init__(self) -> None:
        self._names: dict[str, str] | None = None  # by size entry of the raw batch; None: the entries decide

    def start_pass(self, name: str, *, engine: EngineBase) -> None:
        """:param engine: with the description of the data, in the mainline dialect"""
        template: TensorDict | None = getattr(engine, "extern_data", None)
        self._names = None if template is None else _dim_names(template)

    def line_parts(self, name: str, *, data: Mapping[str, Any]) -> Sequence[str]:
        """:return: ``num_seqs N``, and ``max_size:<dim> N``, ``sum_size:<dim> N`` for each dimension with lengths"""
        parts = [f"num_seqs {num_seqs(data)}"]
        names = self._names if self._names is not None else _key_names(data)
        for entry, shown in names.items():
            sizes = data.get(entry)
            if isinstance(sizes, torch.Tensor) and sizes.ndim:
                parts += [f"max_size:{shown} {int(sizes.max())}", f"sum_size:{shown} {int(sizes.sum())}"]
        return parts


def num_seqs(data: Mapping[str, Any]) -> int:
    """
    :param data: raw batch
    :return: number of sequences (or chunks) in it
    """
    for key in ("seq_tag", "seq_idx"):
        if key in data:
            return len(data[key])
    return next((len(value) for value in data.values() if isinstance(value, torch.Tensor) and value.ndim), 0)


def _key_names(data: Mapping[str, Any]) -> dict[str, str]:
    """:return: of the first axis of each data key that has one: others are the same for all sequences"""
    return {entry: entry.rpartition(":")[0] for entry in data if entry.endswith(":size1")}


def _dim_names(template: TensorDict) -> dict[str, str]:
    """:return: of each dynamic dimension, at its first place"""
    first: dict[Dim, str] = {}
    keys: dict[str, str] = {}
    for key, tensor in template.data.items():
        for axis, dim in enumerate(tensor.dims):
            if axis and dim.is_dynamic() and not dim.is_batch_dim() and dim not in first:
                first[dim] = entry = f"{key}:size{axis}"
                keys[entry] = key
    names = [dim.name for dim in first]
    # Two of the same name are told apart by their data keys.
    return {
        entry: str(dim.name) if names.count(dim.name) == 1 else f"{keys[entry]}:{dim.name}"
        for dim, entry in first.items()
    }
