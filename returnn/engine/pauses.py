"""
After which steps a training pauses: to save inside the epoch, or to save and stop.

Three things ask for a pause: the number of steps (``save_every_steps``), the time (``save_every_minutes``,
``stop_after_minutes``), and signals (:mod:`returnn.util.stop_request`). With several ranks, all must pause after the same step,
at which none has read data ahead: time and signals of a rank are then only what it wants, and the ranks agree through what
they exchange per step anyway (:mod:`returnn.torch.distributed.uneven`).
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Literal

from returnn._state import state
from returnn.util import stop_request

__all__ = ["Pause", "PausePlan"]

Pause = Literal["save", "stop"]


class PausePlan:
    """
    Asked after each step. Within :func:`returnn.util.stop_request.accept_stops`, since a limit of time becomes a request.
    """

    def __init__(
        self,
        *,
        save_every_steps: int | None = None,
        save_every_minutes: float | None = None,
        stop_after_minutes: float | None = None,
        several_ranks: bool | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        """
        The clocks start now.

        :param save_every_steps: counted over all epochs
        :param save_every_minutes: since the last save
        :param stop_after_minutes: since now
        :param several_ranks: whether others decide together with this process; None: what the launcher said
        :param clock: in seconds
        """
        self._every_steps = save_every_steps
        self._save_secs = None if save_every_minutes is None else save_every_minutes * 60.0
        self._several_ranks = state.world_size > 1 if several_ranks is None else several_ranks
        self._clock = clock
        self._save_at = None if self._save_secs is None else clock() + self._save_secs
        self._stop_at = None if stop_after_minutes is None else clock() + stop_after_minutes * 60.0
        self._has_clocks = self._save_at is not None or self._stop_at is not None
        self._agreed: Pause | None = None

    @property
    def without_request(self) -> bool:
        """:return: whether there can be pauses without a request of this process: if not, it need not be asked after each step"""
        return self._several_ranks or self._has_clocks or bool(self._every_steps)

    def after_step(self, num_steps: int) -> Pause | None:
        """
        :param num_steps: done so far, over all epochs
        :return: what to do before the next step. "save" starts the time until the next save anew
        """
        if self._several_ranks:
            pause, self._agreed = self._agreed, None
        else:
            if state.stop_reason is None and not self._has_clocks and not self._every_steps:
                return None
            pause = self.wanted()
            if pause is None and self._every_steps and num_steps % self._every_steps == 0:
                pause = "save"
        if pause is not None:
            self.saved()
        return pause

    def note_time(self) -> None:
        """Within long passes without pauses, e.g. evaluations: a stop is requested if ``stop_after_minutes`` are over."""
        if self._stop_at is not None and self._clock() >= self._stop_at:
            stop_request.request("stop_after_minutes")

    def wanted(self) -> Pause | None:
        """:return: what the time and the signals of this process ask for"""
        if self._has_clocks:
            now = self._clock()
            if self._stop_at is not None and now >= self._stop_at:
                stop_request.request("stop_after_minutes")
            if self._save_at is not None and now >= self._save_at and state.stop_reason is None:
                return "save"
        return None if state.stop_reason is None else "stop"

    def saved(self) -> None:
        """All is saved, also e.g. by the checkpoint of an epoch: the time until the next save starts anew."""
        if self._save_secs is not None:
            self._save_at = self._clock() + self._save_secs

    # ---- several ranks

    def steps_to_planned(self, num_steps: int) -> int | None:
        """
        :param num_steps: done so far, over all epochs
        :return: after how many more steps ``save_every_steps`` asks for a pause, the same on all ranks; None: never
        """
        return None if not self._every_steps else self._every_steps - num_steps % self._every_steps

    def agree(self, pause: Pause) -> None:
        """
        All ranks pause after the step that is handed out next.

        :param pause: what for
        """
        self._agreed = pause
