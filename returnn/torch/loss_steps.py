"""The part of the engine that computes the losses of one batch, checks them, and updates the model."""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping
from typing import Any

import torch

from returnn.engine.losses import LossAccumulator
from returnn.errors import NonFiniteLossError
from returnn.frontend.run_ctx import Loss, RunCtx
from returnn.log import log
from returnn.options.training import EngineOptions
from returnn.torch.batch import Batch
from returnn.torch.buffer_guard import BufferGuard
from returnn.torch.device import device_type, move_to_device
from returnn.torch.errors_context import add_batch_note
from returnn.torch.messages import nonfinite_text
from returnn.torch.pass_hooks import PassHooks
from returnn.torch.precision import step_precision
from returnn.torch.step_call import StepCall
from returnn.torch.step_reports import RawBatch
from returnn.torch.updater import Updater
from returnn.torch.user_functions import UserFunction, takes_argument

__all__ = ["LossSteps"]


class LossSteps(PassHooks):
    """Base of the engine; uses attributes that the engine sets."""

    _options: EngineOptions
    _amp_dtype: torch.dtype | None
    _train_step: int
    _train_step_func: StepCall | UserFunction | None
    _train_dataloader: Any  # Loader; a custom engine may have another iterable
    _updater: Any  # Updater; custom engines put what they like here
    #: before the next step; None: unknown
    _epochs_done: float | None = None
    #: None: the model has no buffers
    _buffer_guard: BufferGuard | None = None

    def _wrap_train_step(self) -> None:
        super()._wrap_train_step()
        assert self._model is not None
        guard = BufferGuard(self._model)
        if not guard.has_buffers:
            return
        self._buffer_guard = guard
        if isinstance(self._updater, Updater):
            # Before the hooks that look at the model, e.g. averages of it.
            self._updater.add_update_hook(guard.after_update, first=True)

    def _call_run_train_step(
        self, data: RawBatch | None, run_ctx: RunCtx, step_idx: int
    ) -> tuple[torch.Tensor, dict[str, Loss]]:
        # Custom engines written for the oldest versions have no step_idx.
        if self._run_train_step_takes_step_idx:
            return self.run_train_step(data, run_ctx, step_idx)
        return self.run_train_step(data, run_ctx)  # type: ignore[call-arg]

    @functools.cached_property
    def _run_train_step_takes_step_idx(self) -> bool:
        return takes_argument(self.run_train_step, "step_idx", num_before=2)

    @functools.cached_property
    def _updater_step_takes_step_idx(self) -> bool:
        return takes_argument(self._updater.step, "step_idx", num_before=1)

    def run_train_step(
        self, data: RawBatch | None, run_ctx: RunCtx, step_idx: int
    ) -> tuple[torch.Tensor, dict[str, Loss]]:
        """
        One training step.

        :param data: raw batch, anywhere. None: only other ranks have data in this step
        :param run_ctx: of this epoch, init_step was called
        :param step_idx: within the epoch, from 0
        :return: total loss (0-dim, to be minimised), losses by name
        """
        updater = self._updater if isinstance(self._updater, Updater) else None
        self._tell_train_position(step_idx)
        self._begin_step(step_idx)
        guard = self._buffer_guard
        if guard is not None:
            guard.before_step(step_idx, starts_group=updater is None or not updater.num_accumulated_steps)
        if updater is not None and data is not None:
            updater.note_batch(self._train_step, data.get("seq_tag", ()))
        total_loss, losses = self._compute_losses(data, run_ctx, train=True)
        if not self._all_usable(self._loss_is_usable(total_loss, losses, data)):
            if guard is not None:
                guard.undo_step()
            if updater is not None:
                updater.skip_step(step_idx)
        elif data is None and updater is not None and not total_loss.requires_grad:
            updater.step_without_data(step_idx)
        elif self._updater_step_takes_step_idx:
            self._updater.step(total_loss, step_idx)
        else:
            self._updater.step(total_loss)
        if updater is not None:
            if updater.needs_train_position:
                self._epochs_done = self._epoch_continuous()
            reported = updater.take_losses()
            if reported:
                losses = {**losses, **reported}
        return total_loss, losses

    def _tell_train_position(self, step_idx: int | None) -> None:
        """
        For options of the optimizer that are functions of it.

        :param step_idx: of the next step within the epoch; None: there is none any more
        """
        if isinstance(self._updater, Updater) and self._updater.needs_train_position:
            self._updater.set_train_position(
                epoch=self.epoch,
                epoch_continuous=float(self.epoch - 1) if step_idx == 0 else self._epochs_done,
                global_train_step=self._train_step,
            )

    @property
    def _effective_learning_rate(self) -> float:
        """That of the next step."""
        rate: float = getattr(self._updater, "effective_learning_rate", self.learning_rate)
        return rate

    def _epoch_continuous(self) -> float | None:
        """:return: number of epochs done, this one up to the newest batch included; None: unknown"""
        stats = getattr(self._train_dataloader, "stats", None)
        frac = None if stats is None else stats.complete_frac
        return None if frac is None else self.epoch - 1 + frac

    def run_eval_step(self, data: RawBatch | None, run_ctx: RunCtx) -> tuple[torch.Tensor, dict[str, Loss]]:
        """
        One evaluation step: as run_train_step, without update.

        :param data: raw batch, anywhere
        :param run_ctx: init_step was called
        """
        return self._compute_losses(data, run_ctx)

    def _compute_losses(
        self, data: RawBatch | None, run_ctx: RunCtx, *, train: bool = False
    ) -> tuple[torch.Tensor, dict[str, Loss]]:
        try:
            step_module = self._step_module if train else None
            total_loss = (step_module or self._plain_step)(data, run_ctx)
        except Exception as exc:
            add_batch_note(exc, epoch=self.epoch, data=data or {})
            raise
        return total_loss, run_ctx.losses

    def _plain_step(self, data: RawBatch | None, run_ctx: RunCtx) -> torch.Tensor:
        """
        The step function of the config on one batch, in the precision of the options.

        :param data: raw batch, anywhere
        :param run_ctx: init_step was called
        :return: total loss (0-dim, to be minimised)
        """
        step = self._train_step_func
        assert step is not None, "train_step not defined"
        assert data is not None, "a step without data needs a step module"
        # The attribute, not an option: custom engines set it themselves.
        with step_precision(self._device, self._amp_dtype):
            if isinstance(step, StepCall):
                step(self._model, data, run_ctx, move=self.move_data_to_device)
            else:  # set by a custom engine
                step(model=self._model, data=self.move_data_to_device(data), run_ctx=run_ctx)
        return run_ctx.total_loss_raw()

    def move_data_to_device(self, data: RawBatch) -> RawBatch:
        """:return: new dict with the tensors on the device of the model"""
        return Batch(move_to_device(data, self._device))

    def _loss_is_usable(self, total_loss: torch.Tensor, losses: Mapping[str, Loss], data: RawBatch | None) -> bool:
        """
        On the CPU: check the losses before the weights change. On other devices the updater checks the gradients there,
        and the losses are looked at when they are fetched, so that the loop does not wait for the device.
        """
        if device_type(self._device) != "cpu":
            return True
        if all(math.isfinite(x.loss.item()) for x in losses.values()):
            return True
        bad = {name: x.loss.item() for name, x in losses.items() if not math.isfinite(x.loss.item())}
        if self._options.stop_on_nonfinite_train_score:
            text = nonfinite_text(self.epoch, self._train_step, bad, data)
            print(text, file=log.v1)
            if self._buffer_guard is not None:
                self._buffer_guard.undo_step()
            raise NonFiniteLossError(text)
        return math.isfinite(total_loss.item())  # a loss that is only reported does not count

    def _check_nonfinite_train_score(
        self, scores: Mapping[str, float], accumulated_scores: Mapping[str, float] | None = None
    ) -> None:
        """
        :param scores: of one step
        :param accumulated_scores: of the epoch so far; not needed
        :raises NonFiniteLossError: one is inf or nan, and the config says stop_on_nonfinite_train_score
        """
        del accumulated_scores
        bad = {k: v for k, v in scores.items() if not math.isfinite(v)}
        if bad and self._options.stop_on_nonfinite_train_score:
            text = nonfinite_text(self.epoch, self._train_step, bad)
            print(text, file=log.v1)
            raise NonFiniteLossError(text)

    def _check_accumulated(self, losses: LossAccumulator) -> None:
        if losses.nonfinite_steps and self._options.stop_on_nonfinite_train_score:
            raise NonFiniteLossError(nonfinite_text(self.epoch, losses.nonfinite_steps[0], {}))
