"""One process of the kill matrix: started, watched, hit by a signal at a certain moment; and what is left of it."""

from __future__ import annotations

import ctypes
import os
import random
import re
import select
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

from tests.helpers import ROOT, program_env

__all__ = ["End", "FolderEvents", "Hit", "Moment", "marked_processes", "run_with_hit", "wait_for_orphans"]

#: In the environment of a run and of all that it starts: where it belongs to.
_MARK = "KILL_MATRIX_RUN"
#: No run takes so long.
_LIMIT_SECS = 120.0


class Moment(NamedTuple):
    """When a signal comes."""

    #: "start": so long after the start; "line": after a line of the log; "created", "changed", "renamed", "deleted": after
    #: that happened to a file.
    kind: str
    #: Which line (start of it), or which file (path in the folder of the run), as a regular expression.
    what: str = ""
    #: The how manieth time it happens.
    number: int = 1
    #: Seconds after it.
    delay: float = 0.0
    #: For counts.
    label: str = "at any time"

    def __str__(self) -> str:
        what = f" {self.what!r} no. {self.number}" if self.what else ""
        return f"{1e3 * self.delay:.1f} ms after {self.kind}{what}"


class Hit(NamedTuple):
    """A signal and its moment."""

    signum: signal.Signals | int
    moment: Moment
    #: To all processes of the run, as from a terminal or a job system; else only to the main process.
    to_all: bool = False

    def __str__(self) -> str:
        return f"{signal.Signals(self.signum).name}{' to all processes' if self.to_all else ''} {self.moment}"


class End(NamedTuple):
    """How a run ended."""

    #: As of subprocess: -N for a signal that ended it.
    exit_code: int
    #: Whether the moment came before the end.
    was_hit: bool
    log: str
    err: str
    #: Of its processes, for :func:`wait_for_orphans`.
    mark: str
    secs: float
    #: Until the signal was sent.
    secs_to_hit: float


class FolderEvents:
    """
    What happens to the files in some folders, known within a fraction of a millisecond: the service of the Linux kernel
    (man 7 inotify) that tells changes of folders. A context manager.
    """

    _KINDS = {
        0x2: "changed",
        0x100: "created",
        0x80: "renamed",
        0x200: "deleted",
    }  # IN_MODIFY, _CREATE, _MOVED_TO, _DELETE

    def __init__(self, root: Path, folders: Sequence[str]):
        """
        :param root: paths are relative to it
        :param folders: below root; they exist
        :raises OSError: no such service, or a folder is missing
        """
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            raise OSError(ctypes.get_errno(), "inotify_init1")
        self._folders: dict[int, str] = {}
        for folder in folders:
            watch = self._libc.inotify_add_watch(self.fd, os.fsencode(root / folder), sum(self._KINDS))
            if watch < 0:
                raise OSError(ctypes.get_errno(), "inotify_add_watch", str(root / folder))
            self._folders[watch] = folder

    def __enter__(self) -> FolderEvents:
        return self

    def __exit__(self, *exc_info: object) -> None:
        os.close(self.fd)

    def wait(self, secs: float) -> list[tuple[str, str]]:
        """
        :param secs: at most
        :return: (kind, path below root) of what happened since the last call
        """
        if not select.select([self.fd], [], [], max(secs, 0.0))[0]:
            return []
        return list(self._parse(os.read(self.fd, 1 << 16)))

    def _parse(self, data: bytes) -> Iterator[tuple[str, str]]:
        pos = 0
        while pos < len(data):
            watch, mask, _, length = struct.unpack_from("iIII", data, pos)
            name = os.fsdecode(data[pos + 16 : pos + 16 + length].rstrip(b"\0"))
            pos += 16 + length
            for bit, kind in self._KINDS.items():
                if mask & bit and watch in self._folders:
                    yield kind, os.path.normpath(os.path.join(self._folders[watch], name))


class _Watcher:
    """Sees whether the moment has come."""

    def __init__(self, moment: Moment, log_file: Path):
        self._moment = moment
        self._pattern = re.compile(moment.what)
        self._left = moment.number
        self._log = log_file.open("rb")
        self._rest = b""

    def close(self) -> None:
        self._log.close()

    def has_come(self, events: Sequence[tuple[str, str]]) -> bool:
        """:param events: the new ones"""
        if self._moment.kind == "start":
            return True
        if self._moment.kind == "line":
            *lines, self._rest = (self._rest + self._log.read()).split(b"\n")
            self._left -= sum(bool(self._pattern.match(line.decode("utf8", "replace"))) for line in lines)
        else:
            self._left -= sum(
                kind == self._moment.kind and bool(self._pattern.fullmatch(path)) for kind, path in events
            )
        return self._left <= 0


def run_with_hit(
    args: Sequence[str], *, folder: Path, hit: Hit | None, name: str, env: Mapping[str, str], folders: Sequence[str]
) -> End:
    """
    Run rnn.py, and send it a signal.

    :param args: of rnn.py
    :param folder: working directory
    :param hit: None: let it run to its end
    :param name: the log files become <name>.log and <name>.err, in the folder
    :param env: added to the environment
    :param folders: below folder, watched for the moment
    :return: what came of it
    :raises TimeoutError: it does not end; it is killed
    """
    mark = f"{os.getpid()}-{random.SystemRandom().getrandbits(64):x}"
    log_file, err_file = folder / f"{name}.log", folder / f"{name}.err"
    start = time.monotonic()
    with FolderEvents(folder, folders) as events, log_file.open("wb") as log, err_file.open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, str(ROOT / "rnn.py"), *args],
            cwd=folder,
            env=program_env({"PYTHONUNBUFFERED": "1", _MARK: mark, **env}),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=err,
            start_new_session=True,
        )
        try:
            was_hit = hit is not None and _hit(process, hit, events, log_file)
            secs_to_hit = time.monotonic() - start
            code = process.wait(max(0.0, _LIMIT_SECS - (time.monotonic() - start)))
        except subprocess.TimeoutExpired:
            _kill_marked(mark)
            process.wait()
            raise TimeoutError(f"{name} in {folder} does not end: {hit}") from None
    secs = time.monotonic() - start
    return End(code, was_hit, _read(log_file), _read(err_file), mark, secs, secs_to_hit)


def _read(path: Path) -> str:
    return path.read_text(errors="replace")


def _hit(process: subprocess.Popen[bytes], hit: Hit, events: FolderEvents, log_file: Path) -> bool:
    """:return: whether the signal was sent before the process had ended"""
    start = time.monotonic()
    watcher = _Watcher(hit.moment, log_file)
    try:
        while not watcher.has_come(events.wait(0.05)):
            if process.poll() is not None:
                return False
            if time.monotonic() > start + _LIMIT_SECS:
                raise subprocess.TimeoutExpired("rnn.py", _LIMIT_SECS)
    finally:
        watcher.close()
    end = time.monotonic() + hit.moment.delay if hit.moment.kind != "start" else start + hit.moment.delay
    while (left := end - time.monotonic()) > 0:
        if process.poll() is not None:
            return False
        select.select([], [], [], min(left, 0.05))
    if process.poll() is not None:
        return False
    if hit.to_all:
        os.killpg(process.pid, hit.signum)
    else:
        process.send_signal(hit.signum)
    return True


def marked_processes(mark: str) -> dict[int, str]:
    """
    :param mark: value of KILL_MATRIX_RUN in their environment
    :return: pid -> command line of all living processes of a run, wherever they went
    """
    res = {}
    entry = f"{_MARK}={mark}".encode()
    for name in os.listdir("/proc"):
        if not name.isdigit():
            continue
        try:
            if entry not in Path(f"/proc/{name}/environ").read_bytes().split(b"\0"):
                continue
            if Path(f"/proc/{name}/stat").read_text().rsplit(")", 1)[1].split()[0] in "ZX":
                continue
            res[int(name)] = Path(f"/proc/{name}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except (OSError, IndexError):  # it has ended meanwhile
            continue
    return res


def wait_for_orphans(mark: str, secs: float = 10.0) -> list[str]:
    """
    :param mark: of a run that has ended
    :param secs: so long may they need to notice it
    :return: those that still live; they are killed
    """
    deadline = time.monotonic() + secs
    while (left := marked_processes(mark)) and time.monotonic() < deadline:
        select.select([], [], [], 0.02)
    _kill_marked(mark)
    return [f"{pid}: {command[:100]}" for pid, command in left.items()]


def _kill_marked(mark: str) -> None:
    for pid in marked_processes(mark):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue
