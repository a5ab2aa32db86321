"""
Requests to stop: a signal asks a training to finish its step, save, and end with an exit code of its own.

Who can save enters :func:`accept_stops`. Within it the handlers of signals (:mod:`returnn.cli.signals`) only request; the
engine looks at :func:`requested` after each step, saves, and raises :class:`TrainingStopped`. Outside of it, signals end the
process as always.

Standard library only; the state is in ``returnn._state.state``.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from returnn._state import state

__all__ = [
    "EXIT_CODE_STOPPED",
    "StopRequested",
    "TrainingStopped",
    "accept_stops",
    "forget",
    "raise_if_requested",
    "remember",
    "request",
    "requested",
    "will_stop_on_request",
]

#: Stopped as requested, and what is needed to go on is saved. No shell, signal (128 + n), or sysexits.h (64 to 78) uses it.
EXIT_CODE_STOPPED = 85


class StopRequested(Exception):
    """
    A stop was requested, and this is a safe point: between two steps, with all positions right. The engine catches it, saves,
    and raises :class:`TrainingStopped`.
    """

    def __init__(self, reason: str) -> None:
        """:param reason: e.g. "SIGTERM" """
        super().__init__(f"stop requested by {reason}")
        self.reason = reason


class TrainingStopped(SystemExit):
    """The training has stopped as requested, and all that is needed to go on is saved. Ends the process with 85."""

    def __init__(self, reason: str) -> None:
        """:param reason: e.g. "SIGTERM" """
        super().__init__(EXIT_CODE_STOPPED)
        self.reason = reason

    def __str__(self) -> str:
        return f"training stopped as requested ({self.reason}), saved"


@contextlib.contextmanager
def accept_stops() -> Iterator[None]:
    """
    Within it, signals only request a stop. Can be nested. When the outermost one ends, a request that nobody followed is
    forgotten: the training has ended by itself. After :class:`TrainingStopped` signals change nothing any more: the process
    ends.
    """
    state.num_stop_acceptors += 1
    if state.early_stop_reason is not None:
        state.stop_reason, state.early_stop_reason = state.early_stop_reason, None
    try:
        yield
    except TrainingStopped:
        raise
    except BaseException:
        _leave()
        raise
    _leave()


def _leave() -> None:
    state.num_stop_acceptors -= 1
    if not state.num_stop_acceptors:
        state.stop_reason = None


def forget() -> None:
    """For the start of another run in the same process."""
    state.num_stop_acceptors, state.stop_reason, state.early_stop_reason = 0, None, None


def will_stop_on_request() -> bool:
    """:return: whether this is within :func:`accept_stops`"""
    return state.num_stop_acceptors > 0


def request(reason: str) -> bool:
    """
    Ask for a stop after the current step. To be called from any thread, or a signal handler.

    :param reason: what the user will read, e.g. "SIGTERM", "Ctrl-C", "stop_after_minutes". The first one stays
    :return: False: nobody accepts it, so the caller must do as always
    """
    if not state.num_stop_acceptors:
        return False
    if state.stop_reason is None:
        state.stop_reason = reason
    return True


def remember(reason: str) -> None:
    """
    For a warning that ends nothing, and came while nobody accepted it, e.g. while the model was made: the training stops after
    its first step.

    :param reason: as in :func:`request`
    """
    state.early_stop_reason = reason


def requested() -> str | None:
    """
    :return: the reason, if a stop of this process was requested. With several ranks this is known to this rank only:
        they stop where they agree to (see :mod:`returnn.torch.distributed.uneven`)
    """
    return state.stop_reason


def raise_if_requested() -> None:
    """
    For safe points where the trainer waits, e.g. for a worker. With several ranks nothing happens: they agree on the step
    after which they stop, so each must come to that step.

    :raises StopRequested: a stop was requested
    """
    if state.stop_reason is not None and state.world_size <= 1:
        raise StopRequested(state.stop_reason)
