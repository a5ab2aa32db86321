"""
The interface between the engine and what watches it (tensorboard, profiler, more numbers in the step lines).

The engine holds a list of observers, empty unless options ask for them. Per pass over a dataset::

    start_pass
        per step: wants_losses, end_step; when a step line is due: more_losses, line_parts
    more_losses of the scores of the pass, end_pass
    close at the end of the run
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from returnn.frontend.run_ctx import Loss

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["PassObserver", "completed_losses", "error_names", "losses_are_wanted", "step_line_parts"]


class PassObserver:
    """Does nothing; observers override what they need."""

    #: Whether the run must not write checkpoints and learning-rate files while this observer is active.
    keeps_from_writing = False

    def start_pass(self, name: str, *, engine: EngineBase) -> None:
        """
        A pass starts.

        :param name: "train", the name of an eval dataset, or "forward"
        :param engine: with the epoch as ``epoch``
        """

    def wants_losses(self, name: str, *, step: int, global_step: int) -> bool:
        """
        :param name: of the pass
        :param step: within the pass, from 0
        :param global_step: training steps done over all epochs, this one not counted
        :return: whether :meth:`end_step` needs the losses of this step. Fetching them waits for the device
        """
        return False

    def more_losses(self, losses: Mapping[str, float], *, errors: frozenset[str]) -> Mapping[str, float]:
        """
        :param losses: value / norm factor by name: of one step, or of a whole pass
        :param errors: names of those that are errors rather than losses (``mark_as_loss(as_error=True)``)
        :return: values by name to report besides them
        """
        return {}

    def line_parts(self, name: str, *, data: Mapping[str, Any]) -> Sequence[str]:
        """
        :param name: of the pass
        :param data: raw batch of the step: tensors and lists by key. Any: either
        :return: texts that the step line shows behind the losses, e.g. "num_seqs 5"
        """
        return ()

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
        """
        A step is done.

        :param name: of the pass
        :param step: within the pass, from 0
        :param global_step: training steps done over all epochs, this one not counted
        :param epoch: from 1
        :param data: raw batch. Any: tensors and lists by key
        :param losses: value / norm factor by name, completed; None: not fetched, see :meth:`wants_losses`
        """

    def end_pass(self, name: str, *, epoch: int, scores: Mapping[str, float]) -> None:
        """
        A pass is done.

        :param name: of the pass
        :param epoch: from 1
        :param scores: of the whole pass by loss name, completed; empty in "forward"
        """

    def close(self) -> None:
        """The run ends, in whatever way."""


def losses_are_wanted(observers: Iterable[PassObserver], name: str, *, step: int, global_step: int) -> bool:
    """:return: whether any observer needs the losses of this step. See :meth:`PassObserver.wants_losses`"""
    return any(observer.wants_losses(name, step=step, global_step=global_step) for observer in observers)


def completed_losses(
    observers: Sequence[PassObserver], losses: Mapping[str, float], *, errors: frozenset[str] = frozenset()
) -> dict[str, float]:
    """
    :param observers: of the engine
    :param losses: value / norm factor by name
    :param errors: see :meth:`PassObserver.more_losses`
    :return: these, and what the observers add
    """
    result = dict(losses)
    for observer in observers:
        result.update(observer.more_losses(losses, errors=errors))
    return result


def step_line_parts(observers: Iterable[PassObserver], name: str, *, data: Mapping[str, Any]) -> list[str]:
    """:return: what the observers show in the step line. See :meth:`PassObserver.line_parts`. Any: raw batch"""
    return [part for observer in observers for part in observer.line_parts(name, data=data)]


def error_names(losses: Mapping[str, Loss]) -> frozenset[str]:
    """:return: names of the losses that are only errors; there are none in the Mini dialect"""
    return frozenset(name for name, loss in losses.items() if getattr(loss, "as_error", False))
