"""The part of the engine that walks over the batches of a pass and reports its steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import torch

from returnn import frontend
from returnn.engine.lines import MINI_LINES, Lines, StepNumbers
from returnn.engine.losses import LossAccumulator
from returnn.engine.report import PassReport, format_losses, with_first_batch_notice
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.torch.context import get_run_ctx, init_train_step_run_ctx
from returnn.torch.device import device_memory_text
from returnn.torch.distributed.watchdog import note_end_of_pass, note_step
from returnn.torch.observers.base import completed_losses, losses_are_wanted, step_line_parts
from returnn.torch.observers.observed import ObservedPasses

__all__ = ["RawBatch", "StepReports"]

#: One raw batch: torch tensors and lists by key.
RawBatch = dict[str, Any]

T = TypeVar("T")


class StepReports(ObservedPasses):
    """Base of the engine; uses attributes that the engine sets."""

    _device: str
    _train_step: int
    _forward_epoch: int | None
    #: whether the config is in the dialect of RETURNN, see returnn.options.dialect
    _dialect_is_mainline: bool = False
    #: the texts of the log lines
    _lines: Lines = MINI_LINES
    #: time.time() of the last step line, of any pass; None: there was none
    time_since_last_step: float | None = None

    def _check_accumulated(self, losses: LossAccumulator) -> None:
        """
        :raises NonFiniteLossError: fetched losses are inf or nan, and the config says to stop then
        """
        raise NotImplementedError  # by LossSteps

    def _steps(
        self, batches: Iterable[T], *, name: str, train: bool = False, first_step: int = 0
    ) -> Iterator[tuple[T, RunCtx]]:
        """
        :param batches: of one pass, or what is left of it
        :param name: of the dataset
        :param train: whether the pass trains
        :param first_step: number of the first step within the pass
        :return: batches, each with the run context at the start of its step
        """
        run_ctx = get_run_ctx()
        per_step = self._dialect_is_mainline and run_ctx.stage == "train_step"
        for step, data in enumerate(with_first_batch_notice(iter(batches), what=name), first_step):
            note_step(name, self.epoch, step)
            if per_step:
                self._init_train_step_run_ctx(train=train)
                run_ctx = get_run_ctx()
            else:
                run_ctx.init_step(self._train_step)
            yield data, run_ctx
        note_end_of_pass()

    def _init_train_step_run_ctx(self, *, train: bool) -> None:
        """A new run context for the steps of a pass, or (mainline dialect) for one step."""
        if self._dialect_is_mainline:
            frontend.init_train_step_run_ctx(
                device=self._device, engine=self, epoch=self.epoch, train_flag=train, step=self._train_step
            )
        else:
            init_train_step_run_ctx(device=self._device, engine=self, epoch=self.epoch, train_flag=train)

    def _pass_report(self, what: str, loader: object) -> PassReport:
        """
        :param what: "train", "eval <name>", "forward"
        :param loader: over the dataset
        """
        epoch = self._forward_epoch if what == "forward" else self.epoch
        return PassReport(self._lines.pass_prefix(what, epoch), loader)

    def _report_step(
        self,
        report: PassReport,
        step: int,
        step_start: float,
        total_loss: torch.Tensor | None,
        losses: LossAccumulator | None,
        *,
        name: str | None = None,
        data: RawBatch | None = None,
    ) -> None:
        """
        Show a step and tell the observers.

        :param report: of the pass
        :param step: within the pass
        :param step_start: time.time() at its start
        :param total_loss: optimised value; None: forward
        :param losses: of the steps so far; None: forward
        :param name: of the dataset, for the observers; None: they are not told
        :param data: raw batch; None: a step without data
        """
        # Also of steps without data: all ranks count the same steps.
        observers = self._observers if name is not None else ()
        shown = report.wants_numbers
        wanted = bool(observers) and losses_are_wanted(observers, name or "", step=step, global_step=self._train_step)
        means: Mapping[str, float] | None = None
        if losses is not None and (shown or wanted):
            means = losses.last_step().means()
            self._check_accumulated(losses)
            if observers:
                means = completed_losses(observers, means, errors=frozenset(losses.errors))
        report.step(means if shown else None)
        if log.verbose and log.verbose[5]:
            more = step_line_parts(observers, name or "", data=data or {}) if observers else ()
            self.print_step_info(report.prefix, step, step_start, total_loss, means, report=report, more=more)
        for observer in observers:
            observer.end_step(
                name=name or "",
                step=step,
                global_step=self._train_step,
                epoch=self.epoch,
                data=data or {},
                losses=means,
            )

    def print_step_info(
        self,
        report_prefix: str,
        step: int,
        step_start_time: float,
        total_loss: torch.Tensor | float | None = None,
        loss_dict: Mapping[str, float] | None = None,
        *,
        report: PassReport | None = None,
        more: Sequence[str] = (),
    ) -> None:
        """
        Log the step line (v5).

        :param report_prefix: e.g. "train epoch 1"
        :param step: within the epoch
        :param step_start_time: time.time() at its start
        :param total_loss: optimised value
        :param loss_dict: value / norm factor by name
        :param report: progress of the pass
        :param more: further parts of the line
        """
        now = time.time()
        since = None if self.time_since_last_step is None else now - self.time_since_last_step
        self.time_since_last_step = now
        report = report or PassReport(report_prefix, None)
        if step == 0:
            self._lines.first_step(report)
        numbers = StepNumbers(
            step,
            step_secs=now - step_start_time,
            secs_since_last_line=since,
            device_memory=device_memory_text(self._device),
            total_loss=total_loss.item() if isinstance(total_loss, torch.Tensor) else total_loss,
            losses=loss_dict,
            more=more,
        )
        report.line(self._lines.step(report, numbers))

    @staticmethod
    def format_loss_dict(loss_dict: Mapping[str, float]) -> str:
        """:return: the losses as in the step line"""
        return format_losses(loss_dict)
