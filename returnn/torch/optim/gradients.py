"""Functions on the gradients of all parameters at once: noise, the check for inf and nan, their norm as a number to report."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterable, Sequence

import torch

from returnn.frontend.run_ctx import Loss
from returnn.torch.distributed.tensors import is_sharded, like_parameter

__all__ = ["gradient_noise_", "found_in", "found_nonfinite", "grad_norm_loss", "nan_unless_finite"]

#: Norm factor of a number that shall not count; 0 would count as 1.
_NO_WEIGHT = 1e-30


def gradient_noise_(
    params: Iterable[torch.nn.Parameter], std: float, *, generator: torch.Generator | None = None
) -> None:
    """
    Add noise to the gradients, in place: normal distribution, cut off at two standard deviations.

    :param params: those without gradient are skipped
    :param std: standard deviation before the cut
    :param generator: of the random numbers, on the device of the gradients; None: torch's own
    """
    for param in params:
        if param.grad is None:
            continue
        grad = param.grad
        if is_sharded(grad):  # whole, so that each rank, with the same generator, takes another part
            noise = torch.empty(grad.shape, dtype=grad.dtype, device=grad.device)
        else:
            noise = torch.empty_like(grad)
        torch.nn.init.trunc_normal_(noise, mean=0.0, std=std, a=-2.0 * std, b=2.0 * std, generator=generator)
        grad += like_parameter(noise, grad)


@functools.cache
def _one(device: torch.device) -> torch.Tensor:
    return torch.ones((), dtype=torch.float32, device=device)


def nan_unless_finite(loss: torch.Tensor) -> torch.Tensor:
    """
    Gradients can be finite though the loss is not, e.g. behind a clamp. Not waiting for the device, this makes all of them nan then, on
    all ranks, so that the update is skipped.

    :param loss: 0-dim
    :return: the same times 1.0, or times nan if it is inf or nan
    """
    return loss * torch.add(_one(loss.device), loss.detach(), alpha=0)


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


def grad_norm_loss(norm: torch.Tensor, order: float) -> dict[str, Loss] | None:
    """
    :param norm: 0-dim
    :param order: of the norm
    :return: by name, with norm factor 1, never optimised. A norm of inf or nan (that update was skipped) does not count, so that
        it does not hide the others of the epoch
    """
    name = f"grad_norm:p{order:g}"
    norm = norm.detach()
    if norm.device.type != "cpu":
        return {name: Loss(*_without_nonfinite(norm, name), as_error=True)}
    return {name: Loss(norm, name, 0.0, 1.0, as_error=True)} if math.isfinite(norm.item()) else None


def _without_nonfinite(norm: torch.Tensor, name: str) -> tuple[torch.Tensor, str, float, torch.Tensor]:
    """:return: arguments of a Loss that does not count if the norm is inf or nan; the device need not tell whether it is"""
    finite = torch.isfinite(norm)
    return torch.where(finite, norm, torch.zeros_like(norm)), name, 0.0, torch.where(finite, 1.0, _NO_WEIGHT)


def found_in(norm: torch.Tensor) -> torch.Tensor:
    """:return: float32 scalar on the same device: 1.0 if inf or nan, else 0.0"""
    return 1.0 - torch.isfinite(norm).to(torch.float32)
