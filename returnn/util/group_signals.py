"""
Signals that come to all processes of a job at once: from a terminal (Ctrl-C), from SLURM and others (SIGTERM, SIGUSR1), from
``timeout``. What they mean is decided by the main process: it may want to finish its step and save, and needs its workers for that.

Workers end when their connection is closed, when their parent is gone, or by SIGKILL.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from collections.abc import Iterator
from types import FrameType

__all__ = ["leave_signals_to_parent", "signals_wait"]

_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2")


@contextlib.contextmanager
def signals_wait() -> Iterator[None]:
    """
    For this thread, signals of this kind come when the context ends. A program that is started in it gets none until it calls
    :func:`leave_signals_to_parent`: it could not yet say what they mean.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _all_signals())
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _all_signals() -> list[int]:
    return [getattr(signal, name) for name in ("SIGINT", *_NAMES) if hasattr(signal, name)]


def _let_come() -> None:
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _all_signals())


def leave_signals_to_parent() -> None:
    """To be called in the main thread of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _set_all()
    _let_come()


def _set_all() -> None:
    for name in _NAMES:
        if hasattr(signal, name):
            # No SIG_IGN, which programs that the process starts would inherit.
            signal.signal(getattr(signal, name), _do_nothing)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass


def _protect_server() -> None:
    """
    In the server that workers are forked from: without it, the main process takes its workers for dead. It was started within
    :func:`signals_wait`, and lets them wait forever. Processes that it forks start as always.
    """
    _set_all()
    os.register_at_fork(after_in_child=_set_defaults)


def _set_defaults() -> None:
    for name in _NAMES:
        signal.signal(getattr(signal, name), signal.SIG_DFL)
    _let_come()


# The server imports this first (see returnn.datasets._loading.server), and gives no other way to run code in it.
if any("multiprocessing.forkserver" in arg for arg in sys.orig_argv[:8]):
    _protect_server()
