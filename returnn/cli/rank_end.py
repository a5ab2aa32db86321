"""
The end of a rank: whatever its main thread does, the process ends soon after an error or a signal, and the first error of
all ranks is what the user sees last.

A main thread that waits in a collective operation (C++) runs no signal handlers of Python. So a thread of ours gets the
numbers of signals through :func:`signal.set_wakeup_fd`, which C code writes at once, and ends the process when the main
thread did not do so in time.
"""

from __future__ import annotations

import atexit
import contextlib
import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable

from returnn._state import state
from returnn.errors import ReturnnError
from returnn.log import log
from returnn.util.launcher import find_launch
from returnn.util.rank_failure import RankFailure, rank_prefix, write_error_file

__all__ = [
    "END_SECS",
    "EndGuard",
    "are_several_ranks",
    "failed_before",
    "note_failure",
    "part_from_ranks",
    "say_cause",
    "leave",
    "leave_in_order",
]

#: From a signal or an error until the process ends in any case.
END_SECS = 8.0
#: From a signal until the main thread has at least begun to end; else it waits in C++ code.
BEGIN_SECS = 3.0
#: If even our thread cannot run, because somebody keeps the lock of the interpreter.
_LAST_RESORT_SECS = END_SECS + 3.0


def are_several_ranks() -> bool:
    """:return: whether this process may be one of several; known before the config is loaded"""
    if state.world_size > 1:
        return True
    try:
        return find_launch(job_systems=True).size > 1
    except ReturnnError:  # reported where the launcher is asked for
        return False


class EndGuard:
    """The thread that ends the process if the main thread does not."""

    def __init__(
        self,
        *,
        is_ending: Callable[[], bool],
        end_children: Callable[[float], None],
        exit_codes: dict[int, int],
        only_requests: Callable[[int], bool] = lambda signum: False,
    ):
        """
        To be called in the main thread.

        :param is_ending: whether the main thread has begun to end
        :param end_children: ends the processes that we started; its argument is the limit in seconds
        :param exit_codes: number of a signal that ends the process -> exit code
        :param only_requests: whether such a signal only asks for a stop after the current step; called for each, in our thread
        """
        self._is_ending = is_ending
        self._end_children = end_children
        self._exit_codes = exit_codes
        self._only_requests = only_requests
        self._lock = threading.Lock()
        self._deadline: float | None = None
        self._exit_code = 1
        self._reason = "ending"
        self._stopped = False
        self._reader, self._writer = socket.socketpair()
        self._writer.setblocking(False)
        self._old_fd = signal.set_wakeup_fd(self._writer.fileno(), warn_on_full_buffer=False)
        threading.Thread(target=self._run, name="end guard", daemon=True).start()

    def require_end(self, exit_code: int, *, reason: str) -> None:
        """
        From now on the time runs. A later call changes nothing.

        :param exit_code: of the process, if it is ended by force
        :param reason: for the user
        """
        with self._lock:
            if self._deadline is not None or self._stopped:
                return
            self._deadline = time.monotonic() + END_SECS
            self._exit_code = exit_code
            self._reason = reason
        # In C, without the lock of the interpreter; its exit code is 1.
        with contextlib.suppress(RuntimeError, AttributeError, OSError, ValueError):  # stderr is no file
            faulthandler.dump_traceback_later(_LAST_RESORT_SECS, exit=True)
        with contextlib.suppress(OSError):
            self._writer.send(b"\0")

    @property
    def has_deadline(self) -> bool:
        """Whether the time runs."""
        return self._deadline is not None

    def stop(self) -> None:
        """The run has ended: leave the process alone."""
        with self._lock:
            self._stopped = True
            armed = self._deadline is not None
        if armed:
            faulthandler.cancel_dump_traceback_later()
        if threading.current_thread() is threading.main_thread():
            signal.set_wakeup_fd(self._old_fd)
        with contextlib.suppress(OSError):
            self._writer.close()

    def _run(self) -> None:
        while True:
            remaining = None
            if self._stopped:
                break
            if self._deadline is not None:
                remaining = self._deadline - time.monotonic()
                if not self._is_ending():
                    remaining -= END_SECS - BEGIN_SECS
                if remaining <= 0:
                    self._force()
            self._reader.settimeout(remaining)
            try:
                numbers = self._reader.recv(64)
            except TimeoutError:
                continue
            except OSError:
                numbers = b""
            if not numbers:
                break
            for number in numbers:
                if number in self._exit_codes and (self._is_ending() or not self._only_requests(number)):
                    code = 1 if failed_before() is not None else self._exit_codes[number]
                    self.require_end(code, reason=f"stopped by {signal.Signals(number).name}")
        self._reader.close()

    def _force(self) -> None:
        frame = sys._current_frames().get(threading.main_thread().ident or 0)
        place = f", which is at {frame.f_code.co_filename}:{frame.f_lineno} {frame.f_code.co_name}" if frame else ""
        first: RankFailure | None = None
        with contextlib.suppress(Exception):
            if state.rank_watch is not None:
                first = state.rank_watch.report(None, self._reason)
        with contextlib.suppress(Exception):
            self._end_children(2.0)
        text = f"{self._reason}; ended by force, since the main thread did not end{place}"
        if first is not None and first.rank != state.rank:
            text += f"; because {first}"
        write_error_file(text, first=first, is_stop=True)
        _say(text)
        leave(self._exit_code)


def failed_before(secs: float = 0.0) -> RankFailure | None:
    """
    :param secs: wait so long for the answer
    :return: the first failure of all ranks, if that is another rank's; None: none is known
    """
    watch = state.rank_watch
    if watch is None:
        return None
    first: RankFailure | None = watch.wait_for_first(secs) if secs else watch.first
    return first if first is not None and first.rank != state.rank else None


def note_failure(exc: BaseException, *, sentence: str, report: str, is_stop: bool = False) -> RankFailure | None:
    """
    Tell the other ranks, and torchrun's agent, that this rank ends by an exception. Never raises.

    :param exc: why
    :param sentence: its last line for the user
    :param report: traceback and sentence
    :param is_stop: it was told to end, by a signal
    :return: the failure of the rank that failed first, if it is another one, or if the others say that this one hangs;
        None: it is the given one, or nobody knows
    """
    first: RankFailure | None = None
    with contextlib.suppress(Exception):  # the error itself is what the user must see
        watch = state.rank_watch
        if watch is not None:
            first = watch.report(exc, sentence, is_stop=is_stop)
            first = None if first.rank == state.rank and first.kind != "hang" else first
        if first is None:
            write_error_file(report, is_stop=is_stop)
        else:
            write_error_file(cause_text(first, own_sentence(exc, sentence)), first=first)
    return first


def own_sentence(exc: BaseException, sentence: str) -> str:
    """:return: the sentence; empty if the exception may be the fault of another rank, or is no error"""
    watch = state.rank_watch
    is_own = not isinstance(exc, (SystemExit, KeyboardInterrupt)) and not (watch and watch.is_peer_error(exc))
    return sentence if is_own else ""


def cause_text(first: RankFailure, sentence: str) -> str:
    """
    :param first: of another rank
    :param sentence: of this rank's own error, which is left out if it says nothing new
    :return: one line
    """
    if first.sentence == sentence:
        return f"the same as rank {first.rank}, which was first: {sentence}"
    if first.rank == state.rank:
        return f"ended by the other ranks: {first.sentence}"
    return f"ended because {first}" + (f" (here: {sentence})" if sentence else "")


def part_from_ranks(*, error: bool = False, early: bool = False) -> None:
    """
    Say good-bye to the other ranks. Without effect in a single process.

    :param error: an error ends the run: rank 0 first waits a moment for the others to end, so that what it prints is last
    :param early: this rank ends on its own, so do not wait for all to come to this place
    """
    if not error and not early and state.distributed is not None:
        from returnn.torch.distributed.context import shutdown_distributed

        shutdown_distributed()
    watch = state.rank_watch
    if watch is not None:
        watch.close(error=error)


def say_cause(first: RankFailure, sentence: str = "") -> None:
    """
    Print the short line of a rank that ends because of another one.

    :param first: of the other one
    :param sentence: of this rank's own error
    """
    _say(cause_text(first, sentence))


def _say(text: str) -> None:
    """One write, so that lines of several ranks do not mix."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        sys.stderr.write(f"{rank_prefix()}{text}\n")
        sys.stderr.flush()


def leave_in_order(exit_code: int) -> None:
    """
    End the process when all is done: what the interpreter does at its end (threads, functions of atexit, buffers), but
    not what the destructors of C++ libraries do then. Now and then one of them aborts the process ("terminate called
    without an active exception") because a thread of a process group still runs.

    :param exit_code: of the process
    """
    for thread in threading.enumerate():
        if thread is not threading.main_thread() and not thread.daemon:
            thread.join()
    atexit._run_exitfuncs()
    leave(exit_code)


def leave(exit_code: int) -> None:
    """
    End the process now. The interpreter's own end would wait for threads of libraries that wait for other ranks.

    :param exit_code: of the process
    """
    with contextlib.suppress(Exception):
        log.flush()
        for handler in logging.getLogger("returnn").handlers:
            handler.flush()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(Exception):
            stream.flush()
    os._exit(exit_code)
