"""Who failed first, as rank 0 decides it: connections within one process, each as one rank."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator

import pytest

from returnn.torch.distributed import watchdog
from returnn.torch.distributed.watchdog import RankWatch
from returnn.util.rank_failure import RankFailure

SECS = 20.0  # nothing takes so long


class Store:
    """As that of torch.distributed."""

    def __init__(self) -> None:
        self._values: dict[str, str] = {}
        self._known = threading.Condition()

    def set(self, key: str, value: str, /) -> None:
        with self._known:
            self._values[key] = value
            self._known.notify_all()

    def get(self, key: str, /) -> bytes:
        with self._known:
            assert self._known.wait_for(lambda: key in self._values, SECS)
            return self._values[key].encode()


class Ranks:
    """Several watches in this process."""

    def __init__(self, size: int, *, timeout_secs: float | None = None):
        store = Store()
        self.told: queue.Queue[int] = queue.Queue()
        self.lines: list[str] = []
        self.watches = [
            RankWatch(
                rank=rank,
                size=size,
                store=store,
                host="localhost",
                timeout_secs=timeout_secs,
                is_peer_error=lambda exc: isinstance(exc, ConnectionError),
                on_other_failed=lambda rank=rank: self.told.put(rank),  # type: ignore[misc]
                on_line=self.lines.append,
            )
            for rank in range(size)
        ]

    def kill(self, rank: int) -> None:
        """As the kernel does when the process is gone."""
        self.watches[rank]._sock.shutdown(socket.SHUT_RDWR)

    def first(self, rank: int) -> RankFailure | None:
        return self.watches[rank].wait_for_first(SECS)

    def close(self) -> None:
        for watch in reversed(self.watches):
            watch.close()


@pytest.fixture
def three() -> Iterator[Ranks]:
    ranks = Ranks(3)
    yield ranks
    ranks.close()


def test_an_error_is_known_on_all_ranks(three: Ranks) -> None:
    mine = three.watches[1].report(ValueError("x"), "ValueError: x")
    assert (mine.rank, mine.sentence, mine.kind) == (1, "ValueError: x", "error")
    for rank in (0, 2):
        assert three.first(rank) == mine
    assert {three.told.get(timeout=SECS), three.told.get(timeout=SECS)} == {0, 2}
    # A later one changes nothing.
    assert three.watches[2].report(KeyError("y"), "KeyError: 'y'") == mine
    assert str(mine) == "rank 1 failed first: ValueError: x"


@pytest.mark.parametrize("killed", [1, 2])
def test_a_killed_process_is_noticed(killed: int, three: Ranks) -> None:
    three.kill(killed)
    failures = [three.first(rank) for rank in range(3) if rank != killed]
    assert failures[0] == failures[1] and failures[0] is not None
    assert failures[0].rank == killed and failures[0].kind == "lost"
    assert "was killed" in failures[0].sentence


def test_an_operation_with_a_killed_rank_does_not_hide_who_it_was(
    three: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    reports: queue.Queue[RankFailure] = queue.Queue()
    thread = threading.Thread(
        target=lambda: reports.put(three.watches[2].report(ConnectionError("closed by peer"), "ConnectionError"))
    )
    thread.start()
    three.kill(1)
    thread.join(SECS)
    assert reports.get(timeout=SECS).rank == 1


def test_if_nobody_else_failed_the_rank_with_the_failed_operation_is_the_first(
    three: Ranks, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(watchdog, "VERDICT_SECS", 0.1)
    first = three.watches[2].report(ConnectionError("no route"), "ConnectionError: no route")
    assert three.first(0) == three.first(1)
    known = three.first(0)
    assert known is not None and (known.rank, known.kind) == (2, "peer")
    assert first.rank == 2


def test_a_rank_that_ended_early(three: Ranks, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "VERDICT_SECS", 0.1)
    three.watches[1].close()
    three.watches[2].report(ConnectionError("closed"), "ConnectionError: closed")
    first = three.first(0)
    assert first is not None and (first.rank, first.kind) == (1, "left")


def test_rank_0_ended_early(three: Ranks) -> None:
    three.watches[0].close()
    assert three.watches[1]._rank0_ended.wait(SECS)
    first = three.watches[1].report(ConnectionError("closed"), "ConnectionError: closed")
    assert (first.rank, first.kind) == (0, "left")
    assert three.watches[1].first == first


def test_the_normal_end_is_no_failure(three: Ranks) -> None:
    for rank in (2, 1, 0):
        three.watches[rank].close()
    assert three.told.empty() and three.watches[0].first is None


def test_rank_0_is_gone() -> None:
    ranks = Ranks(2)
    hub = ranks.watches[0]._hub
    assert hub is not None
    for peer in list(hub._peers):  # as its process would
        if peer.rank == 1:
            peer.sock.shutdown(socket.SHUT_RDWR)
    first = ranks.first(1)
    assert first is not None and (first.rank, first.kind) == (0, "lost")
    ranks.close()


def test_a_rank_that_hangs_is_named_with_its_last_step(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PROGRESS_SECS", 0.05)
    ranks = Ranks(3, timeout_secs=0.5)
    for step in range(4):
        for rank, watch in enumerate(ranks.watches):
            if rank != 1 or step < 3:
                watch.progress("train", 7, step)
    first = ranks.first(0)
    assert first is not None and (first.rank, first.kind) == (1, "hang")
    assert "last: train epoch 7, step 2" in first.sentence
    assert {ranks.told.get(timeout=SECS) for _ in range(3)} == {0, 1, 2}  # it does not notice by itself
    assert [line.split(":")[0] for line in ranks.lines] == ["rank 0", "rank 1", "rank 2"]
    ranks.close()


def test_outside_of_passes_there_is_no_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watchdog, "PROGRESS_SECS", 0.02)
    ranks = Ranks(2, timeout_secs=0.05)
    for watch in ranks.watches:
        watch.progress("train", 1, 0)
        watch.end_pass()
    assert ranks.watches[0].wait_for_first(0.4) is None
    ranks.close()


@pytest.mark.parametrize(
    "line",
    [b'{"kind": "hello", "token": "wrong", "rank": 1, "host": "x", "pid": 1}\n', b"GET / HTTP/1.0\n", b"x" * 99999],
)
def test_strangers_are_sent_away(line: bytes, three: Ranks) -> None:
    hub = three.watches[0]._hub
    assert hub is not None
    with socket.create_connection(("localhost", hub.port), timeout=SECS) as stranger:
        stranger.sendall(line)
        try:
            assert stranger.recv(10) == b""  # closed
        except ConnectionError:
            pass
    assert three.watches[1].report(ValueError(), "ValueError").rank == 1
