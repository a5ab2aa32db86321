"""
Notices data processes which do nothing, and says what is known of those that were killed.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from typing import TextIO

from returnn._state import state
from returnn.datasets._loading.status_page import Status, StatusView
from returnn.log import log

__all__ = ["StuckWatch", "CHECK_SECS", "PATIENCE_SECS", "last_words", "oom_kills"]

#: While a process is waited for, it is looked at this often.
CHECK_SECS = 1.0
#: Without progress for so long, a process counts as stuck.
PATIENCE_SECS = 10.0
#: Then the warning comes again after twice the time, up to this.
_MAX_REPEAT_SECS = 600.0
_PROCESS_STATES = {
    "T": "The process is stopped by a signal; `kill -CONT {pid}` lets it go on.",
    "t": "The process is stopped by a debugger.",
    "D": "The process waits for the disk or the network file system.",
    "Z": "The process has ended.",
}


class StuckWatch:
    """
    Watches one process while it is waited for. What has its own time to do, e.g. a slow decoder that goes on from
    sequence to sequence, is not stuck.
    """

    def __init__(self, who: Callable[[], str], *, todo: str, clock: Callable[[], float] = time.monotonic):
        """
        :param who: the process with its dataset, e.g. ``loader worker 0 (pid 5) of dataset 'train'``
        :param todo: what the user can do
        :param clock: seconds
        """
        self.view: StatusView | None = None
        #: process id, once it is started
        self.pid: int | None = None
        #: what to say of the epoch as long as the process itself says nothing
        self.task = ""
        self._who = who
        self._todo = todo
        self._clock = clock
        self._waiting_since: float | None = None
        self._next_secs = PATIENCE_SECS
        self._was_said = False

    @property
    def is_waiting(self) -> bool:
        """:return: whether :meth:`look` was called since the last :meth:`done`"""
        return self._waiting_since is not None

    def look(self, waited_secs: float = CHECK_SECS, file: TextIO | None = None) -> None:
        """
        To be called again and again while the process is waited for. Prints a line when it is stuck; in a data process,
        whose parent watches too, it is noted for the line of the parent.

        :param waited_secs: how long until the first call
        :param file: default is log.v1
        """
        now = self._clock()
        if self._waiting_since is None:
            self._waiting_since = now - waited_secs
            self._next_secs = PATIENCE_SECS
        status = self.status()
        secs = now - max(self._waiting_since, status.changed_at if status is not None else 0.0)
        if state.status_page is not None:
            if secs >= PATIENCE_SECS / 2:
                state.status_page.note(f"{self._who()}: {self._describe(status)}")
            return
        if secs < PATIENCE_SECS:
            self._next_secs = PATIENCE_SECS
        elif secs >= self._next_secs:
            self._next_secs = secs + min(secs, _MAX_REPEAT_SECS)
            self._was_said = True
            print(self.text(secs, status), file=file or log.v1, flush=True)

    def text(self, secs: float, status: Status | None) -> str:
        """:return: the warning after so many seconds without progress"""
        text = f"Warning: {self._who()} makes no progress since {secs:.0f} s: {self._describe(status)}."
        if status is not None and status.note:
            text += f" It waits for {status.note}."
        state_text = _process_state(self.pid)
        if state_text:
            return f"{text} {state_text}"
        pid = f" --pid {self.pid}" if self.pid else ""
        return f"{text} If that should not take so long, see where it is with `py-spy dump{pid}`. {self._todo}"

    def done(self, file: TextIO | None = None) -> None:
        """
        The process sent something.

        :param file: default is log.v1
        """
        # Also if it made progress before it sent something.
        was_said, self._was_said = self._was_said, False
        since, self._waiting_since, self._next_secs = self._waiting_since, None, PATIENCE_SECS
        if state.status_page is not None:
            state.status_page.note("")
        elif was_said and since is not None:
            print(f"{self._who()} goes on, after {self._clock() - since:.0f} s.", file=file or log.v1)

    def status(self) -> Status | None:
        """:return: what the process wrote last; None: nothing (yet)"""
        return self.view.read() if self.view is not None else None

    def _describe(self, status: Status | None) -> str:
        if status is None:
            return f"it is still starting{f', {self.task}' if self.task else ''}"
        if status.epoch is None and self.task:
            return f"{status}, {self.task}"
        return str(status)


def last_words(status: Status | None) -> str:
    """:return: sentence about a process that is gone, for the error; may be empty"""
    text = str(status) if status is not None else ""
    return f" Its last work: {text}." if text else ""


def oom_kills() -> int | None:
    """:return: how many processes of this container the system has killed for want of memory so far; None: not known"""
    try:
        with open("/proc/self/cgroup", encoding="utf8") as file:
            groups = [line.rstrip("\n").split(":", 2)[2] for line in file if line.startswith("0::")]
        for group in [*groups, "/"]:
            path = os.path.join("/sys/fs/cgroup", group.lstrip("/"), "memory.events")
            if os.path.exists(path):
                with open(path, encoding="utf8") as file:
                    counts = dict(line.split() for line in file)
                return int(counts["oom_kill"])
    except (OSError, ValueError, KeyError, IndexError):
        return None
    return None


def _process_state(pid: int | None) -> str:
    """:return: sentence about a process that cannot run; else empty"""
    if pid is None:
        return ""
    try:
        with open(f"/proc/{pid}/stat", encoding="utf8", errors="replace") as file:
            letter = file.read().rpartition(")")[2].split()[0]
    except (OSError, IndexError):
        return ""
    return _PROCESS_STATES.get(letter, "").format(pid=pid)
