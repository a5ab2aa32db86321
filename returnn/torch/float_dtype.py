"""The default dtype of floats while code of the user runs."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch

__all__ = ["default_float_dtype", "float_dtype_of_name"]


def float_dtype_of_name(name: str | None) -> torch.dtype | None:
    """
    :param name: checked value of the option default_float_dtype
    :return: e.g. torch.bfloat16; None for None
    """
    if name is None:
        return None
    dtype: torch.dtype = getattr(torch, name)
    return dtype


@contextlib.contextmanager
def default_float_dtype(dtype: torch.dtype | None) -> Iterator[None]:
    """
    :param dtype: torch's default dtype inside the block; None: as it is
    """
    if dtype is None:
        yield
        return
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
