"""Two runs that would train the same model."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.cli.helpers import command, environment, rnn, write_config

#: An engine of the user, with everything of its own.
CONFIG = """
import os, sys, time
from returnn.engine.base import EngineBase
from returnn.util import stop_request

model = "models/epoch"
log_verbosity = 4
end = os.environ.get("TEST_END", "")

class CustomEngine(EngineBase):
    def init_train(self, train_data=None, dev_data=None, eval_data=None):
        assert end == "dry" or os.path.exists("models/.epoch.lock")
        open("seen", "w").close()

    def train(self):
        print("WAITING", flush=True)
        if end == "wait":
            time.sleep(100)
        if end == "error":
            raise ValueError("wrong")
        if end == "stop":
            with stop_request.accept_stops():
                raise stop_request.TrainingStopped("SIGTERM")
"""


def _start(folder: Path) -> subprocess.Popen[str]:
    proc = subprocess.Popen(
        command(["my.config"]),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({"TEST_END": "wait"}),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert proc.stdout is not None
    for line in proc.stdout:
        if line.startswith("WAITING"):
            return proc
    raise AssertionError(proc.communicate()[1])


def test_the_second_run_says_who_trains(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    proc = _start(tmp_path)
    try:
        (tmp_path / "seen").unlink()
        result = rnn(["my.config"], tmp_path)
        assert result.code == 1
        assert f'ModelInUseError: Another run trains the same model "models/epoch": process {proc.pid} on host ' in (
            result.last_error_line
        )
        assert not (tmp_path / "seen").exists(), "before anything else is done"
        assert rnn(["my.config", "++dry_run", "True"], tmp_path, {"TEST_END": "dry"}).code == 0
        assert os.listdir(tmp_path / "models") == [".epoch.lock"]
    finally:
        proc.kill()
        proc.communicate()
    result = rnn(["my.config"], tmp_path)
    assert result.code == 0, result.err
    assert f"of process {proc.pid} on host" in result.out and "is taken over." in result.out
    # Made by the run that was killed, so nobody knows that it is not the user's.
    assert os.listdir(tmp_path / "models") == []


@pytest.mark.parametrize(("end", "code"), [("", 0), ("error", 1), ("stop", 85)])
def test_released_at_the_end(end: str, code: int, tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    assert rnn(["my.config"], tmp_path, {"TEST_END": end}).code == code
    assert sorted(os.listdir(tmp_path)) == ["my.config", "seen"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 1), (signal.SIGTERM, 143)])
def test_released_at_the_end_by_a_signal(signum: signal.Signals, code: int, tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    proc = _start(tmp_path)
    proc.send_signal(signum)
    proc.communicate(timeout=60)
    assert proc.returncode == code
    assert sorted(os.listdir(tmp_path)) == ["my.config", "seen"]
