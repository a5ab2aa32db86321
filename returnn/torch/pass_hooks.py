"""
Where distribution, compilation, averaging of weights and observers hook into the passes of the engine.

Each method is called by the loops of the engine at the place that its name tells, and changes nothing by itself.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch

from returnn.engine.losses import LossAccumulator
from returnn.frontend.run_ctx import RunCtx
from returnn.torch.step_reports import RawBatch

__all__ = ["PassHooks", "StepModule"]

#: Computes the losses of a training step: (raw batch or None for a step without data, run context) -> total loss.
StepModule = Callable[[Any, RunCtx], torch.Tensor]


class PassHooks:
    """Base of the engine; uses attributes that the engine sets."""

    epoch: int
    _device: str
    _model: torch.nn.Module | None
    #: None: the step function of the config is called directly
    _step_module: StepModule | None = None
    #: told about passes and their steps. Any: see returnn.torch.observers.base
    _observers: Sequence[Any] = ()
    #: None: one process. Any: see returnn.torch.distributed.context
    _distributed: Any = None

    def _wrap_train_step(self) -> None:
        """At the end of the set-up of a training: sets :attr:`_step_module`, if the options ask for more than a plain step."""

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
        return losses

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

    # ---- observers

    def _start_observing(self, name: str) -> None:
        for observer in self._observers:
            observer.start_pass(name, engine=self)

    def _observe_step(
        self, name: str, *, step: int, global_step: int, data: RawBatch | None, losses: Mapping[str, float] | None
    ) -> None:
        """
        :param name: of the dataset
        :param step: within the pass
        :param global_step: number of training steps done before
        :param data: raw batch
        :param losses: value / norm factor by name; None: not fetched from the device
        """
        for observer in self._observers:
            observer.end_step(name=name, step=step, global_step=global_step, epoch=self.epoch, data=data, losses=losses)

    def _end_observing(self, name: str, scores: Mapping[str, float]) -> None:
        for observer in self._observers:
            observer.end_pass(name, epoch=self.epoch, scores=scores)
