"""
Ctrl-C and SIGTERM: a training that can save finishes its step, and saves (:mod:`returnn.util.stop_request`); else, and when
the signal comes again, unwind once, in order, whatever comes after.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
import threading
import time
from types import FrameType, TracebackType
from typing import Any, Literal

from returnn._state import state
from returnn.cli.rank_end import EndGuard, are_several_ranks, failed_before
from returnn.util import stop_request

__all__ = ["Terminated", "SignalHandling", "EXIT_CODE_TERMINATED", "EXIT_CODE_INTERRUPTED"]

EXIT_CODE_TERMINATED = 128 + signal.SIGTERM
#: As after any error: job schedulers of client code expect it.
EXIT_CODE_INTERRUPTED = 1
#: A second Ctrl-C that follows so fast belongs to the first. Within accept_stops(), that holds for SIGTERM too: programs
#: such as timeout and torchrun send it to the process and to its group.
_SAME_INTERRUPT_SECS = 2.0
_NAMES = {signal.SIGINT: "Ctrl-C", signal.SIGTERM: "SIGTERM"}
#: After SIGTERM, and at the end after Ctrl-C, the time until the process ends in any case.
_UNWIND_LIMIT_SECS = 20


class Terminated(SystemExit):
    """
    Raised in the main thread by SIGTERM, so that everything unwinds as at a normal exit. With several ranks also if another
    rank failed; then the exit code is that of errors.
    """

    def __init__(self) -> None:
        super().__init__(EXIT_CODE_TERMINATED if failed_before() is None else 1)


class _Requests:
    """
    Which signals only ask the training to stop after its step: the first of each kind, if somebody accepts stops. Job systems
    send SIGINT and later SIGTERM (LSF), or SIGUSR1 and later SIGTERM (SLURM), so the kinds are told apart.
    """

    def __init__(self) -> None:
        self._last: dict[int, float] = {}

    def note(self, signum: int) -> Literal["", "new", "same"]:
        """
        :param signum: that came
        :return: "new": it only asks for a stop; "same": it belongs to one before that does; "": do what the signal does
            without accept_stops()
        """
        watch = state.rank_watch
        if not stop_request.will_stop_on_request() or (watch is not None and watch.first is not None):
            return ""  # with several ranks, SIGTERM also tells that another rank failed
        if stop_request.requested() is None:
            self._last.clear()
        now = time.monotonic()
        last = self._last.get(signum)
        self._last[signum] = now
        stop_request.request(_NAMES[signal.Signals(signum)])
        if last is None:
            return "new"
        return "same" if now - last < _SAME_INTERRUPT_SECS else ""


class SignalHandling:
    """
    Context manager around a whole run.

    - Within :func:`returnn.util.stop_request.accept_stops`, the first Ctrl-C and the first SIGTERM only request a stop.
      The following holds outside of it, and for those that come 2 seconds later or more.
    - Ctrl-C raises KeyboardInterrupt. A second one right after it is ignored, since it would interrupt the clean-up;
      while ending (:meth:`ending`) each is ignored, but the third in all ends the process at once.
    - SIGTERM raises :class:`Terminated`; a second one ends the process at once.

    Does nothing outside of the main thread. Handlers that someone else installed are left alone.

    With several ranks, a thread sees the signals too, and ends the process if the main thread does not do so in time.
    """

    def __init__(self) -> None:
        self._saved: dict[int, Any] = {}  # Any: what signal.signal returns
        self._num_interrupts = 0
        self._last_interrupt = float("-inf")
        self._ending = False
        self._terminated = False
        self._stopped = False
        self._requests = _Requests()
        self._requests_in_thread = _Requests()  # of the guard, which sees the signals by itself
        self._said: set[int] = set()
        self._forced_codes: dict[int, int] = {}
        self._guard: EndGuard | None = None

    def __enter__(self) -> SignalHandling:
        if threading.current_thread() is threading.main_thread():
            if signal.getsignal(signal.SIGINT) is signal.default_int_handler:
                self._saved[signal.SIGINT] = signal.signal(signal.SIGINT, self._on_interrupt)
            if signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
                self._saved[signal.SIGTERM] = signal.signal(signal.SIGTERM, self._on_terminate)
            if self._saved and are_several_ranks():
                codes = {signal.SIGINT: EXIT_CODE_INTERRUPTED, signal.SIGTERM: EXIT_CODE_TERMINATED}
                self._forced_codes = {int(s): code for s, code in codes.items() if s in self._saved}
                self._guard = EndGuard(
                    is_ending=lambda: self._ending or self._num_interrupts > 0,
                    end_children=end_children,
                    exit_codes=self._forced_codes,
                    only_requests=lambda signum: self._note(signum, self._requests_in_thread),
                )
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        if self._num_interrupts and self._ending:
            # The process ends now. At the very end the interpreter resets our handler, but not this one;
            # so that a late Ctrl-C does not spoil the exit code.
            signal.signal(signal.SIGINT, signal.SIG_IGN)
            self._limit_time()
            return
        if self._terminated or self._stopped:
            return
        if self._guard is not None:
            if self._ending:
                return  # the process ends, and must not be interrupted before it has said why
            self._guard.stop()
        for signum, handler in self._saved.items():
            signal.signal(signum, handler)

    def ending(self) -> None:
        """From now on the process only cleans up and ends."""
        self._ending = True

    def stopped(self) -> None:
        """All is saved: the process ends now with its exit code, whatever signals come."""
        self._ending = self._stopped = True
        self._forced_codes.update(dict.fromkeys(self._forced_codes, stop_request.EXIT_CODE_STOPPED))

    def require_end(self, exit_code: int) -> None:
        """
        With several ranks: only clean up from now on, and end in any case soon. Else nothing changes.

        :param exit_code: if it is ended by force
        """
        if self._guard is not None:
            self._ending = True
            self._guard.require_end(exit_code, reason="an error ended the run")

    def _only_requests(self, signum: int) -> bool:
        if self._ending or (self._guard is not None and self._guard.has_deadline):
            return False
        return self._note(signum, self._requests)

    def _note(self, signum: int, requests: _Requests) -> bool:
        kind = requests.note(signum)
        if kind == "new" and state.rank == 0 and signum not in self._said:
            self._said.add(signum)
            name = _NAMES[signal.Signals(signum)]
            _say(f"{name}: the training saves after this step and stops. Another {name} ends it without that.")
        return bool(kind)

    def _on_interrupt(self, signum: int, frame: FrameType | None) -> None:
        if self._only_requests(signum):
            return
        now = time.monotonic()
        same = now - self._last_interrupt < _SAME_INTERRUPT_SECS
        self._last_interrupt = now
        self._num_interrupts += 1
        if self._ending and self._num_interrupts >= 3:
            os._exit(EXIT_CODE_INTERRUPTED)
        if self._ending or same:
            return
        raise KeyboardInterrupt

    def _on_terminate(self, signum: int, frame: FrameType | None) -> None:
        if self._only_requests(signum):
            return
        if self._stopped:
            self._limit_time()
            return
        if self._guard is not None:
            if self._ending:
                return  # it ends in time anyway, and torchrun's agent or another rank may have asked for it as well
            self._ending = self._terminated = True
            raise Terminated
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        self._ending = self._terminated = True
        self._limit_time()
        raise Terminated

    def _limit_time(self) -> None:
        if hasattr(signal, "alarm"):  # the default action of its signal ends the process, also if Python code hangs
            signal.alarm(_UNWIND_LIMIT_SECS)


def _say(text: str) -> None:
    """In one piece and at once, since a handler may interrupt anything, also a print()."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        os.write(sys.stderr.fileno(), f"{text}\n".encode())


def end_children(timeout_secs: float = 5.0) -> None:
    """
    End all processes that this one started through multiprocessing, and wait for them.

    :param timeout_secs: after that, those still alive are killed
    """
    multiprocessing = sys.modules.get("multiprocessing")
    if multiprocessing is None:  # then there are none
        return
    children = multiprocessing.active_children()
    for child in children:
        if child.name.startswith("returnn-"):
            child.kill()  # a worker of ours: leaves other signals to us, see returnn.util.group_signals
        else:
            child.terminate()
    deadline = time.monotonic() + timeout_secs
    for child in children:
        child.join(max(0.0, deadline - time.monotonic()))
        if child.is_alive():
            child.kill()
            child.join(1.0)
