"""The part of the engine that trains: epochs, and the steps of each."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from typing import Any

import torch

from returnn._state import state
from returnn.engine.losses import LossAccumulator
from returnn.engine.model_files import existing_models
from returnn.engine.report import PassReport
from returnn.engine.time_limit import TimeLimit
from returnn.errors import DatasetError
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.torch.distributed.start import agreed_learning_rate
from returnn.torch.epoch_meta import EpochMeta
from returnn.torch.epoch_position import EpochPosition, TrainPass
from returnn.torch.inner_checkpoints import InnerCheckpoints
from returnn.torch.messages import no_data_text
from returnn.torch.observers.base import completed_losses
from returnn.torch.optim.skipped_updates import batches_text
from returnn.torch.step_reports import RawBatch
from returnn.torch.updater import all_updaters
from returnn.util.seeds import epoch_seed

__all__ = ["TrainPasses"]


class TrainPasses(InnerCheckpoints):
    """Base of the engine; uses attributes that the engine sets."""

    _final_epoch: int | None
    _save_model_epoch_interval: int
    _time_limit: TimeLimit

    def _save_optimizer(self) -> None:
        raise NotImplementedError  # by Engine

    def train(self) -> None:
        """Train all epochs that are left."""
        assert self._start_epoch is not None and self._final_epoch is not None, "call init_train first"
        self._lines.train_starts(epoch=self._start_epoch, global_step=self._train_step)
        self._open_observers(train=True)  # custom engines may have skipped our init_train
        try:
            with self._saving_inside_epochs():
                self._check_epoch_missing_eval()
                if self._start_epoch > self._final_epoch:
                    self._clean_up_at_end()
                self.set_epoch(self._start_epoch)
                while self.epoch <= self._final_epoch:
                    self._time_limit.epoch_starts(self._secs_of_earlier_runs())
                    self.init_train_epoch()
                    self.train_epoch()
                    if self.epoch < self._final_epoch and self._time_limit.epoch_ends():
                        self._stop_between_epochs()
                    self.set_epoch(self.epoch + 1)
        finally:
            self._close_observers()
            self.close_loaders()
        self._lines.train_ends(epoch=self.epoch - 1, global_step=self._train_step)

    def _clean_up_at_end(self) -> None:
        """All epochs are done already: delete the checkpoints that the run before had no time for, stopped in its last evaluation."""
        options = CheckpointOptions.from_config(self.config)
        stored = existing_models(options.model) if options.model else {}
        if options.cleanup and stored and max(stored) == self._final_epoch:
            self.epoch = max(stored)  # it is always kept
            self.cleanup_old_models()

    def set_epoch(self, epoch: int) -> None:
        """:param epoch: which the next passes over the datasets are for"""
        self.epoch = epoch
        self._epoch_mp_shared.value = epoch

    def init_train_epoch(self) -> None:
        """Set the learning rate of this epoch, and (mainline dialect) the seed of its random numbers."""
        assert self.learning_rate_control is not None
        self.learning_rate = agreed_learning_rate(self.learning_rate_control, self.epoch)
        updaters: list[Any] = list(all_updaters(self._updater))
        if hasattr(self._updater, "set_learning_rate") and not updaters:
            updaters = [self._updater]  # of a custom engine, and no subclass of ours
        for updater in updaters:
            updater.set_learning_rate(self.learning_rate)
        if self._dialect_is_mainline or state.world_size > 1:
            torch.manual_seed(
                epoch_seed(
                    epoch=self.epoch,
                    global_step=self._train_step,
                    random_seed=self._options.random_seed,
                    rank=state.rank if state.world_size > 1 else None,
                )
            )

    def train_epoch(self) -> None:
        """Train one epoch, or the rest of it, store scores and checkpoint, evaluate, clean up."""
        position, self._position = self._position, None
        self._epoch_is_saved = False
        if position is None or position.phase == "train":
            self._train_pass(position)
        else:
            self._restart.restore_rng()
        # After a stop in the evaluation only if save_interval or num_epochs has changed: else there would be nothing to go on from.
        if self.epoch % self._save_model_epoch_interval == 0 or self.epoch == self._final_epoch:
            self.save_model()
            self._save_optimizer()
            self._note_epoch_is_saved()
        with self._stopping_after_train_pass():
            if position is None or position.phase == "train":
                self.eval_model()
            else:
                self._evaluate_rest()
            if CheckpointOptions.from_config(self.config).cleanup:
                self.cleanup_old_models()

    def _train_pass(self, position: EpochPosition | None) -> None:
        """
        Train one epoch, store the scores.

        :param position: go on there. None: from the start
        """
        assert self._model is not None and self._train_dataloader is not None
        with self._keeping_weights(position is not None):
            self._pass_frame.starts(epoch=self.epoch, step=self._train_step, model=self._model, dataset_name="train")
        self._tell_train_position(0 if position is None else position.num_steps)
        meta = EpochMeta(self._train_step, self._effective_learning_rate)
        train_pass = TrainPass(meta, LossAccumulator(skips_nonfinite=True))
        self._lines.epoch_starts(
            self.get_epoch_str(),
            global_step=self._train_step,
            learning_rate=self.learning_rate,
            effective=self._effective_learning_rate,
        )
        self._model.train()
        self._init_train_step_run_ctx(train=True)
        with self._pass_report("train", self._train_dataloader) as report:
            batches = self._even_batches(self._iter_train(position), "train")
            if position is not None:
                train_pass = self._going_on_train_pass(position, report)
            self._start_observing("train")
            self._train_steps(batches, train_pass, report)
        self._end_train_pass(train_pass, report)

    def _train_steps(self, batches: Iterator[RawBatch | None], train_pass: TrainPass, report: PassReport) -> None:
        """
        :param batches: that are left
        :param train_pass: its losses and times are updated
        :param report: of the pass
        :raises TrainingStopped: a stop was requested, and all is saved
        """
        losses, first_step = train_pass.losses, train_pass.num_steps
        may_pause = self._may_pause_without_request
        steps = self._steps(batches, name="train", train=True, first_step=first_step)
        with self._stopping_between_steps(train_pass):
            for step_idx, (data, run_ctx) in enumerate(steps, first_step):
                step_start = time.time()
                total_loss, loss_dict = self._call_run_train_step(data, run_ctx, step_idx)
                losses.add(loss_dict, self._train_step)
                self._report_step(report, step_idx, step_start, total_loss, losses, name="train", data=data)
                self._train_step += 1
                self._after_update(self._train_step)
                train_pass.step_secs += time.time() - step_start
                if may_pause or state.stop_reason is not None:
                    self._pause(train_pass)
            losses.fetch()
            self._check_accumulated(losses)

    def _end_train_pass(self, train_pass: TrainPass, report: PassReport) -> None:
        """
        After the last step: apply what is left of the gradients, show and store the scores.

        :param train_pass: complete
        :param report: of the pass
        """
        meta, losses = train_pass.meta, train_pass.losses
        secs = meta.secs_since_start()
        num_steps = losses.num_steps
        step_secs = train_pass.step_secs
        self._lines.train_pass_ends(report, epoch=self.epoch, num_steps=num_steps, secs=secs, step_secs=step_secs)
        scores = self._finish_pass(report, losses, name="train")
        self._lines.train_scores(report, scores, epoch=self.epoch)
        updates = [updater.finish_epoch() for updater in all_updaters(self._updater)]
        num_skipped = sum(of_one.num_skipped for of_one in updates)
        if num_skipped:
            batches = [batch for of_one in updates for batch in of_one.skipped_batches]
            named = f" {batches_text(batches, num_steps=20)}." if batches else ""
            print(f"Epoch {self.epoch}: {num_skipped} updates skipped because of inf/nan.{named}", file=log.v1)
        self._after_train_pass()
        self._tell_train_position(None)
        self._pass_frame.ends(epoch=self.epoch, step=self._train_step, model=self._model, dataset_name="train")
        self._store_train_scores(scores, meta, num_steps=num_steps, secs=secs)

    def _store_train_scores(self, scores: Mapping[str, float], meta: EpochMeta, *, num_steps: int, secs: float) -> None:
        if not self._dialect_is_mainline:
            self._store_scores(scores)
            return
        facts = meta.entries(global_step=self._train_step, num_steps=num_steps, secs=secs, device=self._device)
        self._store_scores({**{f"train_loss_{name}": value for name, value in scores.items()}, **facts})

    def _store_scores(self, scores: Mapping[str, Any]) -> None:
        """
        :param scores: of the current epoch by key. Any: with facts about the run under ":meta:..."
        """
        assert self.learning_rate_control is not None
        self.learning_rate_control.set_epoch_error(self.epoch, dict(scores))
        if self._should_write_to_disk():
            self.learning_rate_control.save()

    def _finish_pass(self, report: PassReport, losses: LossAccumulator, *, name: str) -> dict[str, float]:
        """
        :param report: of the pass
        :param losses: of its steps
        :param name: of the dataset
        :return: scores by name
        :raises DatasetError: there was not a single step
        """
        loader = self._train_dataloader if name == "train" else self._eval_dataloaders.get(name)
        losses = self._merge_losses(losses, name)
        if not losses.num_steps:
            raise DatasetError(no_data_text(name, loader, epoch=self.epoch))
        scores = completed_losses(self._observers, losses.means(), errors=frozenset(losses.errors))
        scores = self._complete_scores(name, scores)
        self._end_observing(name, scores)
        return scores
