"""
A lock between processes, as a file.
"""

from __future__ import annotations

import contextlib
import os
import time
from types import ModuleType, TracebackType

from returnn.util.fs import maybe_make_dirs

try:
    import fcntl as _fcntl
except ImportError:  # Windows, where nobody can remove a file that another process has open
    fcntl: ModuleType | None = None
else:
    fcntl = _fcntl

__all__ = ["LockFile"]


def _claim(fd: int, *, wait: bool) -> bool:
    """
    Only who claimed a lock file may remove it. A claim ends with the process, or when the file is closed.

    :param fd: the open file
    :param wait: for another process to end its claim
    :return: False: another process has it. True also where the file system knows no claims
    """
    if fcntl is None:
        return True
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError:
        return True
    return True


class LockFile:
    """
    Context manager. The lock is a file created exclusively; a file older than the timeout counts as left over and is
    removed, by exactly one of the processes that see it.
    """

    def __init__(self, directory: str, name: str = "lock_file", lock_timeout: float = 60 * 60) -> None:
        """
        :param directory: created if needed
        :param name: of the file in there
        :param lock_timeout: in seconds
        """
        self.directory = directory
        self.name = name
        self.lock_timeout = lock_timeout
        self.lockfile = os.path.join(directory, name)
        self.fd: int | None = None

    def is_old_lockfile(self) -> bool:
        """:return: whether the lock file exists and is older than the timeout"""
        try:
            mtime = os.path.getmtime(self.lockfile)
        except OSError:
            return False
        return abs(time.time() - mtime) > self.lock_timeout

    def maybe_remove_old_lockfile(self) -> None:
        """Remove the lock file if it is older than the timeout. While another process does that, nothing happens."""
        if not self.is_old_lockfile():
            return
        try:
            fd = os.open(self.lockfile, os.O_RDWR)
        except FileNotFoundError:
            return
        try:
            # Meanwhile another process may have removed it, and made its own.
            if _claim(fd, wait=False) and self._is_file(fd) and self.is_old_lockfile():
                os.remove(self.lockfile)
        finally:
            os.close(fd)

    def _is_file(self, fd: int) -> bool:
        """:return: whether the lock file is this open file"""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.lockfile))
        except FileNotFoundError:
            return False

    def is_locked(self) -> bool:
        """:return: whether somebody (maybe we) holds the lock"""
        return os.path.exists(self.lockfile) and not self.is_old_lockfile()

    def try_lock(self) -> bool:
        """:return: whether we got the lock, without waiting"""
        maybe_make_dirs(self.directory)
        self.maybe_remove_old_lockfile()
        try:
            self.fd = os.open(self.lockfile, os.O_CREAT | os.O_EXCL | os.O_RDWR)
        except FileExistsError:
            return False
        return True

    def lock(self) -> None:
        """Wait until we have the lock, polling each second."""
        while not self.try_lock():
            time.sleep(1)

    def refresh(self) -> None:
        """Keep the lock from becoming old, for long work."""
        with contextlib.suppress(OSError):
            os.utime(self.lockfile, None)

    def unlock(self) -> None:
        """Give the lock back. Without the lock, or after another process has taken it over, nothing happens."""
        if self.fd is None:
            return
        fd, self.fd = self.fd, None
        try:
            _claim(fd, wait=True)
            if self._is_file(fd):
                os.remove(self.lockfile)
        finally:
            os.close(fd)

    def __enter__(self) -> LockFile:
        self.lock()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.unlock()
