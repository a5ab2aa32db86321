"""Mixed precision around a step."""

from __future__ import annotations

import contextlib

import torch

__all__ = ["step_precision"]

_FULL = contextlib.nullcontext()


def step_precision(
    device: str | torch.device, amp_dtype: torch.dtype | None
) -> contextlib.AbstractContextManager[object]:
    """
    :param device: of the model
    :param amp_dtype: float16 or bfloat16; None: full precision
    :return: context manager for one step: torch.autocast, or nothing
    """
    if amp_dtype is None:
        return _FULL
    return torch.autocast(device_type=torch.device(device).type, dtype=amp_dtype)
