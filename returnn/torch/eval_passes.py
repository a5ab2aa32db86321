"""The part of the engine that evaluates: after each epoch, at a restart, and in the task eval."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from returnn._state import state as process_state
from returnn.datasets.basic import Dataset
from returnn.engine.losses import LossAccumulator
from returnn.engine.model_files import StartPoint
from returnn.engine.report import PassReport
from returnn.log import log
from returnn.options.model import ModelOptions
from returnn.torch.compiled_step import compile_step_function
from returnn.torch.data.loader import EpochSource, Loader
from returnn.torch.distributed.start import first_rank_decides
from returnn.torch.ema import AveragedWeights
from returnn.torch.epoch_position import EpochPosition
from returnn.torch.pass_frame import PassFrame
from returnn.torch.restart import RestartState, consume_rng, isolated_rng, mark_resumed, missing_evals
from returnn.torch.sharded_passes import ShardedPasses
from returnn.torch.start_report import print_scores_stored, print_start
from returnn.torch.step_call import StepCall
from returnn.torch.step_reports import StepReports
from returnn.torch.user_functions import takes_argument
from returnn.util.stop_request import raise_if_requested

__all__ = ["EvalPasses"]


class EvalPasses(ShardedPasses, StepReports, AveragedWeights):
    """Base of the engine; uses attributes that the engine sets."""

    _start_epoch: int | None
    _eval_dataloaders: dict[str, Loader]
    _epoch_mp_shared: EpochSource
    _forward_epoch: int | None
    _restart: RestartState
    _pass_frame: PassFrame
    #: of the checkpoint inside an epoch that the training goes on from, until that epoch is done; None: it starts with an epoch
    _position: EpochPosition | None = None

    def _mark_used_loaders(self, position: EpochPosition) -> None:
        """Which random numbers the next iterators of the loaders draw depends on those before."""
        for name, loader in self._eval_dataloaders.items():
            mark_resumed(loader, position.used_eval_loaders.get(name, True))
        mark_resumed(self._train_dataloader)

    def close_loaders(self) -> None:
        """End all worker processes."""
        raise NotImplementedError  # by Engine

    def _create_data_loader(self, dataset: Dataset) -> Loader:
        """:return: batches of the dataset"""
        raise NotImplementedError  # by Engine

    def _load_model(self, *, epoch: int | None, filename: str | None = None) -> None:
        """Create the model and load its parameters."""
        raise NotImplementedError  # by Engine

    def _set_precision(self) -> None:
        raise NotImplementedError  # by Engine

    def _make_step_call(self, func: Callable[..., Any], *, with_eval_targets: bool = True) -> StepCall:
        """:return: a step function of the config, as it will be called"""
        raise NotImplementedError  # by Engine

    def _store_scores(self, scores: Mapping[str, Any]) -> None:
        raise NotImplementedError  # by Engine

    def _finish_pass(self, report: PassReport, losses: LossAccumulator, *, name: str) -> dict[str, float]:
        raise NotImplementedError  # by Engine

    def eval_model(self, *, skip_already_evaluated: bool = False) -> None:
        """
        Evaluate all eval datasets, in order; store each one's scores at once.

        :param skip_already_evaluated: leave out those that have scores of this epoch
        """
        names = []
        for name, loader in self._eval_dataloaders.items():
            if skip_already_evaluated and self._is_dataset_evaluated(name):
                consume_rng(loader)
            else:
                names.append(name)
        all_scores = {}
        for name, scores in self._iter_eval_scores(names):
            all_scores[name] = scores
            self._store_scores({f"{name}_loss_{k}": v for k, v in scores.items()})
        self._lines.eval_ends(all_scores, epoch=self.epoch)

    def _iter_eval_scores(self, names: Iterable[str]) -> Iterator[tuple[str, dict[str, float]]]:
        """:return: per eval dataset its name and the score by loss name"""
        assert self._model is not None
        self._model.eval()
        self._init_train_step_run_ctx(train=False)
        for name in names:
            yield name, self._eval_dataset(name, self._eval_dataloaders[name])

    def _evaluate_rest(self) -> None:
        """Evaluate the eval datasets that have no scores of this epoch; of the others only draw the random numbers."""
        if all(self._is_dataset_evaluated(name) for name in self._eval_dataloaders):
            for loader in self._eval_dataloaders.values():
                consume_rng(loader)
            return
        takes_it = takes_argument(self.eval_model, "skip_already_evaluated")
        self.eval_model(**({"skip_already_evaluated": True} if takes_it else {}))

    def _eval_dataset(self, name: str, loader: Loader) -> dict[str, float]:
        """:return: score by loss name"""
        self._lines.eval_pass_starts(name)
        self._pass_frame.starts(epoch=self.epoch, step=self._train_step, model=self._model, dataset_name=name)
        losses = LossAccumulator()
        start = time.time()
        batches = iter(loader)  # draws random numbers as torch's DataLoader does
        # The rest of the evaluation must not change the random numbers of the next epoch: a restart, which finds the
        # epoch evaluated already, is the same as no interruption only then.
        with (
            torch.no_grad(),
            isolated_rng(self._device),
            self._averaged_weights("eval"),
            self._pass_report(f"eval {name}", loader) as report,
        ):
            self._start_observing(name)
            for step_idx, (data, run_ctx) in enumerate(self._steps(self._even_batches(batches, name), name=name)):
                if self._pauses is not None:
                    self._pauses.note_time()
                if process_state.stop_reason is not None:
                    raise_if_requested()
                step_start = time.time()
                total_loss, loss_dict = self.run_eval_step(data, run_ctx)
                losses.add(loss_dict, self._train_step)
                self._report_step(report, step_idx, step_start, total_loss, losses, name=name, data=data)
            losses.fetch()
        scores = self._finish_pass(report, losses, name=name)
        self._lines.eval_pass_ends(report, scores, name=name, secs=time.time() - start)
        self._pass_frame.ends(epoch=self.epoch, step=self._train_step, model=self._model, dataset_name=name)
        return scores

    def init_eval_task(self) -> StartPoint:
        """
        Prepare the task ``eval``: eval datasets, and the model of option ``load`` or of the newest checkpoint.

        :return: which checkpoint it is
        """
        functions = ModelOptions.from_config(self.config, needed=("get_model", "train_step"), used=())
        assert functions.train_step is not None
        self.init_eval()
        self._eval_dataloaders = {name: self._create_data_loader(ds) for name, ds in self.eval_datasets.items()}
        start = first_rank_decides(lambda: self.get_start_point(self.config))
        print_start(start, final_epoch=None, lr_control=None)
        self._load_model(epoch=None, filename=start.filename)
        self._set_precision()
        self._train_step_func = self._make_step_call(compile_step_function(self.config, functions.train_step))
        self.epoch = self._epoch_mp_shared.value = self._forward_epoch or 0
        return start

    def eval_task(self) -> None:
        """The task ``eval``: print the scores, and store them if the checkpoint is one of this training."""
        start = self.init_eval_task()
        own = start.is_own_model and self.epoch > 0
        self._open_observers(train=False)
        try:
            for name, scores in self._iter_eval_scores(list(self._eval_dataloaders)):
                self._lines.eval_task_scores(name, scores, epoch=self.epoch)
                if own:
                    self._store_scores({f"{name}_loss_{k}": v for k, v in scores.items()})
        finally:
            self._close_observers()
            self.close_loaders()
        print_scores_stored(own and self._should_write_to_disk(), self.learning_rate_control)

    def _check_epoch_missing_eval(self) -> None:
        """
        At the start of a continued training: evaluate the last finished epoch on the eval datasets that have no scores
        of it, and bring the random generators to where an uninterrupted run would have them.

        :raises ConfigError: earlier epochs have no scores
        """
        assert self._start_epoch is not None and self.learning_rate_control is not None
        if self._position is not None:  # inside an epoch: all before it is done
            self._mark_used_loaders(self._position)
            return
        last_epoch = self._start_epoch - 1
        if last_epoch < 1:
            return
        known = self._restart.restore_rng()
        # A loader's first iterator draws other random numbers than later ones. Of the eval loaders, the evaluation that
        # follows here (or is only counted) was the first if only one epoch was trained.
        resumed = self._restart.first_epoch != last_epoch
        for eval_loader in self._eval_dataloaders.values():
            mark_resumed(eval_loader, resumed)
        mark_resumed(self._train_dataloader)
        self.epoch = last_epoch
        self._epoch_mp_shared.value = last_epoch
        missing = missing_evals(
            self.learning_rate_control, last_epoch=last_epoch, eval_names=list(self._eval_dataloaders)
        )
        if missing:
            print(f"Last epoch model not yet evaluated on {', '.join(missing)}. Doing that now.", file=log.v3)
            skip = {"skip_already_evaluated": True} if takes_argument(self.eval_model, "skip_already_evaluated") else {}
            self.eval_model(**skip)
        elif known:
            for eval_loader in self._eval_dataloaders.values():
                consume_rng(eval_loader)
