"""Learning rates of an optimizer: per parameter group, and by the user's function per step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from returnn.errors import OptionError
from returnn.options.values import to_float
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["set_learning_rate", "dynamic_learning_rate"]


def set_learning_rate(optimizer: torch.optim.Optimizer, value: float) -> None:
    """
    :param optimizer:
    :param value: for all parameter groups; each multiplies it by its ``learning_rate_multiplier``
    """
    for group in optimizer.param_groups:
        group["lr"] = value * group.get("learning_rate_multiplier", 1.0)


def dynamic_learning_rate(func: Callable[..., Any], *, learning_rate: float, position: Mapping[str, Any]) -> float:
    """
    :param func: option ``dynamic_learning_rate``. Any: its result is checked here
    :param learning_rate: of the epoch
    :param position: ``epoch``, ``epoch_continuous``, ``global_train_step``. Any: int, float or None by name
    :return: learning rate of the step
    :raises OptionError: the function returns no finite number >= 0
    """
    value = func(learning_rate=learning_rate, **position, **get_fwd_compat_kwargs())
    number = value.item() if isinstance(value, torch.Tensor) and value.numel() == 1 else to_float(value)
    if number is None or not 0 <= number < math.inf:
        raise OptionError(
            "dynamic_learning_rate",
            expected=f"the function to return a finite number >= 0 for {dict(position)}",
            got=value,
        )
    return float(number)
