"""The part of the engine that runs forward_step over a dataset."""

from __future__ import annotations

import time

import torch

from returnn.engine.base import EngineBase
from returnn.errors import DatasetError
from returnn.frontend.run_ctx import RunCtx, init_forward_step_run_ctx
from returnn.log import log
from returnn.torch.context import get_run_ctx
from returnn.torch.data.loader import Loader
from returnn.torch.errors_context import add_batch_note
from returnn.torch.forward_sink import ForwardSink
from returnn.torch.messages import no_data_text
from returnn.torch.precision import step_precision
from returnn.torch.step_reports import RawBatch, StepReports
from returnn.torch.user_functions import UserFunction

__all__ = ["ForwardPasses"]


class ForwardPasses(StepReports, EngineBase):
    """Base of the engine; uses attributes that the engine sets."""

    _amp_dtype: torch.dtype | None
    _model: torch.nn.Module | None
    _forward_step_func: UserFunction | None
    _forward_dataloader: Loader | None

    def close_loaders(self) -> None:
        """End all worker processes."""
        raise NotImplementedError  # by Engine

    def move_data_to_device(self, data: RawBatch) -> RawBatch:
        """:return: new dict with the tensors on the device of the model"""
        raise NotImplementedError  # by LossSteps

    def forward(self) -> None:
        """Run forward_step over the forward dataset; hooks before and after share the run context with the steps."""
        assert self._model is not None and self._forward_dataloader is not None
        sink = ForwardSink.from_config(self.config)
        self._model.eval()
        self.epoch = self._forward_epoch or 0
        init_forward_step_run_ctx(device=self._device, engine=self, epoch=self._forward_epoch, step=self._train_step)
        run_ctx = get_run_ctx()
        print("Start Forwarding", file=log.v3)
        start = time.time()
        num_steps = 0
        try:
            with torch.no_grad(), sink, self._pass_report("forward", self._forward_dataloader) as report:
                sink.init(run_ctx)
                for step_idx, (data, _) in enumerate(self._steps(iter(self._forward_dataloader), name="forward")):
                    step_start = time.time()
                    self.run_forward_step(data, run_ctx)
                    sink.write(run_ctx, data)
                    self._report_step(report, step_idx, step_start, None, None)
                    num_steps += 1
                if not num_steps:
                    raise DatasetError(no_data_text("forward", self._forward_dataloader, epoch=self.epoch))
                sink.finish(run_ctx)
        finally:
            self.close_loaders()
        summary = report.summary()
        if summary:
            print(summary, file=log.v3)
        print(f"Finished forwarding in {time.time() - start:.3}s", file=log.v3)

    def run_forward_step(self, data: RawBatch, run_ctx: RunCtx) -> None:
        """
        One forward step; what it computes, user code keeps or marks on the context.

        :param data: raw batch, anywhere
        :param run_ctx: init_step was called
        """
        assert self._forward_step_func is not None, "forward_step not defined"
        try:
            with step_precision(self._device, self._amp_dtype):
                self._forward_step_func(model=self._model, data=self.move_data_to_device(data), run_ctx=run_ctx)
        except Exception as exc:
            add_batch_note(exc, epoch=self.epoch, data=data)
            raise
