"""One training per model."""

from __future__ import annotations

import dataclasses
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.errors import ModelInUseError
from returnn.util import run_lock
from returnn.util.run_lock import Holder, RunLock, lock_filename

pytestmark = pytest.mark.skipif(run_lock.fcntl is None, reason="needs flock")


class _Lines(list[str]):
    def __call__(self, line: str) -> None:
        self.append(line)


def _lock(folder: Path, lines: _Lines | None = None) -> RunLock:
    return RunLock(
        str(folder / "models" / "epoch"),
        on_line=lines if lines is not None else _Lines(),
        touch_secs=0.02,
        watch_secs=0.5,
    )


def _write(folder: Path, holder: Holder) -> Path:
    """:return: the file, as a killed process leaves it"""
    path = folder / "models" / ".epoch.lock"
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(holder.to_text())
    return path


def test_names() -> None:
    assert lock_filename("models/epoch") == "models/.epoch.lock"
    assert lock_filename("epoch") == ".epoch.lock"


def test_the_second_one_hears_who_has_it(tmp_path: Path) -> None:
    lines = _Lines()
    with _lock(tmp_path, lines) as lock:
        values = json.loads(Path(lock.filename).read_text())
        assert values["pid"] == os.getpid() and abs(values["since"] - time.time()) < 60
        with pytest.raises(ModelInUseError) as info, _lock(tmp_path):
            pass
        assert os.path.exists(lock.filename)
    assert lines == []
    text = str(info.value)
    assert f'Another run trains the same model "{tmp_path}/models/epoch": process {os.getpid()} on host ' in text
    assert f"since {time.strftime('%Y-')}" in text and "Wait for its end, end it, or set the option" in text
    assert os.listdir(tmp_path) == [], "nothing is left, not even the folder that it made"
    with _lock(tmp_path):  # again
        pass


def test_folders_with_files_stay(tmp_path: Path) -> None:
    with _lock(tmp_path):
        (tmp_path / "models" / "epoch.001.pt").touch()
    assert os.listdir(tmp_path / "models") == ["epoch.001.pt"]


def test_after_kill_9(tmp_path: Path) -> None:
    code = """if 1:
        import sys, time
        from returnn.util.run_lock import RunLock
        with RunLock(sys.argv[1], on_line=print):
            print("LOCKED", flush=True)
            time.sleep(100)
    """
    process = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "models" / "epoch")],
        stdout=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[2],
    )
    assert process.stdout is not None and process.stdout.readline() == "LOCKED\n"
    with pytest.raises(ModelInUseError, match=f"process {process.pid} on host"), _lock(tmp_path):
        pass
    process.send_signal(signal.SIGKILL)
    process.communicate()
    lines = _Lines()
    with _lock(tmp_path, lines):
        pass
    assert len(lines) == 1 and f"of process {process.pid} on host" in lines[0] and "is taken over" in lines[0]


def test_another_machine_that_is_silent_is_gone(tmp_path: Path) -> None:
    path = _write(tmp_path, Holder("gpu7", 4711, time.time() - 60, machine="other"))
    lines = _Lines()
    with _lock(tmp_path, lines):
        assert json.loads(path.read_text())["pid"] == os.getpid()
    assert len(lines) == 2 and "process 4711 on host gpu7" in lines[0] and "Watching for 0.5 s" in lines[0]
    assert "is taken over" in lines[1]
    # After long silence it is not watched.
    path = _write(tmp_path, Holder("gpu7", 4711, time.time() - 9999, machine="other"))
    os.utime(path, (time.time() - 9999, time.time() - 9999))
    lines.clear()
    with _lock(tmp_path, lines):
        pass
    assert len(lines) == 1 and "is taken over" in lines[0]


def test_another_machine_that_trains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As with a file system whose locks hold on one machine only."""
    monkeypatch.setattr(run_lock, "_flock", lambda fd: True)
    monkeypatch.setattr(run_lock, "_machine", lambda: "other")
    with _lock(tmp_path) as lock:
        monkeypatch.setattr(run_lock, "_machine", lambda: "mine")
        with pytest.raises(ModelInUseError, match=f"process {os.getpid()}"), _lock(tmp_path):
            pass
        assert os.path.exists(lock.filename)


def test_no_locks_at_all(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_lock, "_flock", lambda fd: None)
    monkeypatch.setattr(run_lock, "_SETTLE_SECS", 0.0)
    with _lock(tmp_path), pytest.raises(ModelInUseError), _lock(tmp_path):
        pass
    done = subprocess.Popen([sys.executable, "-c", ""])
    done.wait()
    here = Holder.here()
    for holder in (dataclasses.replace(here, pid=done.pid), dataclasses.replace(here, process="of another time")):
        path = _write(tmp_path, holder)
        assert holder.is_gone
        with _lock(tmp_path):
            assert json.loads(path.read_text())["token"] != here.token
        assert not path.exists()


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_forked_children_do_not_keep_it(tmp_path: Path) -> None:
    lock = _lock(tmp_path)
    lock.acquire()
    reader, writer = os.pipe()
    is_there, here = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.write(here, b"x")
        os.close(writer)
        os.read(reader, 1)  # until the parent is done
        os._exit(0)
    try:
        os.read(is_there, 1)
        fd, lock._fd = lock._fd, None  # as if it was killed
        assert fd is not None
        os.close(fd)
        with _lock(tmp_path):
            pass
    finally:
        for end in (writer, reader, is_there, here):
            os.close(end)
        os.waitpid(pid, 0)


def test_who_was_taken_over_says_so_and_leaves_the_file(tmp_path: Path) -> None:
    lines = _Lines()
    lock = _lock(tmp_path, lines)
    lock.acquire()
    other = Holder("gpu7", 4711, time.time(), machine="other")
    Path(lock.filename).write_bytes(other.to_text())
    deadline = time.monotonic() + 30
    while not lines and time.monotonic() < deadline:
        os.sched_yield()
    lock.release()
    assert lines and lines[0].startswith("Warning: another run has taken over")
    assert Holder.from_text(Path(lock.filename).read_bytes()) == other


def test_removed_with_its_folder_it_comes_back_with_the_folder(tmp_path: Path) -> None:
    with _lock(tmp_path) as lock:
        path = Path(lock.filename)
        path.unlink()
        path.parent.rmdir()
        path.parent.mkdir()  # by the next checkpoint
        deadline = time.monotonic() + 30
        while not (path.exists() and path.read_bytes()) and time.monotonic() < deadline:
            time.sleep(0.01)
        with pytest.raises(ModelInUseError, match=f"process {os.getpid()} on host"):
            _lock(tmp_path).acquire()
    assert not path.exists()


def test_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "models").touch()
    lines = _Lines()
    with _lock(tmp_path, lines):
        pass
    assert len(lines) == 1 and "cannot be written" in lines[0]


@given(
    st.binary(max_size=200)
    | st.recursive(st.none() | st.integers() | st.text(), st.lists).map(json.dumps).map(str.encode)
)
def test_any_content(text: bytes) -> None:
    assert Holder.from_text(text) is None


@given(
    st.fixed_dictionaries(
        {"host": st.text(), "pid": st.integers() | st.text(), "since": st.floats() | st.integers() | st.text()},
        optional={"machine": st.text(), "pids": st.text(), "process": st.none()},
    )
)
def test_any_values(values: dict[str, object]) -> None:
    holder = Holder.from_text(json.dumps(values).encode())
    if holder is not None:
        assert str(holder) and holder.is_gone in (True, False)
