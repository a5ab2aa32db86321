"""Autocast or not: two objects with the same face, so that the loop needs no `if`."""

from __future__ import annotations

import contextlib
from typing import Protocol

import torch

__all__ = ["Autocast", "FullPrecision", "Precision"]


class Precision(Protocol):
    """Context around a step function."""

    def context(self) -> contextlib.AbstractContextManager[object]:
        """:return: context manager for one step"""


class FullPrecision:
    """Nothing changes."""

    def context(self) -> contextlib.AbstractContextManager[object]:
        """:return: does nothing"""
        return contextlib.nullcontext()


class Autocast:
    """torch.autocast on the device, with one dtype."""

    def __init__(self, device: str | torch.device, dtype: torch.dtype):
        """
        :param device: of the model
        :param dtype: float16 or bfloat16
        """
        self._device_type = torch.device(device).type
        self._dtype = dtype

    def context(self) -> contextlib.AbstractContextManager[object]:
        """:return: autocast"""
        return torch.autocast(device_type=self._device_type, dtype=self._dtype)
