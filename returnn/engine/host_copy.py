"""Numbers on their way from a device to the host: a training asks for them without waiting for the device."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

__all__ = ["HostCopy"]


class HostCopy:
    """
    Scalars of some tensors. On CUDA the copy is queued behind the work that gives them, and nobody waits until
    :meth:`numbers` is called too early; on other devices :meth:`numbers` waits.
    """

    def __init__(self, tensors: Sequence[torch.Tensor]):
        """
        :param tensors: of one element each, on any devices. Their graph is not kept
        """
        self._parts: list[tuple[list[int], torch.Tensor]] = []
        self._events: list[torch.cuda.Event] = []
        self._num = len(tensors)
        by_kind: dict[tuple[torch.device, torch.dtype], list[int]] = {}
        for i, tensor in enumerate(tensors):
            by_kind.setdefault((tensor.device, tensor.dtype), []).append(i)
        for (device, _), idxs in by_kind.items():
            values = torch.stack([tensors[i].detach().reshape(()) for i in idxs])
            if device.type == "cuda":
                values = self._send(values)
            self._parts.append((idxs, values))

    def _send(self, values: torch.Tensor) -> torch.Tensor:
        """:return: memory of the host that will have them"""
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        event = torch.cuda.Event()
        event.record(torch.cuda.current_stream(values.device))
        self._events.append(event)
        return host

    def is_ready(self) -> bool:
        """:return: whether :meth:`numbers` would not wait, as far as this device can tell"""
        return all(event.query() for event in self._events)

    def numbers(self) -> list[float]:
        """:return: in the order of the tensors. float64, which holds any float32, bfloat16, and counts below 2^53 exactly"""
        for event in self._events:
            event.synchronize()
        result = [math.nan] * self._num
        for idxs, values in self._parts:
            for i, number in zip(idxs, values.tolist(), strict=True):
                result[i] = float(number)
        return result
