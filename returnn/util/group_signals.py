"""
Signals that come to all processes of a job at once: from a terminal (Ctrl-C), from SLURM and others (SIGTERM, SIGUSR1), from
``timeout``. What they mean is decided by the main process: it may want to finish its step and save, and needs its workers for that.

Workers end when their connection is closed, when their parent is gone, or by SIGKILL.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType

__all__ = ["leave_signals_to_parent"]

_NAMES = ("SIGTERM", "SIGUSR1", "SIGUSR2")


def leave_signals_to_parent() -> None:
    """To be called in the main thread of a worker process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    _set_all()


def _set_all() -> None:
    for name in _NAMES:
        if hasattr(signal, name):
            # No SIG_IGN, which programs that the process starts would inherit.
            signal.signal(getattr(signal, name), _do_nothing)


def _do_nothing(signum: int, frame: FrameType | None) -> None:
    pass


def _protect_server() -> None:
    """
    In the server that workers are forked from: without it, the main process takes its workers for dead. Processes that it
    forks start as always.
    """
    _set_all()
    os.register_at_fork(after_in_child=_set_defaults)


def _set_defaults() -> None:
    for name in _NAMES:
        signal.signal(getattr(signal, name), signal.SIG_DFL)


# The server imports this first (see returnn.datasets._loading.server), and gives no other way to run code in it.
if any("multiprocessing.forkserver" in arg for arg in sys.orig_argv[:8]):
    _protect_server()
