"""
The run context: what a step function tells the engine (losses, outputs), and what it may ask (epoch, step, stage).

One class family for both config dialects. The contexts made here are of the mainline dialect: the methods of losses and
``total_loss()`` give a `Tensor`. Those of :mod:`returnn.torch.context` are of Mini's: they give torch tensors.
Both have the union of the members, and take both forms of ``mark_as_loss``.
"""

from __future__ import annotations

import contextlib
import types
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import torch

from returnn._state import state
from returnn.errors import ModelError
from returnn.frontend.axes import AxisSpec, in_order
from returnn.frontend.loss import Loss, Scalar, make_loss
from returnn.frontend.outputs import make_output
from returnn.tensor import Tensor, TensorDict

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = [
    "Loss",
    "RunCtx",
    "Scalar",
    "get_run_ctx",
    "get_run_ctx_step",
    "init_forward_step_run_ctx",
    "init_load_run_ctx",
    "init_train_step_run_ctx",
    "reset_run_ctx",
    "set_run_ctx",
]


class RunCtx:
    """
    State of one step, or (Mini's engine) of the steps of one epoch. User code may put any attribute on it;
    in the forward task the same object lives from ``forward_init_hook`` over all steps to ``forward_finish_hook``.
    """

    _loss_class: type[Loss] = Loss

    def __init__(
        self,
        *,
        stage: str,
        device: str | torch.device | None = None,
        engine: EngineBase | None = None,
        epoch: int | None = 1,
        train_flag: bool = False,
        step: int | None = 0,
        expected_outputs: TensorDict | None = None,
    ):
        """
        :param stage: "init", "load", "train_step" (training and evaluation) or "forward_step"
        :param device: of the model
        :param engine: that runs the step
        :param epoch: from 1; in forward: of the loaded checkpoint
        :param train_flag: whether this is training
        :param step: global step, from 0
        :param expected_outputs: templates for mark_as_output
        """
        self._stage = stage
        self._device = device
        self._engine = engine
        self._epoch = epoch
        self._global_step = step
        self._train_flag = train_flag
        self._train_flag_stack: list[tuple[bool, tuple[types.FunctionType, ...] | None]] = []
        self.expected_outputs = expected_outputs
        self.losses: dict[str, Loss] = {}
        self.outputs = TensorDict()

    def __repr__(self) -> str:
        return f"<RunCtx {self._stage} epoch={self._epoch} global_step={self._global_step}>"

    @property
    def stage(self) -> str:
        """ "init", "load", "train_step" or "forward_step"."""
        return self._stage

    @property
    def device(self) -> str | torch.device | None:
        """Device of the model."""
        return self._device

    @property
    def engine(self) -> Any:
        """The engine. Any: client code reads private attributes of its own engine class."""
        return self._engine

    @property
    def epoch(self) -> int | None:
        """From 1; in forward the epoch of the loaded checkpoint."""
        return self._epoch

    @property
    def global_step(self) -> int | None:
        """Number of training steps done before this one; in forward: of the loaded checkpoint. None while loading."""
        return self._global_step

    @property
    def step(self) -> int | None:
        """The same as global_step."""
        return self._global_step

    @property
    def train_flag(self) -> bool:
        """Whether this is training; see train_flag_ctx."""
        return self.is_train_flag_enabled(func=None)

    def is_train_flag_enabled(self, *, func: types.FunctionType | None) -> bool:
        """:return: the flag for that function, else the global one"""
        for flag, funcs in reversed(self._train_flag_stack):
            if funcs is None or (func is not None and func in funcs):
                return flag
        return self._train_flag

    @contextlib.contextmanager
    def train_flag_ctx(
        self, train_flag: bool, *, func: types.FunctionType | Sequence[types.FunctionType] | None = None
    ) -> Iterator[None]:
        """
        Change the train flag for a block. Does not touch ``module.train()``.

        :param train_flag: value inside the block
        :param func: restrict it to this function or these functions
        :raises TypeError: func is something else
        """
        funcs: tuple[types.FunctionType, ...] | None = None
        if func is not None:
            given: list[Any] = list(func) if isinstance(func, (list, tuple)) else [func]
            for f in given:
                if not isinstance(f, types.FunctionType):
                    raise TypeError(f"train_flag_ctx: func must be a Python function or a list of them, got {f!r}")
            funcs = tuple(given)
        self._train_flag_stack.append((train_flag, funcs))
        try:
            yield
        finally:
            self._train_flag_stack.pop()

    def get_step_tensor(self) -> Tensor:
        """:return: 0-dim int64 tensor with the step"""
        return Tensor("step", [], "int64", raw_tensor=torch.tensor(self._global_step or 0))

    def get_epoch_tensor(self) -> Tensor:
        """:return: 0-dim int64 tensor with the epoch"""
        return Tensor("epoch", [], "int64", raw_tensor=torch.tensor(self._epoch or 0))

    def init_step(self, global_step: int | None = None) -> None:
        """Start the next step: no losses, no outputs."""
        self.losses = {}
        self.outputs = TensorDict()
        if global_step is not None:
            self._global_step = global_step

    def mark_as_loss(
        self,
        loss: torch.Tensor | Tensor | float,
        name: str,
        *,
        scale: float = 1.0,
        inv_norm_factor: Scalar | None = None,
        dims: Sequence[AxisSpec] | None = None,
        as_error: bool = False,
        use_normalized_loss: bool = False,
        use_flatten_frames: bool = True,
        custom_inv_norm_factor: Scalar | Tensor | None = None,
    ) -> None:
        """
        Report a loss, and optimise it unless scale is 0 or it is an error.

        Mini's form: ``loss`` is already summed (0-dim), ``inv_norm_factor`` is the number of frames or labels;
        optimised is ``loss * scale / inv_norm_factor``.
        Second form (``dims``, or any tensor with axes): the loss is summed over its axes without padding, and the
        number of valid elements is the norm factor; optimised is ``sum * scale``, or, with ``use_normalized_loss``,
        ``mean * scale``. Both report sum(loss) / sum(norm factor) per epoch. For a scalar without norm factor they agree.

        :param loss: 0-dim, or with an axis per entry of dims. bool and int are converted to float
        :param name: unique in the step; score keys are made from it
        :param scale: weight in the sum of losses; 0: only report
        :param inv_norm_factor: number or 0-dim tensor; 0 counts as 1
        :param dims: per axis: static size, Dim, or the lengths per sequence [B]
        :param as_error: only report
        :param use_normalized_loss: optimise the mean, not the sum (second form)
        :param use_flatten_frames: accepted, no effect on any number
        :param custom_inv_norm_factor: replaces the number of valid elements; a tensor is summed (second form)
        :raises ModelError: wrong stage, name marked twice, shapes that do not fit, both norm factors
        """
        del use_flatten_frames
        if self._stage != "train_step":
            raise ModelError(
                f"mark_as_loss({name!r}) was called in stage {self._stage!r}. Losses belong into train_step; "
                "in forward_step use mark_as_output."
            )
        if name in self.losses:
            raise ModelError(f"mark_as_loss: the loss {name!r} was marked already in this step. Use another name.")
        if isinstance(loss, Tensor):
            if loss.raw_tensor is None:
                raise ModelError(f"mark_as_loss({name!r}): {loss} has no value, its raw_tensor is None.")
            dims = loss.dims if dims is None else dims
            loss = in_order(loss, dims, name=f"mark_as_loss({name!r})")
        if not isinstance(loss, torch.Tensor):
            try:
                loss = torch.as_tensor(loss, dtype=torch.get_default_dtype(), device=self._device)
            except (TypeError, ValueError, RuntimeError) as exc:
                raise ModelError(
                    f"mark_as_loss({name!r}): the loss is {type(loss).__name__}, expected a tensor or a number."
                ) from exc
        for factor in (inv_norm_factor, custom_inv_norm_factor):
            if factor is not None and not isinstance(factor, Tensor) and not hasattr(factor, "__float__"):
                raise ModelError(
                    f"mark_as_loss({name!r}): the norm factor is {factor!r} ({type(factor).__name__}), "
                    "expected a number or a tensor."
                )
        if not (loss.dtype.is_floating_point or loss.dtype.is_complex):
            loss = loss.to(torch.get_default_dtype())
        if inv_norm_factor is not None:
            if dims is not None or custom_inv_norm_factor is not None or use_normalized_loss:
                raise ModelError(
                    f"mark_as_loss({name!r}): inv_norm_factor belongs to a loss that is summed already; "
                    "it cannot be combined with dims, custom_inv_norm_factor or use_normalized_loss."
                )
            if loss.numel() != 1:
                raise ModelError(
                    f"mark_as_loss({name!r}): with inv_norm_factor the loss must be summed already (one element), "
                    f"got shape {tuple(loss.shape)}. Call .sum() on it, or give dims instead of inv_norm_factor."
                )
            if isinstance(inv_norm_factor, torch.Tensor) and inv_norm_factor.ndim:
                inv_norm_factor = inv_norm_factor.sum()
            self.losses[name] = self._loss_class(
                loss.reshape(()) if loss.ndim else loss, name, scale, inv_norm_factor, as_error=as_error
            )
            return
        self.losses[name] = make_loss(
            self._loss_class,
            loss,
            name,
            dims=dims,
            custom_inv_norm_factor=custom_inv_norm_factor,
            scale=scale,
            as_error=as_error,
            use_normalized_loss=use_normalized_loss,
        )

    def total_loss(self) -> Any:
        """
        :return: 0-dim, the value to optimise: a Tensor, its value a torch tensor of the dtype of the losses; in Mini's
            dialect a torch tensor, float32. Zero if all losses are excluded by scale or as_error. Any: because of that
        :raises ModelError: wrong stage, or no loss was marked
        """
        raw = self.total_loss_raw()
        return Tensor("total_loss", (), str(raw.dtype).removeprefix("torch."), raw_tensor=raw)

    def total_loss_raw(self) -> torch.Tensor:
        """:return: as total_loss, a torch tensor in each dialect"""
        return self._sum_losses(None)

    def _sum_losses(self, dtype: torch.dtype | None) -> torch.Tensor:
        if self._stage != "train_step":
            raise ModelError(f"total_loss() was called in stage {self._stage!r}, expected 'train_step'.")
        if not self.losses:
            raise ModelError(
                "No loss was marked in this step. Your train_step must call RunCtx.mark_as_loss(...), "
                'e.g. run_ctx.mark_as_loss(name="ce", loss=ce, inv_norm_factor=num_frames).'
            )
        total: torch.Tensor | None = None
        for loss in self.losses.values():
            if loss.scale == 0.0 or loss.as_error:
                continue
            value = loss.scaled_reduced_raw()
            if dtype is not None and value.dtype != dtype:
                value = value.to(dtype)
            total = value if total is None else total + value
        if total is None:
            return torch.zeros((), device=self._device)
        return total

    def mark_as_output(
        self, tensor: torch.Tensor | Tensor, name: str, *, dims: Sequence[AxisSpec] | None = None
    ) -> None:
        """
        Mark a result of forward_step.

        :param tensor: axis 0 is the batch, unless dims say otherwise
        :param name: unique in the step
        :param dims: per axis: Dim, static size, or lengths per sequence [B] (so that padding can be cut off).
            None: the expected dims, if any; else of a raw tensor all axes but the batch are static, and a Tensor is put
            into the order batch, time, other
        :raises ModelError: wrong stage, name marked twice or not expected; dims, dtype or sparse_dim that do not fit
        """
        if self._stage != "forward_step":
            raise ModelError(
                f"mark_as_output: {name!r} was marked in stage {self._stage!r}. Outputs belong into forward_step; "
                "in train_step use mark_as_loss."
            )
        if name in self.outputs:
            raise ModelError(f"mark_as_output: the output {name!r} was marked already in this step. Use another name.")
        self.outputs.data[name] = make_output(tensor, name, dims=dims, expected=self._expected_output(name))

    def _expected_output(self, name: str) -> Tensor | None:
        if self.expected_outputs is None:
            return None
        if name not in self.expected_outputs:
            raise ModelError(
                f"mark_as_output: {name!r} is not among the expected outputs {sorted(self.expected_outputs.data)}."
            )
        return self.expected_outputs[name]

    def mark_as_default_output(self, tensor: torch.Tensor | Tensor, *, shape: Sequence[AxisSpec] | None = None) -> None:
        """mark_as_output with the name "output"."""
        self.mark_as_output(tensor, "output", dims=shape)

    def check_outputs_complete(self) -> None:
        """
        :raises ModelError: an expected output was not marked
        """
        if self.expected_outputs is not None and set(self.outputs.data) != set(self.expected_outputs.data):
            raise ModelError(
                f"forward_step marked the outputs {sorted(self.outputs.data)}, expected (by the option model_outputs) are "
                f"{sorted(self.expected_outputs.data)}. Call run_ctx.mark_as_output(tensor, name) for each of them."
            )


def reset_run_ctx() -> None:
    """No run context any more."""
    state.run_ctx = None


def set_run_ctx(ctx: RunCtx) -> None:
    """Make it the current context of the process."""
    state.run_ctx = ctx


def init_load_run_ctx(
    *, device: str | torch.device | None = None, engine: EngineBase | None = None, epoch: int | None = None
) -> None:
    """New context for get_model; its global_step is None."""
    set_run_ctx(RunCtx(stage="load", device=device, engine=engine, epoch=epoch, step=None))


def init_train_step_run_ctx(
    *,
    train_flag: bool = True,
    step: int = 0,
    epoch: int | None = 1,
    device: str | torch.device | None = None,
    engine: EngineBase | None = None,
) -> None:
    """
    New context for train_step.

    :param train_flag: training, else evaluation
    :param step: global step, from 0
    :param epoch: from 1
    :param device: of the model
    :param engine: that runs the step
    """
    set_run_ctx(RunCtx(stage="train_step", device=device, engine=engine, epoch=epoch, train_flag=train_flag, step=step))


def init_forward_step_run_ctx(
    *,
    expected_outputs: TensorDict | None = None,
    step: int = 0,
    epoch: int | None = 1,
    device: str | torch.device | None = None,
    engine: EngineBase | None = None,
) -> None:
    """
    New context for forward_step.

    :param expected_outputs: templates (option model_outputs). Call its ``reset_content()`` before each batch, before the
        batch becomes extern_data, so that no lengths of the last one stay
    :param step: of the checkpoint
    :param epoch: of the checkpoint
    :param device: of the model
    :param engine: that runs the step
    """
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


def get_run_ctx() -> RunCtx:
    """:return: the current context; without one: a context of stage "init", created now"""
    if state.run_ctx is None:
        set_run_ctx(RunCtx(stage="init"))
    ctx: RunCtx = state.run_ctx
    return ctx


def get_run_ctx_step() -> Tensor:
    """:return: step of the current context, 0-dim"""
    return get_run_ctx().get_step_tensor()
