"""The option torch_log_memory_usage."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch

from returnn.torch.observers.base import PassObserver
from returnn.util.numbers import human_bytes_size

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["MemoryUsage", "peak_memory"]


class MemoryUsage(PassObserver):
    """Shows the peak of the memory in each step line. Asking for it does not wait for the device."""

    def __init__(self) -> None:
        self._device = torch.device("cpu")

    def start_pass(self, name: str, *, engine: EngineBase) -> None:
        """:param engine: knows the device"""
        self._device = torch.device(getattr(engine, "_device", "cpu"))

    def line_parts(self, name: str, *, data: Mapping[str, Any]) -> Sequence[str]:
        """:return: e.g. ``mem_usage:cuda:0 3.0GB``"""
        size = peak_memory(self._device)
        return () if size is None else (f"mem_usage:{self._device} {human_bytes_size(size)}",)


def peak_memory(device: torch.device) -> int | None:
    """
    :param device: of the model
    :return: largest number of bytes that tensors had on a GPU so far, or that this process had; None: the system does not
        tell
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    if device.type == "mps":
        return torch.mps.driver_allocated_memory()
    try:
        import resource
    except ImportError:  # not on this system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024
