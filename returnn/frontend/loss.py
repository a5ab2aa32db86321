"""`Loss`: one marked loss of one step, and how its sum and its norm factor follow from its axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Union

import torch

from returnn.errors import ModelError
from returnn.frontend.axes import AxisSpec, masked_sum_and_count, resolve_dims
from returnn.tensor import Dim, Tensor

__all__ = ["Loss", "Scalar", "divide_by_norm", "make_loss"]

#: A number, or a 0-dim tensor on the device.
Scalar = Union[int, float, torch.Tensor]  # noqa: UP007 (evaluated at run time)


class Loss:
    """
    One marked loss of one step.

    ``loss`` is the sum over all valid elements (0-dim torch tensor), ``inv_norm_factor`` the number of elements it was
    summed over (None: not given, counts as 1; zero counts as 1 as well). Reports show loss / inv_norm_factor; ``scale`` is
    not part of them. The methods give what the dialect wants: here, the mainline dialect, a 0-dim `Tensor`;
    in Mini's (:mod:`returnn.torch.context`) its torch tensor.
    """

    def __init__(
        self,
        loss: torch.Tensor,
        name: str,
        scale: float = 1.0,
        inv_norm_factor: Scalar | None = None,
        *,
        as_error: bool = False,
        use_normalized_loss: bool = True,
        dims: tuple[Dim, ...] = (),
    ):
        """
        :param loss: 0-dim, summed
        :param name: for reports and score keys
        :param scale: factor for the optimised value
        :param inv_norm_factor: number or 0-dim tensor
        :param as_error: only reported, never optimised
        :param use_normalized_loss: optimise loss / inv_norm_factor, else loss
        :param dims: axes that were summed over
        """
        self.loss = loss
        self.name = name
        self.scale = scale
        self.inv_norm_factor = inv_norm_factor
        self.as_error = as_error
        self.use_normalized_loss = use_normalized_loss
        self.dims = dims

    def __repr__(self) -> str:
        return f"<Loss {self.name!r} {self.loss} / {self.inv_norm_factor}, scale {self.scale}>"

    # Any: Tensor here, torch.Tensor in Mini's dialect.

    def get_summed_loss(self) -> Any:
        """:return: 0-dim, sum over all valid elements"""
        return self._give(self.loss, "summed")

    def get_inv_norm_factor(self) -> Any:
        """:return: number of elements: 0-dim, or a number if all axes are static; 1 if there is no axis"""
        norm = 1 if self.inv_norm_factor is None else self.inv_norm_factor
        if not isinstance(norm, torch.Tensor):
            if all(dim.is_static() for dim in self.dims):
                return norm
            norm = torch.tensor(norm)
        return self._give(norm, "inv_norm_factor")

    def get_mean_loss(self) -> Any:
        """:return: 0-dim, loss / inv_norm_factor; a factor of zero counts as 1"""
        return self._give(self.mean_raw(), "mean")

    def get_scaled_reduced_loss(self) -> Any:
        """:return: 0-dim, the value to optimise"""
        return self._give(self.scaled_reduced_raw(), "scaled_reduced")

    def _give(self, raw: torch.Tensor, what: str) -> Any:
        return Tensor(f"{self.name}:{what}", (), str(raw.dtype).removeprefix("torch."), raw_tensor=raw)

    def mean_raw(self) -> torch.Tensor:
        """:return: as get_mean_loss, a torch tensor in each dialect"""
        return divide_by_norm(self.loss, self.inv_norm_factor)

    def scaled_reduced_raw(self) -> torch.Tensor:
        """:return: as get_scaled_reduced_loss, a torch tensor in each dialect"""
        value = divide_by_norm(self.loss, self.inv_norm_factor) if self.use_normalized_loss else self.loss
        return value if self.scale == 1.0 else value * self.scale


def divide_by_norm(value: torch.Tensor, norm: Scalar | None) -> torch.Tensor:
    """
    :param value: 0-dim
    :param norm: number or 0-dim tensor; None and zero count as 1
    :return: value / norm, without waiting for a device
    """
    if norm is None:
        return value
    if isinstance(norm, torch.Tensor):
        if norm.is_cpu and not torch.compiler.is_compiling():
            if norm.item() == 0:
                return value
        else:  # no synchronisation with the device, no break of the graph
            norm = torch.where(norm == 0, torch.ones_like(norm), norm)
        return value / norm
    return value / norm if norm else value


def make_loss(
    loss_class: type[Loss],
    loss: torch.Tensor,
    name: str,
    *,
    dims: Sequence[AxisSpec] | None,
    custom_inv_norm_factor: Scalar | Tensor | None,
    scale: float,
    as_error: bool,
    use_normalized_loss: bool,
) -> Loss:
    """
    Sum up a loss over its axes without padding; the number of valid elements is the norm factor.

    :param loss_class: of the dialect
    :param loss: an axis per entry of dims
    :param name: for reports and messages
    :param dims: None: all axes are static
    :param custom_inv_norm_factor: instead of the number of elements; a tensor is summed
    :param scale: see Loss, as the following
    :param as_error: -
    :param use_normalized_loss: -
    :raises ModelError: shapes or lengths that do not fit
    """
    if dims is None:
        resolved = tuple(Dim(int(size), name=f"const_dim{axis}") for axis, size in enumerate(loss.shape))
    else:
        resolved = resolve_dims(loss, dims, name=name)
    summed, count = masked_sum_and_count(loss, resolved, name=name)
    norm: Scalar | None = count if resolved else None
    if custom_inv_norm_factor is not None:
        norm = _sum_norm_factor(custom_inv_norm_factor, name=f"mark_as_loss: {name!r}")
    return loss_class(
        summed, name, scale, norm, as_error=as_error, use_normalized_loss=use_normalized_loss, dims=resolved
    )


def _sum_norm_factor(factor: Scalar | Tensor, *, name: str) -> Scalar:
    if isinstance(factor, Tensor):
        raw = factor.raw_tensor
        if raw is None:
            raise ModelError(f"{name}: custom_inv_norm_factor is {factor} without value (its raw_tensor is None).")
        raw = raw if isinstance(raw, torch.Tensor) else torch.as_tensor(raw)
        return masked_sum_and_count(raw, factor.dims, name=f"{name} (custom_inv_norm_factor)")[0]
    if isinstance(factor, torch.Tensor):
        return factor.sum() if factor.ndim else factor
    return factor
