"""
Temporary files of processes that were killed (SIGKILL, power failure), which nobody else removes.

Who writes a file under a temporary name beside its target ``<name>`` calls it ``.<name>.<pid>.tmp`` or
``.<name>.<pid>-<anything>.tmp``, and calls :func:`hold` with it. The next one who writes to the target removes what was left.
"""

from __future__ import annotations

import contextlib
import os
import re
from types import ModuleType

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    fcntl: ModuleType | None = None
else:
    fcntl = _fcntl

__all__ = ["hold", "remove_leftovers"]


def hold(fd: int) -> None:
    """
    Show that the temporary file is in use, until it is closed here and in all forked processes.

    :param fd: open for writing. On file systems without ``flock`` nothing happens; leftovers stay there
    """
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)


def remove_leftovers(target: str) -> list[str]:
    """
    Remove the temporary files of a target that no process holds. Errors are ignored: the target can be written nevertheless.

    :param target: path of the file that is to be written
    :return: the removed files
    """
    folder, name = os.path.split(os.path.realpath(target))
    # The task forward writes to .<name>.<pid>.new first, which has temporary files of its own.
    pattern = re.compile(
        rf"\.{{1,2}}{re.escape(name)}(?:\.\d+\.new)?\.(\d+)(?:-\w+)?\.tmp|\.{re.escape(name)}\.(\d+)\.new"
    )
    try:
        names = os.listdir(folder)
    except OSError:
        return []
    removed = []
    for match in filter(None, map(pattern.fullmatch, names)):
        path = os.path.join(folder, match.string)
        if _is_left(path, pid=int(match[1] or match[2])):
            with contextlib.suppress(OSError):
                os.remove(path)
                removed.append(path)
    return removed


def _is_left(path: str, *, pid: int) -> bool:
    if fcntl is None or (pid != os.getpid() and _is_alive(pid)):
        return False
    try:
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOFOLLOW)
    except OSError:
        return False
    try:
        # Also tells of processes on other machines, and of those in other containers, whose pids are not known here.
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(fd)
    return True


def _is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except (OSError, OverflowError):  # it belongs to somebody else
        return True
    return True
