"""The part of the engine that walks over the batches of a pass and reports its steps."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, TypeVar

import torch

from returnn.engine.losses import LossAccumulator
from returnn.engine.report import PassReport, format_losses, step_line, with_first_batch_notice
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.torch.context import get_run_ctx
from returnn.torch.device import device_memory_text

__all__ = ["RawBatch", "StepReports"]

#: One raw batch: torch tensors and lists by key.
RawBatch = dict[str, Any]

T = TypeVar("T")


class StepReports:
    """Base of the engine; uses attributes that the engine sets."""

    epoch: int
    _device: str
    _train_step: int
    _forward_epoch: int | None
    #: time.time() of the last step line, of any pass; None: there was none
    time_since_last_step: float | None = None

    def _check_accumulated(self, losses: LossAccumulator) -> None:
        """
        :raises NonFiniteLossError: fetched losses are inf or nan, and the config says to stop then
        """
        raise NotImplementedError  # by LossSteps

    def _steps(self, batches: Iterable[T], *, name: str) -> Iterator[tuple[T, RunCtx]]:
        """:return: batches, each with the run context at the start of its step"""
        run_ctx = get_run_ctx()
        for data in with_first_batch_notice(iter(batches), what=name):
            run_ctx.init_step(self._train_step)
            yield data, run_ctx

    def _pass_report(self, what: str, loader: object) -> PassReport:
        epoch = self._forward_epoch if what == "forward" else self.epoch
        return PassReport(f"{what} epoch {epoch}", loader)

    def _report_step(
        self,
        report: PassReport,
        step: int,
        step_start: float,
        total_loss: torch.Tensor | None,
        losses: LossAccumulator | None,
    ) -> Mapping[str, float] | None:
        """:return: value / norm factor by name; None: no line is due, so nothing was fetched from the device"""
        if not report.wants_numbers:
            report.step(None)
            return None
        means = losses.last_step().means() if losses is not None else None
        if losses is not None:
            self._check_accumulated(losses)
        report.step(means)
        if log.verbose and log.verbose[5]:
            self.print_step_info(report.prefix, step, step_start, total_loss, means, report=report)
        return means

    def print_step_info(
        self,
        report_prefix: str,
        step: int,
        step_start_time: float,
        total_loss: torch.Tensor | float | None = None,
        loss_dict: Mapping[str, float] | None = None,
        *,
        report: PassReport | None = None,
    ) -> None:
        """
        Log the step line (v5).

        :param report_prefix: e.g. "train epoch 1"
        :param step: within the epoch
        :param step_start_time: time.time() at its start
        :param total_loss: optimised value
        :param loss_dict: value / norm factor by name
        :param report: progress of the pass
        """
        now = time.time()
        since = None if self.time_since_last_step is None else now - self.time_since_last_step
        self.time_since_last_step = now
        line = step_line(
            report_prefix,
            step,
            step_secs=now - step_start_time,
            secs_since_last_line=since,
            device_memory=device_memory_text(self._device),
            total_loss=total_loss.item() if isinstance(total_loss, torch.Tensor) else total_loss,
            losses=loss_dict,
        )
        if report is not None:
            report.line(line)
        else:
            print(line, file=log.v5)

    @staticmethod
    def format_loss_dict(loss_dict: Mapping[str, float]) -> str:
        """:return: the losses as in the step line"""
        return format_losses(loss_dict)
