"""Checkpoints as text: the tree of entries, statistics of tensors, numbers of parameters."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy
import torch

from returnn.errors import CheckpointError
from returnn.util.numbers import human_size

__all__ = ["TensorPrinter", "as_numpy", "count_by_prefix", "find_entry", "shape_text", "tensor_stats"]

_PERCENTILES = (0.0, 0.05, 0.5, 0.95, 1.0)


def shape_text(tensor: torch.Tensor) -> str:
    """:return: e.g. ``torch.float32 [50,9,5]``"""
    return f"{tensor.dtype} [{','.join(map(str, tensor.shape))}]"


@dataclasses.dataclass(frozen=True)
class TensorStats:
    """Of all elements together."""

    mean: float
    std_dev: float
    max_abs: float
    percentiles: tuple[float, ...]  # min, p05, p50, p95, max
    num_nonfinite: int

    def lines(self) -> list[str]:
        """:return: as text"""
        res = [
            "mean, stddev, max abs: " + ", ".join(map(_number, (self.mean, self.std_dev, self.max_abs))),
            "min, p05, p50, p95, max: " + ", ".join(map(_number, self.percentiles)),
        ]
        if self.num_nonfinite:
            res.append(f"inf or nan: {self.num_nonfinite} elements")
        return res


def tensor_stats(tensor: torch.Tensor) -> TensorStats | None:
    """
    :param tensor: of numbers
    :return: None without elements. The p-th percentile is the element int(n * p) in sorted order
    """
    values = as_numpy(tensor).reshape(-1)
    if not values.size:
        return None
    values = numpy.abs(values) if values.dtype.kind == "c" else values.astype("float64")
    ordered = numpy.sort(values)
    return TensorStats(
        mean=float(values.mean()),
        std_dev=float(values.std()),
        max_abs=float(numpy.abs(values).max()),
        percentiles=tuple(float(ordered[min(int(len(ordered) * p), len(ordered) - 1)]) for p in _PERCENTILES),
        num_nonfinite=int((~numpy.isfinite(values)).sum()),
    )


def _number(value: float) -> str:
    if value == 0 or 1e-3 <= abs(value) < 1e6 or not math.isfinite(value):
        return f"{value:.4f}"
    return f"{value:.4e}"


def as_numpy(tensor: torch.Tensor) -> numpy.ndarray:
    """
    :param tensor: of any type and layout
    :return: the same values; as float32 if numpy does not have the type (bfloat16, float8, quantized)
    """
    tensor = tensor.detach().cpu()
    if tensor.is_quantized:
        tensor = tensor.dequantize()
    if tensor.layout != torch.strided:
        tensor = tensor.to_dense()
    if tensor.is_floating_point() and tensor.dtype not in (torch.float16, torch.float32, torch.float64):
        tensor = tensor.float()
    return tensor.resolve_conj().resolve_neg().numpy()


class TensorPrinter:
    """Prints entries of a checkpoint, two spaces per level."""

    def __init__(
        self, *, values: bool = False, stats: bool = False, interesting_exclude: Sequence[str] = (), indent: str = "  "
    ):
        """
        :param values: print the elements
        :param stats: print statistics
        :param interesting_exclude: parts of names that interesting_lines leaves out
        :param indent: per level
        """
        self._values = values
        self._stats = stats
        self._exclude = [part for part in interesting_exclude if part]
        self._indent = indent
        self._max_abs: list[tuple[float, str]] = []

    def print_entry(self, name: str, value: Any, *, level: int = 0) -> None:
        """
        :param name: of the entry
        :param value: tensor, container, or plain value. Any: whatever a checkpoint has
        :param level: of indentation
        """
        prefix = self._indent * level
        if isinstance(value, torch.Tensor):
            self._print_tensor(name, value, prefix)
        elif isinstance(value, Mapping):
            print(f"{prefix}{name}: ({type(value).__name__})" + ("" if value else " {}"))
            for key, item in value.items():
                self.print_entry(str(key), item, level=level + 1)
        elif isinstance(value, (list, tuple)) and any(isinstance(v, (torch.Tensor, Mapping)) for v in value):
            print(f"{prefix}{name}: ({type(value).__name__}) {len(value)} items")
            for i, item in enumerate(value):
                self.print_entry(str(i), item, level=level + 1)
        else:
            print(f"{prefix}{name}: ({type(value).__name__}) {value}")

    def _print_tensor(self, name: str, value: torch.Tensor, prefix: str) -> None:
        text = f"{prefix}{name}: {shape_text(value)}"
        if value.numel() <= 1:
            print(f"{text} {as_numpy(value).tolist()}")
            return
        print(text)
        inner = prefix + self._indent
        if self._values:
            for line in str(as_numpy(value)).splitlines():
                print(inner + line)
        stats = tensor_stats(value) if self._stats else None
        if stats is None:
            return
        for line in stats.lines():
            print(inner + line)
        if not any(part in name for part in self._exclude):
            self._max_abs.append((stats.max_abs, f"{name}: {shape_text(value)}"))

    def interesting_lines(self) -> list[str]:
        """:return: which of the tensors that were printed with statistics have the largest and smallest values"""
        if not self._max_abs:
            return []
        # nan is the most interesting
        key = [(math.inf if math.isnan(value) else value, value, text) for value, text in self._max_abs]
        largest, smallest = max(key, key=lambda x: x[0]), min(key, key=lambda x: x[0])
        return [
            "Collected interesting tensors:",
            f"largest max abs {_number(largest[1])}: {largest[2]}",
            f"smallest max abs {_number(smallest[1])}: {smallest[2]}",
        ]


def find_entry(checkpoint: Any, key: str, *, filename: str) -> Any:
    """
    :param checkpoint: loaded. Any: as in the file
    :param key: of the file itself, else of its "model"
    :param filename: for the message
    :return: the entry
    :raises CheckpointError: there is none; names close ones
    """
    for place in (checkpoint, checkpoint.get("model") if isinstance(checkpoint, Mapping) else None):
        if isinstance(place, Mapping) and key in place:
            return place[key]
    names: list[str] = []
    if isinstance(checkpoint, Mapping):
        model = checkpoint.get("model")
        names = [*map(str, checkpoint), *(map(str, model) if isinstance(model, Mapping) else ())]
    similar = [name for name in names if key in name] or names
    shown = ", ".join(similar[:10]) + (", ..." if len(similar) > 10 else "")
    raise CheckpointError(f"Checkpoint {filename} has no entry {key!r}, also not in its model. It has: {shown}.")


def count_by_prefix(counts: Mapping[str, int]) -> Iterator[str]:
    """
    :param counts: parameter name -> number of elements
    :return: lines with the sum per part of the name, deepest first; the whole model, at last, is "."
    """
    sums: dict[str, int] = {}
    for name, count in counts.items():
        parts = name.split(".")[:-1]
        for depth in range(len(parts) + 1):
            prefix = ".".join(parts[:depth]) or "."
            sums[prefix] = sums.get(prefix, 0) + count
    for prefix in sorted(sums, key=lambda p: 0 if p == "." else -1 - p.count(".")):
        yield f"{prefix}: {sums[prefix]} {human_size(sums[prefix])}"
