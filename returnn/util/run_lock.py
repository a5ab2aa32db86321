"""
One training per model: a lock file beside the checkpoints says who trains there.

``.<name>.lock`` in the folder of the checkpoints, one JSON object::

    {"host": "gpu3", "pid": 4711, "since": 1732160000.0, ...}

It is locked with ``flock``, which the kernel ends together with the process, so a file that was left behind is no obstacle.
Some network file systems know no ``flock``, or only among the processes of one machine. Then what counts is whether the file of
a process on another machine is still touched: who holds the lock does that each 10 seconds.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import json
import os
import threading
import time
import uuid
import weakref
from collections.abc import Callable
from types import ModuleType, TracebackType

from returnn.errors import ModelInUseError
from returnn.util.env import get_hostname
from returnn.util.time_format import hms

try:
    import fcntl as _fcntl
except ImportError:  # Windows
    fcntl: ModuleType | None = None
else:
    fcntl = _fcntl

__all__ = ["Holder", "RunLock", "lock_filename"]

_MAX_BYTES = 10_000
#: Two processes that find a file without a holder at the same moment write one after the other; only for systems without flock.
_SETTLE_SECS = 0.5


def lock_filename(model: str) -> str:
    """
    :param model: prefix of the checkpoints, e.g. "models/epoch"
    :return: e.g. "models/.epoch.lock"
    """
    folder, name = os.path.split(model)
    return os.path.join(folder, f".{name}.lock")


@dataclasses.dataclass(frozen=True)
class Holder:
    """
    The process that has, or had, the lock.

    :param host: its name
    :param pid: there
    :param since: seconds since 1970
    :param machine: differs between machines, and changes when one is started again; "" if unknown
    :param pids: differs between containers of a machine that have pids of their own
    :param process: differs between processes that have the same pid one after the other; "" if unknown
    :param token: differs between all holders
    """

    host: str
    pid: int
    since: float
    machine: str = ""
    pids: str = ""
    process: str = ""
    token: str = ""

    @classmethod
    def here(cls) -> Holder:
        """:return: this process, from now on"""
        pid = os.getpid()
        return cls(get_hostname(), pid, time.time(), _machine(), _pids(), _process(pid), uuid.uuid4().hex)

    @classmethod
    def from_text(cls, text: bytes) -> Holder | None:
        """
        :param text: content of a lock file
        :return: None: it says nothing, or is none of ours
        """
        try:
            values = json.loads(text)
            return cls(
                host=str(values["host"])[:256],
                pid=int(values["pid"]),
                since=float(values["since"]),
                machine=str(values.get("machine", "")),
                pids=str(values.get("pids", "")),
                process=str(values.get("process", "")),
                token=str(values.get("token", "")),
            )
        except (ValueError, KeyError, TypeError, AttributeError, OverflowError, RecursionError):
            return None

    def to_text(self) -> bytes:
        """:return: for :meth:`from_text`"""
        return json.dumps(dataclasses.asdict(self)).encode("ascii") + b"\n"

    @property
    def is_on_this_machine(self) -> bool:
        """Whether it is, or was, a process under the same kernel."""
        return bool(self.machine) and self.machine == _machine()

    @property
    def is_gone(self) -> bool:
        """Whether it is known to have ended."""
        if not self.is_on_this_machine or self.pids != _pids():
            return False
        try:
            os.kill(self.pid, 0)
        except (ProcessLookupError, OverflowError):
            return True
        except OSError:  # of another user
            pass
        now = _process(self.pid)
        return bool(self.process and now) and now != self.process

    def __str__(self) -> str:
        try:
            since = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.since))
        except (ValueError, OverflowError, OSError):
            since = "an unknown time"
        return f"process {self.pid} on host {self.host}, since {since} ({hms(max(0.0, time.time() - self.since))} ago)"


def _machine() -> str:
    """:return: see Holder"""
    with contextlib.suppress(OSError), open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
        return file.read().strip()
    return ""


def _pids() -> str:
    """:return: see Holder"""
    with contextlib.suppress(OSError):
        return os.readlink("/proc/self/ns/pid")
    return ""


def _process(pid: int) -> str:
    """:return: when it was started, in the kernel's units; "" if unknown. Field 22 of /proc/PID/stat, see proc(5)"""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rsplit(b")", 1)[1].split()[19].decode("ascii")
    except (OSError, IndexError, UnicodeDecodeError):
        return ""


class RunLock:
    """Context manager, see the module. Not for several threads."""

    def __init__(
        self,
        model: str,
        *,
        on_line: Callable[[str], None],
        touch_secs: float = 10.0,
        watch_secs: float = 25.0,
        forget_secs: float = 600.0,
    ):
        """
        :param model: prefix of the checkpoints
        :param on_line: gets lines for the log
        :param touch_secs: how often the file is touched
        :param watch_secs: for so long, a file of another machine is watched; who does not touch it is gone
        :param forget_secs: a file that was touched longer ago need not be watched
        """
        self.model = model
        self.filename = lock_filename(model)
        self._on_line = on_line
        self._touch_secs, self._watch_secs, self._forget_secs = touch_secs, watch_secs, forget_secs
        self._fd: int | None = None
        self._holder: Holder | None = None
        self._made_folders: list[str] = []
        self._released = threading.Event()
        self._mutex = threading.Lock()  # while the thread uses the open file

    def __enter__(self) -> RunLock:
        self.acquire()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.release()

    def acquire(self) -> None:
        """
        Take the lock. If the file cannot be made (e.g. no permission), a line says so, and there is no lock.

        :raises ModelInUseError: another training has it
        """
        try:
            for attempt in range(10):
                try:
                    self._make_folders()
                    self._fd = self._try()
                except FileNotFoundError:  # another run has just removed the folder that it had made
                    if attempt == 9:
                        raise
                if self._fd is not None:
                    break
            else:
                raise self._in_use(None)
        except ModelInUseError:
            self._remove_folders()
            raise
        except OSError as exc:
            self._remove_folders()
            self._on_line(
                f"Note: {self.filename} cannot be written ({exc.strerror or exc}), so nothing prevents that two runs train "
                f"{self.model} at the same time."
            )
            return
        self._released.clear()
        threading.Thread(target=self._touch, args=(self._fd,), name="run lock", daemon=True).start()
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=_closer(weakref.ref(self)))

    def release(self) -> None:
        """Give the lock back, and remove the file. Without lock nothing happens."""
        self._released.set()
        with self._mutex, contextlib.suppress(OSError):
            fd, self._fd = self._fd, None
            if fd is None:
                return
            try:
                # After another process has taken it over, it is not ours any more.
                if self._is_file(fd) and self._read(fd) == self._holder:
                    os.unlink(self.filename)
            finally:
                os.close(fd)
        self._remove_folders()

    def close_in_child(self) -> None:
        """In a forked process: the lock belongs to the parent, and must end with it."""
        fd, self._fd = self._fd, None
        if fd is not None:
            with contextlib.suppress(OSError):
                os.close(fd)

    # ---- taking it

    def _try(self) -> int | None:
        """:return: the open file, with the lock; None: it was just removed, try again"""
        fd = os.open(self.filename, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o644)
        try:
            locked = _flock(fd)
            if not self._is_file(fd):
                return self._close(fd)
            holder = self._read(fd, wait=locked is False)
            if locked is False:
                raise self._in_use(holder)
            if holder is not None:
                self._check_gone(fd, holder, locked=bool(locked))
                if not self._is_file(fd):
                    return self._close(fd)
                self._on_line(f"The lock {self.filename} of {holder}, which does not train any more, is taken over.")
            self._holder = Holder.here()
            os.ftruncate(fd, 0)
            os.lseek(fd, 0, os.SEEK_SET)
            os.write(fd, self._holder.to_text())
            if not locked:
                time.sleep(_SETTLE_SECS)
                if not self._is_file(fd) or self._read(fd) != self._holder:
                    raise self._in_use(self._read(fd))
        except BaseException:
            os.close(fd)
            raise
        return fd

    @staticmethod
    def _close(fd: int) -> None:
        os.close(fd)

    def _check_gone(self, fd: int, holder: Holder, *, locked: bool) -> None:
        """:raises ModelInUseError: who left the file may still train"""
        if holder.is_on_this_machine:
            # The kernel of a machine knows all locks of its processes.
            if locked or holder.is_gone:
                return
            raise self._in_use(holder)
        age = time.time() - os.fstat(fd).st_mtime
        if abs(age) > self._forget_secs:  # clocks of machines differ, but not so much
            return
        self._on_line(f"{self.filename} is of {holder}. Watching for {self._watch_secs:g} s whether that still trains.")
        before = os.stat(self.filename).st_mtime_ns
        deadline = time.monotonic() + self._watch_secs
        while time.monotonic() < deadline:
            time.sleep(min(1.0, self._watch_secs / 10))
            with contextlib.suppress(FileNotFoundError), open(self.filename, "rb") as file:
                # A network file system asks for the attributes anew when a file is opened.
                if os.fstat(file.fileno()).st_mtime_ns != before:
                    raise self._in_use(holder)

    def _in_use(self, holder: Holder | None) -> ModelInUseError:
        who = str(holder) if holder is not None else "another process"
        text = f'Another run trains the same model "{self.model}": {who}.'
        if holder is not None and holder.is_gone:
            text += " That process is gone, but one that it forked still has the lock: end that one."
        return ModelInUseError(
            f'{text} Wait for its end, end it, or set the option "model" to another place. (Lock file: {self.filename})'
        )

    def _read(self, fd: int, *, wait: bool = False) -> Holder | None:
        """:param wait: a moment, for one who has the lock to write his name"""
        for _ in range(20 if wait else 1):
            os.lseek(fd, 0, os.SEEK_SET)
            holder = Holder.from_text(os.read(fd, _MAX_BYTES))
            if holder is not None or not wait:
                return holder
            time.sleep(0.05)
        return None

    def _is_file(self, fd: int) -> bool:
        """:return: whether the file of that name is this open file"""
        try:
            return os.path.samestat(os.fstat(fd), os.stat(self.filename))
        except FileNotFoundError:
            return False

    def _make_folders(self) -> None:
        folder = os.path.dirname(os.path.abspath(self.filename))
        missing = []
        while not os.path.lexists(folder):
            missing.append(folder)
            folder = os.path.dirname(folder)
        for folder in reversed(missing):
            with contextlib.suppress(FileExistsError):
                os.mkdir(folder)
                self._made_folders.append(folder)

    def _remove_folders(self) -> None:
        """A run that ended without a checkpoint leaves nothing."""
        while self._made_folders:
            with contextlib.suppress(OSError):  # not empty
                os.rmdir(self._made_folders.pop())

    # ---- the thread

    def _touch(self, fd: int) -> None:
        while not self._released.wait(self._touch_secs):
            with self._mutex, contextlib.suppress(OSError):
                if self._fd != fd:
                    return
                if not self._is_file(fd):
                    fd = self._put_back(fd)
                if self._is_file(fd) and self._read(fd) != self._holder:
                    self._on_line(
                        f"Warning: another run has taken over {self.filename}, since this one did not touch it for long: two "
                        "runs train the same model now."
                    )
                    return
                os.utime(fd if os.utime in os.supports_fd else self.filename)

    def _put_back(self, fd: int) -> int:
        """
        The file, or its folder, was removed, and maybe the next checkpoint has made the folder again.

        :return: the new open file, with the lock
        :raises OSError: there is no folder, or another run has made the file: then that one has the lock
        """
        if self._holder is None:
            return fd
        new_fd = os.open(self.filename, os.O_RDWR | os.O_CREAT | os.O_EXCL | getattr(os, "O_CLOEXEC", 0), 0o644)
        if _flock(new_fd) is False:  # another run was faster, after we made it
            os.close(new_fd)
            return fd
        os.write(new_fd, self._holder.to_text())
        self._fd = new_fd
        os.close(fd)
        return new_fd


def _closer(ref: weakref.ref[RunLock]) -> Callable[[], None]:
    """:return: see :meth:`RunLock.close_in_child`; does not keep the lock alive"""

    def close() -> None:
        lock = ref()
        if lock is not None:
            lock.close_in_child()

    return close


def _flock(fd: int) -> bool | None:
    """:return: whether we have the lock; None: there are no locks here"""
    if fcntl is None:
        return None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as exc:
        if exc.errno in (errno.EWOULDBLOCK, errno.EACCES):
            return False
        return None
    return True
