"""Mini's names for the run context of :mod:`returnn.frontend.run_ctx`: the same class, the same objects."""

from __future__ import annotations

from returnn._state import state
from returnn.errors import ModelError
from returnn.frontend.run_ctx import (
    Loss,
    RunCtx,
    init_forward_step_run_ctx,
    init_load_run_ctx,
    init_train_step_run_ctx,
    reset_run_ctx,
)

__all__ = [
    "Loss",
    "RunCtx",
    "get_run_ctx",
    "init_forward_step_run_ctx",
    "init_load_run_ctx",
    "init_train_step_run_ctx",
    "reset_run_ctx",
]


def get_run_ctx() -> RunCtx:
    """
    :return: the current context
    :raises ModelError: there is none: outside of model loading, training and forwarding
    """
    if state.run_ctx is None:
        raise ModelError(
            "RunCtx was not initialized yet. get_run_ctx() works inside get_model, train_step, forward_step and the "
            "modules they call; elsewhere call returnn.torch.context.init_*_run_ctx(...) first."
        )
    ctx: RunCtx = state.run_ctx
    return ctx
