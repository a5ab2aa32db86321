"""
A lock between processes, as a file.
"""

from __future__ import annotations

import contextlib
import os
import time
from types import TracebackType

from returnn.util.fs import maybe_make_dirs

__all__ = ["LockFile"]


class LockFile:
    """
    Context manager. The lock is a file created exclusively; a file older than the timeout counts as left over and is
    removed.
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
        """Remove the lock file if it is older than the timeout."""
        if self.is_old_lockfile():
            with contextlib.suppress(FileNotFoundError):
                os.remove(self.lockfile)

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
        """Give the lock back. Without the lock nothing happens."""
        if self.fd is None:
            return
        os.close(self.fd)
        self.fd = None
        with contextlib.suppress(FileNotFoundError):
            os.remove(self.lockfile)

    def __enter__(self) -> LockFile:
        self.lock()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.unlock()
