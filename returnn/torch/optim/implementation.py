"""Which of torch's implementations of an optimizer to use: per parameter, for all parameters at once, or fused."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from returnn.torch.distributed.tensors import is_sharded_model
from returnn.torch.optim.factory import OptimizerClass

__all__ = ["implementation_args", "use_foreach"]

#: Fused on CUDA, and able to skip an update by a flag on the device. Adagrad's is not there in all versions of torch.
_FUSED_ON_CUDA = (torch.optim.Adam, torch.optim.AdamW, torch.optim.SGD)
#: Their foreach form gives bit-identical numbers on the CPU (float32 and float64). Others differ in the last bit.
_SAME_NUMBERS_ON_CPU = (
    torch.optim.Adadelta,
    torch.optim.Adagrad,
    torch.optim.Adam,
    torch.optim.Adamax,
    torch.optim.AdamW,
    torch.optim.RMSprop,
    torch.optim.Rprop,
    torch.optim.SGD,
)
#: Mean number of elements per parameter up to which foreach is quicker on the CPU: it saves Python calls (20 parameters of
#: 64x64, Adam: 480 instead of 670 us), but goes over all parameters once per operation, which leaves the caches with larger
#: ones (50 of 256x256: 8.6 instead of 6.8 ms).
_MAX_MEAN_SIZE_ON_CPU = 8192
#: With fewer parameters, the plain form is quicker on the CPU. Not for Adam, see returnn.torch.optim.direct_adam.
_MIN_PARAMETERS_ON_CPU = 4
_QUICKER_WITH_FEW_PARAMETERS = (torch.optim.Adam, torch.optim.AdamW)
#: If the user gives one of these, the choice is his.
_CHOICES = ("fused", "foreach", "differentiable", "capturable")


def implementation_args(
    optimizer_class: OptimizerClass, args: Mapping[str, Any], network: torch.nn.Module
) -> dict[str, bool]:
    """
    The quickest form that leaves the numbers as they are:

    - CUDA: fused, for Adam, AdamW and SGD: one kernel, and an update with inf or nan gradients is skipped on the device itself, so
      that the host need not wait for it. For others torch takes its foreach form itself where there is one.
    - CPU: foreach, where its numbers are bit-identical to those of the plain form and the parameters are small. Fused would be
      quicker (Adam: 4 times), but rounds differently in the last bit: ``"fused": True`` in the option asks for it.

    :param optimizer_class:
    :param args: of the user. Any: each argument has its own type
    :param network: on its device
    :return: arguments for the constructor; empty: the choice of the user, or of torch
    """
    if any(name in args for name in _CHOICES):
        return {}
    if any(getattr(module, "sparse", False) for module in network.modules()):
        return {}
    params = list(network.parameters())
    if not params:
        return {}
    if optimizer_class in _FUSED_ON_CUDA and all(p.device.type == "cuda" and p.is_floating_point() for p in params):
        return {"fused": True}
    if (
        optimizer_class in _SAME_NUMBERS_ON_CPU
        and all(p.device.type == "cpu" and p.dtype in (torch.float32, torch.float64) for p in params)
        and (len(params) >= _MIN_PARAMETERS_ON_CPU or optimizer_class in _QUICKER_WITH_FEW_PARAMETERS)
        and not is_sharded_model(network)
        and sum(p.numel() for p in params) <= _MAX_MEAN_SIZE_ON_CPU * len(params)
    ):
        return {"foreach": True}
    return {}


def use_foreach(optimizer: torch.optim.Optimizer) -> None:
    """
    Change a new optimizer to the foreach form. Its states do not tell: whoever loads them makes his own choice.

    :param optimizer: with parameter groups that do not ask for another form
    """
    for group in optimizer.param_groups:
        if "foreach" in group and group["foreach"] is None and not any(group.get(name) for name in _CHOICES):
            group["foreach"] = True
    optimizer.register_state_dict_post_hook(_without_foreach)


def _without_foreach(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> dict[str, Any]:
    """Hook of an optimizer. Any: the entries of its state dict. :return: as if nothing was chosen"""
    del optimizer
    groups = [{**group, "foreach": None} if "foreach" in group else group for group in state["param_groups"]]
    return {**state, "param_groups": groups}
