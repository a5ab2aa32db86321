"""The flat interface of an exported graph: names and axes of its inputs and outputs."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

from returnn.errors import ConfigError
from returnn.tensor import Dim, Tensor

__all__ = ["Slot", "flat_slots", "permute", "axis_name", "dynamic_axes"]

#: Name of the batch axis in graphs.
BATCH_AXIS_NAME = "global batch"


@dataclasses.dataclass(frozen=True)
class Slot:
    """One tensor of the graph: a stream, or the lengths ``[B]`` of one of its axes."""

    name: str
    key: str
    size_of_axis: int | None  # None: the stream itself


def flat_slots(templates: Mapping[str, Tensor]) -> list[Slot]:
    """
    :param templates: by key
    :return: each key, followed by ``<key>:size<i>`` for each dynamic axis i. An axis that several tensors share has one
    """
    slots = []
    seen: set[Dim] = set()
    for key, template in templates.items():
        slots.append(Slot(key, key, None))
        for axis, dim in enumerate(template.dims):
            if dim.is_dynamic() and dim not in seen:
                seen.add(dim)
                slots.append(Slot(f"{key}:size{axis}", key, axis))
    return slots


def permute(slots: Sequence[Slot], names: Sequence[str] | None, *, what: str) -> list[Slot]:
    """
    :param slots: computed ones
    :param names: wanted order; None: as they are
    :param what: "input" or "output", for messages
    :raises ConfigError: the names are others
    """
    if names is None:
        return list(slots)
    by_name = {slot.name: slot for slot in slots}
    if sorted(names) != sorted(by_name):
        raise ConfigError(
            f"--{what}_names: missmatch: expected a permutation of {list(by_name)}, which is what the config has, "
            f"got {list(names)}. Give the same names, in any order, or leave the argument out."
        )
    return [by_name[name] for name in names]


def axis_name(dim: Dim, key: str, axis: int) -> str:
    """:return: name of a dynamic axis in the graph"""
    return BATCH_AXIS_NAME if dim.is_batch_dim() else dim.name or f"{key}:dim{axis}"


def dynamic_axes(slots: Sequence[Slot], templates: Mapping[str, Tensor]) -> dict[str, dict[int, str]]:
    """
    :param slots: tensors of the graph
    :param templates: of their keys
    :return: per tensor: index of the axis -> name, for all that are not static
    """
    res: dict[str, dict[int, str]] = {}
    for slot in slots:
        if slot.size_of_axis is not None:
            res[slot.name] = {0: BATCH_AXIS_NAME}
            continue
        dims = templates[slot.key].dims
        axes = {i: axis_name(dim, slot.key, i) for i, dim in enumerate(dims) if dim.size is None}
        if axes:
            res[slot.name] = axes
    return res
