"""Functions on the gradients of all parameters at once: noise, and the check for inf and nan."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence

import torch

__all__ = ["gradient_noise_", "found_nonfinite"]


def gradient_noise_(params: Iterable[torch.nn.Parameter], std: float) -> None:
    """
    Add noise to the gradients, in place: normal distribution, cut off at two standard deviations.

    :param params: those without gradient are skipped
    :param std: standard deviation before the cut
    """
    for param in params:
        if param.grad is None:
            continue
        noise = torch.empty_like(param.grad)
        torch.nn.init.trunc_normal_(noise, mean=0.0, std=std, a=-2.0 * std, b=2.0 * std)
        param.grad += noise


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


def _dense(grad: torch.Tensor) -> torch.Tensor:
    """:return: real, strided tensor with the same values: sparse gradients hold theirs apart"""
    if grad.is_sparse:
        grad = grad.coalesce().values()
    return torch.view_as_real(grad) if grad.is_complex() else grad


def found_nonfinite(grads: Sequence[torch.Tensor]) -> torch.Tensor:
    """
    One pass over all gradients, without waiting for the device.

    :param grads: of any device, dtype, layout; at least one
    :return: float32 scalar on the device of the first: 1.0 if any value is inf or nan, else 0.0
    """
    device = grads[0].device
    found = torch.zeros((), dtype=torch.float32, device=device)
    try:
        # One kernel for all tensors, as GradScaler uses it: sets found to 1.0, and multiplies the gradients by 1.0.
        # 2.6 us for four small tensors, where a norm by torch._foreach_norm takes 12 us.
        torch._amp_foreach_non_finite_check_and_unscale_(list(grads), found, _one(device))
        return found
    except (RuntimeError, NotImplementedError, AttributeError):
        # Several devices or dtypes, complex or sparse gradients, or a torch without that function.
        for grad in grads:
            finite = torch.isfinite(_dense(grad)).all()
            found = torch.maximum(found, 1.0 - finite.to(device=device, dtype=torch.float32))
        return found
