"""What a data process tells its parent while it hangs, and after it was killed."""

from __future__ import annotations

import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from multiprocessing import Pipe
from multiprocessing.connection import Connection
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn._state import process_state_ctx, state
from returnn.config import Config
from returnn.datasets._loading import status_page, stuck
from returnn.datasets._loading.pool import WorkerPool
from returnn.datasets._loading.source import SourceOptions
from returnn.datasets._loading.status_page import Page, Status, StatusPage, StatusView, start_page
from returnn.datasets.basic import Dataset, init_dataset
from returnn.errors import WorkerError
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from tests.datasets.loading_datasets import BulkDataset, PerSeqDataset

pytestmark = pytest.mark.skipif(not status_page.CAN_SHARE, reason="there are no pages on this system")


class HangingDataset(PerSeqDataset):
    """Waits for ever in load_seqs at one position."""

    def load_seqs(self, start: int, end: int) -> None:
        """Hang at position 3."""
        if start == 3:
            self.decode()

    def decode(self) -> None:
        """Hang."""
        signal.pause()

    def get_current_seq_order(self) -> numpy.ndarray:
        """:return: for MultiProcDataset"""
        return self.order


@pytest.fixture
def page_and_view() -> Iterator[tuple[Page, StatusView]]:
    parent, child = Pipe()
    with process_state_ctx(status_page=None):
        start_page(child, "starting")
        assert parent.recv() == ("status", None)
        yield state.status_page, StatusView(parent)


def test_status_as_text(page_and_view: tuple[Page, StatusView]) -> None:
    page, view = page_and_view
    assert str(view.read()) == "starting"
    page.begin("reading", 3)
    assert str(view.read()) == "reading, epoch 3"
    page.at(4)
    assert str(view.read()) == "reading, epoch 3, position 4"
    page.have_read("seq-a")
    assert str(view.read()) == "reading, epoch 3, sequence 'seq-a' (position 4)"
    page.at(6)
    assert str(view.read()) == "reading, epoch 3, position 6, after sequence 'seq-a'"
    page.at(8, "seq-ü")
    assert str(view.read()) == "reading, epoch 3, sequence 'seq-ü' (position 8)"
    page.at(8, "seq-ü", 20)
    assert str(view.read()) == "reading, epoch 3, sequences at positions 8 to 20 (the first is 'seq-ü')"
    page.at(8, None, 20)
    assert str(view.read()) == "reading, epoch 3, sequences at positions 8 to 20"
    page.begin("making the order", 4)
    assert str(view.read()) == "making the order, epoch 4"


@settings(max_examples=50, deadline=None)
@given(
    tags=st.lists(st.text(max_size=2000), min_size=1, max_size=4),
    position=st.integers(0, 2**62),
    epoch=st.none() | st.integers(0, 2**62),
)
def test_any_text_fits(tags: list[str], position: int, epoch: int | None) -> None:
    parent, child = Pipe()
    page = StatusPage()
    page.send(child)
    parent.recv()
    view = StatusView(parent)
    for tag in tags:
        before = time.monotonic()
        page.begin(tag, epoch)
        page.at(position, tag)
        page.note(tag * 3)
        status = view.read()
        assert before <= status.changed_at <= time.monotonic()
        assert (status.epoch, status.position, status.is_tag_of_position) == (epoch, position, True)
        if len(tag) < 40 and tag.isascii():
            assert (status.tag, status.activity, status.note) == (tag, tag, tag * 3)
        if len(tag) >= 600:
            assert status.tag.endswith("...")


class _Lines:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def write(self, text: str) -> int:
        self.lines += [text] if text.strip() else []
        return len(text)

    def flush(self) -> None:
        pass


class _FakeView:
    def __init__(self) -> None:
        self.status = Status(0.0, epoch=2, position=5, tag="t", is_tag_of_position=True, activity="reading")

    def read(self) -> Status:
        return self.status


def _make_watch() -> tuple[stuck.StuckWatch, _FakeView, list[float], Any]:  # Any: stands for a stream
    now = [100.0]
    watch = stuck.StuckWatch(lambda: "worker 0", todo="Do something.", clock=lambda: now[0])
    view = _FakeView()
    watch.view = view  # type: ignore[assignment]
    return watch, view, now, _Lines()


def _wait(watch: stuck.StuckWatch, now: list[float], secs: int, out: Any) -> None:  # Any: stands for a stream
    for _ in range(secs):
        now[0] += 1.0
        watch.look(file=out)


def test_line_after_ten_seconds() -> None:
    watch, _, now, out = _make_watch()
    _wait(watch, now, 9, out)
    assert not out.lines
    _wait(watch, now, 1, out)
    assert len(out.lines) == 1
    assert out.lines[0].startswith(
        "Warning: worker 0 makes no progress since 10 s: reading, epoch 2, sequence 't' (position 5). "
    )
    assert out.lines[0].endswith("Do something.")
    _wait(watch, now, 9, out)
    assert len(out.lines) == 1
    _wait(watch, now, 60, out)  # after 20, 40 seconds
    assert [int(line.split(" since ")[1].split()[0]) for line in out.lines] == [10, 20, 40]
    watch.done(file=out)
    assert out.lines[-1] == "worker 0 goes on, after 79 s."
    assert not watch.is_waiting


def test_goes_on_is_said_although_progress_comes_before_the_data() -> None:
    watch, view, now, out = _make_watch()
    _wait(watch, now, 12, out)
    view.status = Status(now[0], epoch=2, position=6, tag="u", is_tag_of_position=True, activity="reading")
    _wait(watch, now, 3, out)
    watch.done(file=out)
    assert len(out.lines) == 2 and out.lines[1] == "worker 0 goes on, after 15 s."
    _wait(watch, now, 3, out)
    watch.done(file=out)
    assert len(out.lines) == 2


def test_slow_is_not_stuck() -> None:
    watch, view, now, out = _make_watch()
    for position in range(20):
        view.status = Status(now[0], epoch=2, position=position)
        _wait(watch, now, 9, out)
    watch.done(file=out)
    assert not out.lines
    # Nor is one that had nothing to do before.
    now[0] += 1000
    _wait(watch, now, 9, out)
    assert not out.lines


def test_before_the_first_word() -> None:
    watch, _, now, out = _make_watch()
    watch.view = None
    watch.task = "in epoch 1"
    _wait(watch, now, 10, out)
    assert "it is still starting, in epoch 1." in out.lines[0]


def test_in_a_data_process_the_line_is_left_to_the_parent(page_and_view: tuple[Page, StatusView]) -> None:
    _, own_view = page_and_view
    watch, _, now, out = _make_watch()
    _wait(watch, now, 20, out)
    assert not out.lines
    assert own_view.read().note == "worker 0: reading, epoch 2, sequence 't' (position 5)"
    watch.done(file=out)
    assert own_view.read().note == ""


def _pool(dataset: Dataset) -> WorkerPool:
    batching = BatchingOptions.from_config(Config({"batch_size": 4, "max_seqs": 1}))
    options = SourceOptions.create(batching, name="train", role="train")
    return WorkerPool(dataset, options, LoaderOptions(num_workers=1))


def _impatient(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """:return: lines of log.v1; the watch complains soon"""
    out = _Lines()
    monkeypatch.setattr(log, "v1", out)
    monkeypatch.setattr(stuck, "PATIENCE_SECS", 6.0)  # the process itself looks after 4
    return out.lines


def _read_until(pool: WorkerPool, lines: Sequence[str], then: Callable[[int], None]) -> None:
    """Read batches; as soon as there is a line, do that with the process."""
    pid = pool.pids()[0]
    look = stuck.StuckWatch.look

    def look_and_act(watch: stuck.StuckWatch, *args: Any, **kwargs: Any) -> None:
        look(watch, *args, **kwargs)
        if lines:
            then(pid)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(stuck.StuckWatch, "look", look_and_act)
        for _ in pool.start_pass(1):
            pass


@pytest.mark.slow
def test_hanging_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _impatient(monkeypatch)
    pool = _pool(HangingDataset([2] * 6, shuffled=False))
    try:
        with pytest.raises(WorkerError, match="SIGKILL") as info:
            _read_until(pool, lines, lambda pid: os.kill(pid, signal.SIGKILL))
    finally:
        pool.close()
    where = "reading, epoch 1, position 3, after sequence 'seq-2', in decode ("
    assert f"of dataset 'train' makes no progress since 6 s: {where}" in lines[0]
    assert where in str(info.value)


@pytest.mark.slow
def test_hanging_process_of_a_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _impatient(monkeypatch)
    child = {"class": "tests.datasets._loading.test_status_page.HangingDataset", "lens": [2] * 6, "shuffled": False}
    dataset = init_dataset({"class": "MultiProcDataset", "dataset": child, "num_workers": 2, "buffer_size": 2})
    pool = _pool(dataset)
    try:
        with pytest.raises(WorkerError, match="SIGKILL"):
            _read_until(pool, lines, lambda pid: os.kill(pid, signal.SIGKILL))
    finally:
        pool.close()
        dataset.close()  # type: ignore[attr-defined]
    assert "loader worker 0" in lines[0]
    assert "It waits for MultiProcDataset" in lines[0]
    assert "process 2 of 2 (pid " in lines[0]
    assert "epoch 1, position 3, after sequence 'seq-1', in decode (" in lines[0]


@pytest.mark.slow
def test_stopped_worker_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = _impatient(monkeypatch)
    pool = _pool(BulkDataset([2] * 500, shuffled=False))
    try:
        pool.start_pass(1)
        iterator = iter(pool.start_pass(1))
        next(iterator)
        pid = pool.pids()[0]
        os.kill(pid, signal.SIGSTOP)
        look = stuck.StuckWatch.look

        def look_and_continue(watch: stuck.StuckWatch, *args: Any, **kwargs: Any) -> None:
            look(watch, *args, **kwargs)
            if lines:
                os.kill(pid, signal.SIGCONT)

        monkeypatch.setattr(stuck.StuckWatch, "look", look_and_continue)
        num = sum(len(block.batches) for block in itertools.chain(iterator))
    finally:
        pool.close()
    assert num > 400
    assert f"The process is stopped by a signal; `kill -CONT {pid}` lets it go on." in lines[0]
    assert "goes on, after" in lines[1]


def test_pages_are_gone_with_the_process() -> None:
    before = set(os.listdir("/dev/shm"))
    parent, child = Pipe()
    page = StatusPage()
    page.send(child)
    _receive(parent)
    assert set(os.listdir("/dev/shm")) == before


def _receive(conn: Connection) -> StatusView:
    conn.recv()
    return StatusView(conn)


def test_count_of_processes_killed_for_memory() -> None:
    count = stuck.oom_kills()
    assert count is None or count >= 0
