"""
Where distribution, compilation, averaging of weights and observers hook into the passes of the engine.

Each method is called by the loops of the engine at the place that its name tells, and changes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch

from returnn.engine.losses import LossAccumulator
from returnn.frontend.run_ctx import RunCtx
from returnn.torch.distributed.context import DistributedContext, get_distributed
from returnn.torch.distributed.evaluation import merge_losses
from returnn.torch.observers.observed import ObservedPasses
from returnn.torch.step_reports import RawBatch

__all__ = ["PassHooks", "StepModule"]

#: Computes the losses of a training step: (raw batch or None for a step without data, run context) -> total loss.
StepModule = Callable[[Any, RunCtx], torch.Tensor]


class PassHooks(ObservedPasses):
    """Base of the engine; uses attributes that the engine sets."""

    _device: str
    _model: torch.nn.Module | None
    #: None: the step function of the config is called directly
    _step_module: StepModule | None = None

    @property
    def _distributed(self) -> DistributedContext | None:
        """The other ranks, also for engines of users that skip our constructor. None: one process."""
        return get_distributed()

    def _wrap_train_step(self) -> None:
        """At the end of the set-up of a training: sets :attr:`_step_module`, if the options ask for more than a plain step."""

    def _begin_step(self, step_idx: int) -> None:
        """:param step_idx: of the training step that begins, within the epoch"""

    def _all_usable(self, usable: bool) -> bool:
        """
        :param usable: whether the losses of this process are no inf or nan
        :return: whether those of all ranks are
        """
        return usable

    def _even_batches(self, batches: Iterable[RawBatch], name: str) -> Iterator[RawBatch | None]:
        """
        :param batches: of one pass, of this process
        :param name: of the dataset, e.g. "train"
        :return: the batches that this process steps through. None: a step without data, that other ranks have data for
        """
        del name
        yield from batches

    def _merge_losses(self, losses: LossAccumulator, name: str) -> LossAccumulator:
        """
        :param losses: of one pass, of this process, fetched
        :param name: of the dataset
        :return: those of all ranks together
        """
        del name
        ctx = self._distributed
        return losses if ctx is None else merge_losses(ctx, losses)

    def _complete_scores(self, name: str, scores: Mapping[str, float]) -> dict[str, float]:
        """
        :param name: of the dataset
        :param scores: of one pass by loss name
        :return: scores to be reported and stored, by name
        """
        del name
        return dict(scores)

    def _after_update(self, step: int) -> None:
        """
        After each training step, whether the weights were updated in it or not (gradient accumulation).

        :param step: number of training steps done
        """

    def _after_train_pass(self) -> None:
        """After the last step and update of an epoch, before anything is saved."""
