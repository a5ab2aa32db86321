"""
Mini's run context: the class of :mod:`returnn.frontend.run_ctx`, but losses give torch tensors.

The current context is the same for both modules: of the dialect of the running config.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from returnn._state import state
from returnn.errors import ModelError
from returnn.frontend import run_ctx as _frontend
from returnn.frontend.loss import Scalar, divide_by_norm
from returnn.frontend.run_ctx import reset_run_ctx, set_run_ctx
from returnn.tensor import TensorDict

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = [
    "Loss",
    "RunCtx",
    "get_run_ctx",
    "init_forward_step_run_ctx",
    "init_load_run_ctx",
    "init_train_step_run_ctx",
    "reset_run_ctx",
]


class Loss(_frontend.Loss):
    """One marked loss of one step; its methods give 0-dim torch tensors."""

    def get_summed_loss(self) -> torch.Tensor:
        """:return: 0-dim, sum over all valid elements"""
        return self.loss

    def get_inv_norm_factor(self) -> Scalar:
        """:return: number of elements, 1 if not given"""
        return 1 if self.inv_norm_factor is None else self.inv_norm_factor

    def get_mean_loss(self) -> torch.Tensor:
        """:return: 0-dim, loss / inv_norm_factor; a factor of zero counts as 1"""
        return self.mean_raw()

    def get_scaled_reduced_loss(self) -> torch.Tensor:
        """:return: 0-dim, the value to optimise"""
        return self.scaled_reduced_raw()

    def scaled_reduced_raw(self) -> torch.Tensor:
        """:return: 0-dim, (loss * scale) / inv_norm_factor, rounded in this order"""
        value = self.loss if self.scale == 1.0 else self.loss * self.scale
        return divide_by_norm(value, self.inv_norm_factor) if self.use_normalized_loss else value


class RunCtx(_frontend.RunCtx):
    """See :class:`returnn.frontend.RunCtx`; total_loss gives a torch tensor."""

    _loss_class = Loss

    def total_loss(self) -> torch.Tensor:
        """
        :return: 0-dim float32: the value to optimise
        :raises ModelError: wrong stage, or no loss was marked
        """
        return self._sum_losses(torch.float32)

    def total_loss_raw(self) -> torch.Tensor:
        """:return: the same"""
        return self.total_loss()


def init_load_run_ctx(
    device: str | torch.device | None = None, engine: EngineBase | None = None, epoch: int | None = None
) -> None:
    """New context for get_model; its global_step is None."""
    set_run_ctx(RunCtx(stage="load", device=device, engine=engine, epoch=epoch, step=None))


def init_train_step_run_ctx(
    device: str | torch.device | None = None,
    engine: EngineBase | None = None,
    epoch: int | None = 1,
    *,
    train_flag: bool = True,
    step: int = 0,
) -> None:
    """New context for train_step, in training (train_flag) or evaluation."""
    set_run_ctx(RunCtx(stage="train_step", device=device, engine=engine, epoch=epoch, train_flag=train_flag, step=step))


def init_forward_step_run_ctx(
    device: str | torch.device | None = None,
    engine: EngineBase | None = None,
    epoch: int | None = 1,
    *,
    expected_outputs: TensorDict | None = None,
    step: int = 0,
) -> None:
    """New context for forward_step."""
    set_run_ctx(
        RunCtx(
            stage="forward_step",
            device=device,
            engine=engine,
            epoch=epoch,
            step=step,
            expected_outputs=expected_outputs,
        )
    )


def get_run_ctx() -> _frontend.RunCtx:
    """
    :return: the current context
    :raises ModelError: there is none: outside of model loading, training and forwarding
    """
    if state.run_ctx is None:
        raise ModelError(
            "RunCtx was not initialized yet. get_run_ctx() works inside get_model, train_step, forward_step and the "
            "modules they call; elsewhere call returnn.torch.context.init_*_run_ctx(...) first."
        )
    ctx: _frontend.RunCtx = state.run_ctx
    return ctx
