"""
How ranks learn that another rank failed: each keeps a connection to rank 0, which the kernel closes when a process ends.

A killed process is noticed at once (its connection closes without a word), a failure is sent to all others within
milliseconds, and who was first is decided in one place, on rank 0. Both ends run in threads of their own, so that it works
while the main thread waits in a collective operation. No torch here: only sockets, and JSON lines as messages.

Messages to rank 0: ``hello`` (who), ``progress``, ``failed`` (with a :class:`RankFailure`), ``bye`` (ended as it should).
Messages from rank 0: ``welcome``, ``first`` (the first failure of all), ``closing`` (rank 0 ended as it should).
"""

from __future__ import annotations

import _thread
import contextlib
import dataclasses
import hmac
import json
import os
import secrets
import selectors
import signal
import socket
import sys
import threading
import time
import traceback
from collections.abc import Callable
from typing import Any, Protocol

from returnn._state import state
from returnn.log import log
from returnn.util.env import get_hostname
from returnn.util.rank_failure import FailureKind, RankFailure

__all__ = [
    "KeyValueStore",
    "Progress",
    "RankWatch",
    "WatchHub",
    "note_end_of_pass",
    "note_step",
    "terminate_main_thread",
]

#: With operations that failed together with another rank, how long to wait for that rank's own error.
VERDICT_SECS = 3.0
#: How often each rank tells its progress.
PROGRESS_SECS = 2.0
#: How long rank 0 waits for the others to end before it ends itself.
LINGER_SECS = 5.0
_CONNECT_SECS = 60.0
#: Connections to each other rank: three groups of gloo, and ours.
_FILES_PER_RANK = 4
_MAX_MESSAGE_BYTES = 1 << 16
_STORE_KEY = "returnn/rank_watch"
_LEFT = "it ended without an error, but the other ranks still needed it."

Message = dict[str, Any]  # Any: JSON


class KeyValueStore(Protocol):
    """What is needed of ``torch.distributed.Store``."""

    def set(self, key: str, value: str, /) -> None:
        """Set a value."""

    def get(self, key: str, /) -> bytes:
        """Wait for the key. :return: its value"""


@dataclasses.dataclass
class Progress:
    """
    What a rank is doing.

    :param what: of a pass, e.g. "train"; empty: outside of a pass
    :param epoch: of it
    :param step: number of steps begun in it
    :param count: number of steps begun since the start, over all passes
    :param time: when the last one began, time.monotonic() of the process that has this object
    :param place: where its main thread is
    """

    what: str = ""
    epoch: int = 0
    step: int = -1
    count: int = 0
    time: float = 0.0
    place: str = ""

    def text(self) -> str:
        """:return: e.g. ``train epoch 2, step 17``"""
        return f"{self.what} epoch {self.epoch}, step {self.step}" if self.what else "no step yet"


@dataclasses.dataclass
class _Peer:
    """What rank 0 knows about the process at the other end."""

    sock: socket.socket
    rank: int | None = None  # until it said hello
    host: str = ""
    pid: int = 0
    received: bytes = b""
    progress: Progress = dataclasses.field(default_factory=Progress)
    said_bye: bool = False
    has_failed: bool = False


def _encode(kind: str, **fields: Any) -> bytes:  # Any: JSON
    return json.dumps({"kind": kind, **fields}).encode("ascii") + b"\n"


class WatchHub:
    """The end at rank 0: decides which failure was the first, and tells all."""

    def __init__(self, *, token: str, timeout_secs: float | None = None, on_line: Callable[[str], None] | None = None):
        """
        :param token: secret; a connection without it is closed
        :param timeout_secs: a rank that makes no step for so long in a pass has failed; None: no limit
        :param on_line: gets lines for the log
        """
        self._token = token
        self._timeout_secs = timeout_secs
        self._on_line = on_line or (lambda line: None)
        self._server = _listen()
        self.port: int = self._server.getsockname()[1]
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._server, selectors.EVENT_READ)
        self._wake_reader, self._wake_writer = socket.socketpair()
        self._selector.register(self._wake_reader, selectors.EVENT_READ)
        self._peers: list[_Peer] = []
        self._ended_ranks: set[int] = set()
        self._suspects: list[RankFailure] = []
        self._verdict_at: float | None = None
        self.first: RankFailure | None = None
        self._closing = False
        self._told = threading.Event()
        self._all_gone = threading.Event()
        self._thread = threading.Thread(target=self._run, name="rank watch hub", daemon=True)
        self._thread.start()

    # ---- called from other threads

    def close(self, *, linger_secs: float = 0.0) -> None:
        """
        End. The ranks that are still there are told that this is no failure.

        :param linger_secs: wait so long for them to end first
        """
        self._closing = True
        with contextlib.suppress(OSError):
            self._wake_writer.send(b"x")
        self._told.wait(1.0)
        if linger_secs > 0:
            self._all_gone.wait(linger_secs)

    # ---- the thread

    def _run(self) -> None:
        told_closing_at: float | None = None
        while told_closing_at is None or (self._peers and time.monotonic() - told_closing_at < 2 * LINGER_SECS):
            for key, _ in self._selector.select(timeout=0.25):
                if key.fileobj is self._server:
                    self._accept()
                elif key.fileobj is self._wake_reader:
                    with contextlib.suppress(OSError):
                        self._wake_reader.recv(64)
                else:
                    self._read(key.data)
            self._look_at_clocks()
            if self._closing and told_closing_at is None:
                told_closing_at = time.monotonic()
                for peer in self._peers:
                    self._send(peer, _encode("closing"))
                self._told.set()
            if self._closing and not any(peer.rank for peer in self._peers):  # rank 0 itself may be connected still
                self._all_gone.set()
        for peer in list(self._peers):
            self._drop(peer)
        self._selector.close()
        for sock in (self._server, self._wake_reader, self._wake_writer):
            sock.close()

    def _accept(self) -> None:
        try:
            sock, _ = self._server.accept()
        except OSError:
            return
        sock.setblocking(False)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer = _Peer(sock)
        self._peers.append(peer)
        self._selector.register(sock, selectors.EVENT_READ, peer)

    def _drop(self, peer: _Peer) -> None:
        if peer in self._peers:
            self._peers.remove(peer)
            self._selector.unregister(peer.sock)
            peer.sock.close()

    def _send(self, peer: _Peer, data: bytes) -> None:
        try:
            peer.sock.send(data)  # small: it fits into the buffer of the socket, or the process is long dead
        except OSError:
            pass  # its connection is closed or broken: noticed when reading

    def _read(self, peer: _Peer) -> None:
        try:
            data = peer.sock.recv(_MAX_MESSAGE_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._drop(peer)
            self._on_gone(peer)
            return
        peer.received += data
        *lines, peer.received = peer.received.split(b"\n")
        for line in lines:
            if not self._on_message(peer, line):
                self._drop(peer)
                return
        if len(peer.received) > _MAX_MESSAGE_BYTES:
            self._drop(peer)

    def _on_message(self, peer: _Peer, line: bytes) -> bool:
        """:return: False: not one of ours"""
        try:
            message: Message = json.loads(line)
            kind = message["kind"]
            if peer.rank is None:
                if kind != "hello" or not hmac.compare_digest(str(message["token"]), self._token):
                    return False
                peer.rank, peer.host, peer.pid = int(message["rank"]), str(message["host"]), int(message["pid"])
                self._send(peer, _encode("welcome"))
                if self.first is not None:
                    self._send(peer, _encode("first", failure=self.first.to_dict()))
            elif kind == "progress":
                peer.progress = Progress(**message["progress"])
                peer.progress.time = time.monotonic() - float(message["age"])
            elif kind == "failed":
                peer.has_failed = True
                self._on_failed(RankFailure.from_dict(message["failure"]))
            elif kind == "bye":
                peer.said_bye = True
                self._ended_ranks.add(peer.rank)
        except (ValueError, KeyError, TypeError):
            return False
        return True

    def _on_gone(self, peer: _Peer) -> None:
        if peer.rank is None or peer.said_bye or peer.has_failed or self._closing:
            return
        self._ended_ranks.add(peer.rank)
        sentence = (
            f"its process (pid {peer.pid} on {peer.host}) ended without an error message: it was killed, maybe because "
            f"the memory was not enough (see dmesg, or the job system), or it crashed. Last: {peer.progress.text()}."
        )
        self._set_first(RankFailure(peer.rank, sentence, "lost", time.time(), peer.host, peer.pid))

    def _on_failed(self, failure: RankFailure) -> None:
        if self.first is not None:
            return
        if failure.kind != "peer":
            self._set_first(failure)
            return
        # Maybe this rank failed only because another one did. That one's own message, or the end of its process,
        # may come later.
        self._suspects.append(failure)
        if self._verdict_at is None:
            self._verdict_at = time.monotonic() + VERDICT_SECS

    def _look_at_clocks(self) -> None:
        if self.first is not None or self._closing:
            return
        now = time.monotonic()
        if self._verdict_at is not None and now >= self._verdict_at:
            self._set_first(self._judge())
        elif self._timeout_secs is not None:
            at_work = [peer for peer in self._peers if peer.rank is not None and peer.progress.what]
            if at_work and now - max(peer.progress.time for peer in at_work) > self._timeout_secs:
                self._set_first(self._hanging(at_work, now))

    def _judge(self) -> RankFailure:
        """:return: who is to blame if operations between ranks failed, and no rank said that it failed by itself"""
        suspects = min(self._suspects, key=lambda f: f.time)
        if self._ended_ranks:
            rank = min(self._ended_ranks)
            return RankFailure(rank, _LEFT, "left", time.time())
        waiting = [peer for peer in self._peers if peer.rank is not None]
        silent = {peer.rank for peer in waiting} - {f.rank for f in self._suspects}
        if "time" in suspects.sentence.lower() and silent:  # a timeout: of those that did not run into it
            return self._hanging([p for p in waiting if p.rank in silent], time.monotonic(), cause=suspects)
        return suspects

    def _hanging(self, peers: list[_Peer], now: float, cause: RankFailure | None = None) -> RankFailure:
        """:return: failure of the rank that is behind the others"""
        behind = min(peers, key=lambda p: (p.progress.count, "torch/distributed" in p.progress.place, p.rank))
        assert behind.rank is not None
        secs = now - behind.progress.time if behind.progress.time else 0.0
        sentence = f"it hangs: no step for {secs:.0f} s, last: {behind.progress.text()}"
        if behind.progress.place:
            sentence += f", main thread at {behind.progress.place}"
        sentence += f" (pid {behind.pid} on {behind.host})."
        if cause is not None:
            sentence += f" Rank {cause.rank} waited for it: {cause.sentence}"
        for peer in sorted(peers, key=lambda p: p.rank or 0)[:64]:
            self._on_line(f"rank {peer.rank}: last {peer.progress.text()}; main thread at {peer.progress.place or '?'}")
        return RankFailure(behind.rank, sentence, "hang", time.time(), behind.host, behind.pid)

    def _set_first(self, failure: RankFailure) -> None:
        self.first = failure
        for peer in list(self._peers):
            if peer.rank is not None:
                self._send(peer, _encode("first", failure=failure.to_dict()))


def _listen() -> socket.socket:
    if socket.has_dualstack_ipv6():
        with contextlib.suppress(OSError):  # IPv6 may be switched off
            return socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    return socket.create_server(("", 0), backlog=4096)


def _allow_many_files(num: int) -> None:
    """
    Raise our limit of open files (usually 1024), as far as the system allows. Each group of gloo connects each rank with
    each other one, and rank 0 has the connections of this module.

    :param num: that many more than usual
    """
    if sys.platform == "win32":
        return
    import resource

    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = num + 1024
    if soft != resource.RLIM_INFINITY and soft < wanted:
        with contextlib.suppress(OSError, ValueError):
            resource.setrlimit(
                resource.RLIMIT_NOFILE, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard)
            )


class RankWatch:
    """
    The end at each rank, rank 0 included.

    In ``returnn._state.state.rank_watch`` while it runs; who ends the process (:mod:`returnn.cli.rank_end`) asks it.
    """

    def __init__(
        self,
        *,
        rank: int,
        size: int,
        store: KeyValueStore,
        host: str,
        timeout_secs: float | None = None,
        is_peer_error: Callable[[BaseException], bool] = lambda exc: False,
        on_other_failed: Callable[[], None] | None = None,
        on_line: Callable[[str], None] | None = None,
    ):
        """
        Connect; rank 0 listens first.

        :param rank: of this process
        :param size: number of ranks
        :param store: shared by the ranks, to find rank 0
        :param host: under which the others reach the host of rank 0
        :param timeout_secs: see :class:`WatchHub`
        :param is_peer_error: whether an exception may be the fault of another rank
        :param on_other_failed: called in a thread of ours when another rank failed first, or when this one hangs;
            None: :func:`terminate_main_thread`
        :param on_line: gets lines for the log
        :raises OSError: rank 0 cannot be reached
        """
        self.rank = rank
        self._is_peer_error = is_peer_error
        self._hub: WatchHub | None = None
        _allow_many_files(size * _FILES_PER_RANK)
        if rank == 0:
            token = secrets.token_hex(16)
            self._hub = WatchHub(token=token, timeout_secs=timeout_secs, on_line=on_line)
            store.set(_STORE_KEY, json.dumps({"host": host, "port": self._hub.port, "token": token}))
            address: Message = {"host": "localhost", "port": self._hub.port, "token": token}
        else:
            address = json.loads(store.get(_STORE_KEY))
        self._sock = socket.create_connection((address["host"], address["port"]), timeout=_CONNECT_SECS)
        self._sock.settimeout(None)
        self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        self._send_lock = threading.Lock()
        self._main_thread = threading.main_thread()
        self._progress = Progress()
        self._first: RankFailure | None = None
        self._known = threading.Event()  # the first failure is
        self._closing = threading.Event()
        self._welcome = threading.Event()
        self._rank0_ended = threading.Event()  # as it should, as far as it knows
        self._on_other_failed = on_other_failed
        self._reporting = False
        self._send("hello", token=address["token"], rank=rank, host=get_hostname(), pid=os.getpid())
        threading.Thread(target=self._listen, name="rank watch", daemon=True).start()
        if not self._welcome.wait(_CONNECT_SECS):
            raise OSError(f"no answer on port {address['port']} within {_CONNECT_SECS:.0f} s")
        threading.Thread(target=self._tell_progress, name="rank watch progress", daemon=True).start()

    # ---- for the training

    def progress(self, what: str, epoch: int, step: int) -> None:
        """
        A step begins. Costs nothing to speak of.

        :param what: pass
        :param epoch: of it
        :param step: within it
        """
        self._progress = Progress(what, epoch, step, self._progress.count + 1, time.monotonic())

    def end_pass(self) -> None:
        """Outside of passes, no limit of time holds."""
        self._progress = Progress(count=self._progress.count, time=time.monotonic())

    # ---- for the end of the process

    @property
    def first(self) -> RankFailure | None:
        """The first failure of all ranks, as far as known."""
        return self._first

    def report(self, exc: BaseException | None, sentence: str, *, is_stop: bool = False) -> RankFailure:
        """
        This rank fails. Tell the others.

        :param exc: why; None: it was told to end
        :param sentence: for the user
        :param is_stop: it was told to end, by a signal
        :return: the first failure of all: this one, or that of another rank, which may be the cause of this one
        """
        kind: FailureKind = "peer" if exc is not None and self._is_peer_error(exc) else "error"
        if is_stop or exc is None:
            kind = "stopped"
        mine = dataclasses.replace(RankFailure.here(sentence, kind), rank=self.rank)
        self._reporting = True
        if kind == "peer" and self._rank0_ended.is_set() and self._first is None:
            self._first = RankFailure(0, _LEFT, "left", time.time())
            return self._first
        if self._first is None and not self._closing.is_set():
            self._send("failed", failure=mine.to_dict())
        # A kind "peer" is decided after a while. For another, the answer comes at once.
        self._known.wait(VERDICT_SECS + 2.0 if kind == "peer" else 1.0)
        return self._first or mine

    def is_peer_error(self, exc: BaseException) -> bool:
        """:return: whether the exception may be the fault of another rank"""
        return self._is_peer_error(exc)

    def wait_for_first(self, secs: float) -> RankFailure | None:
        """:return: the first failure, for which we wait a moment; None: there is none known"""
        self._known.wait(secs)
        return self._first

    def close(self, *, error: bool = False) -> None:
        """
        Say good-bye. With an error on rank 0: first wait for the others to end, at most some seconds.

        :param error: an error ends the run
        """
        if self._closing.is_set():
            return
        self._closing.set()
        if not error:
            self._send("bye")
        if self._hub is not None:
            self._hub.close(linger_secs=LINGER_SECS if error else 0.0)
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # ---- threads

    def _send(self, kind: str, **fields: Any) -> None:  # Any: JSON
        with self._send_lock, contextlib.suppress(OSError):  # rank 0 is gone: noticed when reading
            self._sock.sendall(_encode(kind, **fields))

    def _tell_progress(self) -> None:
        last_count = -1
        launcher = os.getppid() if "TORCHELASTIC_RUN_ID" in os.environ else None
        while not self._closing.wait(PROGRESS_SECS):
            if launcher is not None and os.getppid() != launcher:
                launcher = None
                self._end_without_launcher()
            progress = self._progress
            age = time.monotonic() - progress.time
            if progress.count == last_count and progress.what:
                progress = dataclasses.replace(progress, place=self._place())
            last_count = progress.count
            self._send("progress", progress={**dataclasses.asdict(progress), "time": 0.0}, age=age)

    def _end_without_launcher(self) -> None:
        """Nobody would end or restart the ranks any more."""
        sentence = "torchrun, which started it, was killed"
        print(f"This rank ends: {sentence}.", file=log.v1)
        failure = dataclasses.replace(RankFailure.here(sentence, "stopped"), rank=self.rank)
        self._send("failed", failure=failure.to_dict())
        (self._on_other_failed or terminate_main_thread)()

    def _place(self) -> str:
        """:return: innermost place of the main thread, and the last one outside of libraries if that is another"""
        frame = sys._current_frames().get(self._main_thread.ident or 0)
        if frame is None:
            return ""
        stack = traceback.extract_stack(frame)
        inner = stack[-1]
        own = next((f for f in reversed(stack) if "site-packages" not in f.filename), inner)
        text = f"{inner.filename}:{inner.lineno} {inner.name}"
        return text if own is inner else f"{own.filename}:{own.lineno} {own.name} (in {text})"

    def _listen(self) -> None:
        received = b""
        while True:
            try:
                data = self._sock.recv(_MAX_MESSAGE_BYTES)
            except OSError:
                data = b""
            if not data:
                break
            received += data
            *lines, received = received.split(b"\n")
            for line in lines:
                message: Message = json.loads(line)
                if message["kind"] == "welcome":
                    self._welcome.set()
                elif message["kind"] == "closing":
                    self._rank0_ended.set()
                elif message["kind"] == "first":
                    self._on_first(RankFailure.from_dict(message["failure"]))
        if not self._closing.is_set() and not self._rank0_ended.is_set() and self._first is None:
            sentence = (
                "its process ended without an error message: it was killed, maybe because the memory was not enough "
                "(see dmesg, or the job system), or it crashed, or its host cannot be reached."
            )
            self._on_first(RankFailure(0, sentence, "lost", time.time()))

    def _on_first(self, failure: RankFailure) -> None:
        if self._first is not None:
            return
        self._first = failure
        self._known.set()
        if self._reporting:  # this rank ends anyway
            return
        # A hang is not noticed by the rank itself.
        if (failure.rank != self.rank or failure.kind == "hang") and not self._closing.is_set():
            (self._on_other_failed or terminate_main_thread)()


def note_step(what: str, epoch: int, step: int) -> None:
    """See :func:`RankWatch.progress`; without effect in a single process."""
    watch = state.rank_watch
    if watch is not None:
        watch.progress(what, epoch, step)


def note_end_of_pass() -> None:
    """See :func:`RankWatch.end_pass`; without effect in a single process."""
    watch = state.rank_watch
    if watch is not None:
        watch.end_pass()


def terminate_main_thread() -> None:
    """
    Send SIGTERM to our own main thread. Its handler (:mod:`returnn.cli.signals`) unwinds; without handler the process
    ends. If the main thread waits in C++ code, the thread of :mod:`returnn.cli.rank_end` sees the signal.
    """
    ident = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and ident is not None:
        signal.pthread_kill(ident, signal.SIGTERM)
    else:
        _thread.interrupt_main(signal.SIGTERM)
