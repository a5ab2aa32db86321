"""The part of the engine that steps together with the other ranks, if there are any."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

from returnn.engine.pauses import PausePlan
from returnn.engine.report import PassReport
from returnn.errors import NotSupportedError
from returnn.log import log
from returnn.torch.device import device_type
from returnn.torch.distributed.throughput import RankSpeed, speed_line
from returnn.torch.distributed.training import RankedTraining
from returnn.torch.loss_steps import LossSteps
from returnn.torch.step_reports import RawBatch, StepReports
from returnn.torch.updater import Updater

__all__ = ["RankedSteps"]


class RankedSteps(LossSteps, StepReports):
    """Base of the engine; uses attributes that the engine sets. With one process, all is as in LossSteps."""

    _start_epoch: int | None
    _ranks: RankedTraining | None = None
    #: the ShardedModel, with class "fsdp". Any: it is imported only then
    _sharded: Any = None
    _train_report: PassReport | None = None
    #: after which steps the training pauses; with several ranks, they agree on it. None: never
    _pauses: PausePlan | None = None
    #: in which the ranks have stepped together
    _epoch_of_ranks: int | None = None

    def _wrap_train_step(self) -> None:
        super()._wrap_train_step()
        self._connect_ranks()
        self._connect_updater()

    def _connect_ranks(self) -> None:
        """Before the first step of a training, when model and updater are complete."""
        ctx = self._distributed
        if ctx is None or self._ranks is not None:
            return
        assert self._model is not None
        self._ranks = RankedTraining(
            ctx,
            model=self._model,
            step=self._step_module or self._plain_step,
            seeds=(self._start_epoch or 1, self._train_step, self._options.random_seed),
            sharded=self._sharded,
        )
        self._step_module = self._ranks

    def _connect_updater(self) -> None:
        if self._ranks is None:
            return
        updater_is_ours = isinstance(self._updater, Updater) and type(self._updater).step is Updater.step
        step_is_ours = type(self).run_train_step is LossSteps.run_train_step
        self._ranks.connect(self._updater, own_steps=not (updater_is_ours and step_is_ours))

    def _begin_step(self, step_idx: int) -> None:
        super()._begin_step(step_idx)
        if self._distributed is not None and (self._ranks is None or not self._ranks.is_in_pass):
            raise NotSupportedError(self._own_loop_text())
        if self._ranks is not None:
            updater = self._updater
            self._ranks.begin_step(updates=not isinstance(updater, Updater) or updater.completes_group(step_idx))

    def _all_usable(self, usable: bool) -> bool:
        # Other devices than the CPU have their check in the updater; it sees the gradients of all ranks.
        if self._ranks is None or device_type(self._device) != "cpu" or self._options.stop_on_nonfinite_train_score:
            return usable
        return self._ranks.all_usable(usable)

    def _even_batches(self, batches: Iterable[RawBatch], name: str) -> Iterator[RawBatch | None]:
        if name != "train" or self._distributed is None:
            return super()._even_batches(batches, name)
        self._connect_ranks()  # if init_train of the user's engine did not
        self._connect_updater()  # custom engines may have replaced it
        assert self._ranks is not None
        self._epoch_of_ranks = self.epoch
        return self._ranks.even_batches(
            batches, self._complete_frac_of_loader, pauses=self._pauses, steps_before=self._train_step
        )

    def _check_trained_together(self) -> None:
        """
        Before a checkpoint of a training is written.

        :raises NotSupportedError: several ranks, and a custom engine has not trained this epoch by our loop
        """
        is_training = self._start_epoch is not None and self.epoch >= self._start_epoch
        if self._distributed is not None and is_training and self._epoch_of_ranks != self.epoch:
            raise NotSupportedError(self._own_loop_text())

    def _own_loop_text(self) -> str:
        return (
            f"The engine {type(self).__name__} has its own loop over the training data (train_epoch), in which the steps of several "
            "ranks cannot be brought together. Train in one process, or call super().train_epoch() and put what is special into "
            "run_train_step."
        )

    def _complete_frac_of_loader(self) -> float | None:
        stats = getattr(self._train_dataloader, "stats", None)
        frac: float | None = None if stats is None else stats.complete_frac
        return frac

    def _epoch_continuous(self) -> float | None:
        if self._ranks is None:
            return super()._epoch_continuous()
        frac = self._ranks.complete_frac
        return None if frac is None else self.epoch - 1 + frac

    def _after_update(self, step: int) -> None:
        if self._ranks is not None:
            self._ranks.after_step(step)
        super()._after_update(step)

    def _after_train_pass(self) -> None:
        super()._after_train_pass()
        if self._ranks is not None:
            self._ranks.after_pass(epoch=self.epoch)
            self._report_speed(self._ranks)

    def _pass_report(self, what: str, loader: object) -> PassReport:
        report = super()._pass_report(what, loader)
        if what == "train":
            self._train_report = report
        return report

    def _report_speed(self, ranks: RankedTraining) -> None:
        report, ctx = self._train_report, self._distributed
        if report is None or ctx is None or report.stats is None:
            return
        stats = report.stats
        busy = stats.secs_waited + ranks.secs_in_step if ranks.secs_in_step else 0.0
        speeds = ctx.gather_objects(RankSpeed(ctx.rank, stats.num_seqs_seen, report.elapsed, stats.secs_waited, busy))
        if speeds is not None:
            print(speed_line(report.prefix, speeds), file=log.v3)
