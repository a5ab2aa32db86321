"""
The optimizer Lion, which configs name as ``returnn.torch.optim.lion.Lion``.

Algorithm 2 of "Symbolic Discovery of Optimization Algorithms" (Chen et al. 2023, arXiv:2302.06675).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from returnn.errors import OptionError

__all__ = ["Lion"]


class Lion(torch.optim.Optimizer):
    """
    Steps of equal size in each coordinate, in the direction of the sign of an interpolated gradient, with decoupled
    weight decay: ``p -= lr * (sign(b1 * m + (1 - b1) * g) + weight_decay * p)``, then ``m = b2 * m + (1 - b2) * g``.
    Its state is one tensor per parameter, ``exp_avg`` (m).
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float = 1e-4,
        betas: tuple[float, float] = (0.9, 0.99),
        weight_decay: float = 0.0,
    ):
        """
        :param params: parameters, or groups of them
        :param lr: learning rate; usually 3 to 10 times smaller than for AdamW
        :param betas: b1 of the step and b2 of the average, each in [0, 1)
        :param weight_decay: usually 3 to 10 times larger than for AdamW
        :raises OptionError: a value is out of range
        """
        if not lr >= 0:
            raise OptionError("learning_rate", expected="a number >= 0 (optimizer Lion)", got=lr)
        if len(betas) != 2 or not all(0 <= beta < 1 for beta in betas):
            raise OptionError("optimizer", expected="betas: two numbers >= 0 and < 1 (class Lion)", got=betas)
        if not weight_decay >= 0:
            raise OptionError("optimizer", expected="weight_decay >= 0 (class Lion)", got=weight_decay)
        super().__init__(params, {"lr": lr, "betas": tuple(betas), "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # type: ignore[override]
        """
        Update the parameters that have gradients.

        :param closure: computes the loss again. Any: what it returns
        :return: what closure returns
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        for group in self.param_groups:
            beta1, beta2 = group["betas"]
            for param in group["params"]:
                grad = param.grad
                if grad is None:
                    continue
                state = self.state[param]
                if not state:
                    state["exp_avg"] = torch.zeros_like(param, memory_format=torch.preserve_format)
                average = state["exp_avg"]
                direction = average.lerp(grad, 1 - beta1).sign_()
                param.mul_(1 - group["lr"] * group["weight_decay"]).add_(direction, alpha=-group["lr"])
                average.lerp_(grad, 1 - beta2)
        return loss
