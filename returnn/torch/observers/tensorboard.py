"""The option use_tensorboard."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.log import log
from returnn.options.observers import TensorboardOptions
from returnn.torch.observers.base import PassObserver
from returnn.util.optional_import import optional_import

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["Tensorboard"]


class Tensorboard(PassObserver):
    """
    Writes losses for tensorboard, over the number of training steps. A continued training goes on in the same folder;
    what the interrupted run wrote after the checkpoint is hidden by tensorboard (``purge_step``).
    """

    def __init__(self, options: TensorboardOptions, *, model: str | None):
        """
        :param options: of the config
        :param model: prefix of the checkpoints; None: there are none
        :raises MissingDependencyError: tensorboard is not installed
        """
        self._options = options
        self._module = optional_import("torch.utils.tensorboard", needed_by="use_tensorboard", install="tensorboard")
        self.log_dir = options.log_dir or os.path.join(os.path.dirname(model or "") or ".", "tensorboard")
        self._writer: Any = None  # SummaryWriter has no types
        self._engine: Any = None  # the attributes of the torch engine
        self._is_writing = False

    def start_pass(self, name: str, *, engine: EngineBase) -> None:
        """:param engine: knows the step, and whether this process writes"""
        self._engine = engine
        self._is_writing = engine._should_write_to_disk()
        if self._is_writing and self._writer is None:
            step = int(self._engine._train_step)
            # Scores of the evaluation after the last step carry this step, so only what comes after it is hidden. Inside an
            # epoch there are none.
            first = step if name == "train" and getattr(engine, "_starts_inside", False) else step + 1
            self._writer = self._module.SummaryWriter(self.log_dir, purge_step=first if step else None)
            print(f"Tensorboard: writing to {self.log_dir}", file=log.v3)

    def wants_losses(self, name: str, *, step: int, global_step: int) -> bool:
        """:return: in training, each n-th step"""
        return self._is_writing and name == "train" and global_step % self._options.log_every_n_train_steps == 0

    def end_step(
        self,
        *,
        name: str,
        step: int,
        global_step: int,
        epoch: int,
        data: Mapping[str, Any],
        losses: Mapping[str, float] | None,
    ) -> None:
        """Write the losses of the step, if it is one to log."""
        if losses is None or not self.wants_losses(name, step=step, global_step=global_step):
            return
        for key, value in losses.items():
            self._writer.add_scalar(f"train/{key}", value, global_step)
        updater = self._engine._updater
        learning_rate = getattr(updater, "effective_learning_rate", None)
        if learning_rate is None:  # a custom engine may have another one
            learning_rate = self._engine.learning_rate
        self._writer.add_scalar("train/learning_rate", float(learning_rate), global_step)

    def end_pass(self, name: str, *, epoch: int, scores: Mapping[str, float]) -> None:
        """Write the scores of an evaluation."""
        if not self._is_writing:
            return
        if name != "train":
            for key, value in scores.items():
                self._writer.add_scalar(f"{name}/{key}", value, self._engine._train_step)
        self._writer.flush()

    def close(self) -> None:
        """Write what is left."""
        if self._writer is not None:
            self._writer.close()
            self._writer = None
            self._is_writing = False
