"""The few names that configs use through ``import returnn.frontend as rf``. It has no layers."""

from returnn.frontend._unsupported import refuse_attribute as __getattr__  # noqa: F401 (Python calls it)
from returnn.frontend.run_ctx import (
    Loss,
    RunCtx,
    get_run_ctx,
    get_run_ctx_step,
    init_forward_step_run_ctx,
    init_train_step_run_ctx,
)
from returnn.tensor import Dim, Tensor

__all__ = [
    "Dim",
    "Loss",
    "RunCtx",
    "Tensor",
    "get_run_ctx",
    "get_run_ctx_step",
    "init_forward_step_run_ctx",
    "init_train_step_run_ctx",
]
