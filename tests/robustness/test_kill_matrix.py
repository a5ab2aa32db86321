"""Trainings that are killed at random moments, and the harness for them. More: ``python -m tests.robustness.kill_matrix``."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from tests.robustness.kill_compare import compare_folders, list_folder
from tests.robustness.kill_matrix import KillMatrix, report, summary
from tests.robustness.kill_process import FolderEvents, marked_processes

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="needs /proc and inotify")

LEARNING_RATES = "{\n1: EpochData(learningRate=0.01, error={\n':meta:time': '2020-02-02',\n'ce': 0.5,\n}),\n}\n"


@pytest.mark.slow
def test_20_rounds(tmp_path: Path) -> None:
    rounds = list(KillMatrix(tmp_path, seed=1, max_hits=2).run(20, jobs=2))
    print(summary(rounds))
    assert not any(res.differences for res in rounds), "\n".join(report(res) for res in rounds if res.differences)
    # Not all signals come before a training has ended, but most do.
    assert sum(len(res.hits) for res in rounds) >= 10


def _write_run(folder: Path, *, value: float = 1.0, learning_rates: str = LEARNING_RATES) -> Path:
    (folder / "models").mkdir(parents=True)
    (folder / "learning_rates").write_text(learning_rates)
    (folder / "0-0.log").write_text(str(folder))
    torch.save({"model": {"w": torch.tensor([0.0, value, float("nan")])}}, folder / "models/epoch.001.pt")
    return folder


def test_differences_are_found(tmp_path: Path) -> None:
    expected = _write_run(tmp_path / "expected")
    assert list_folder(expected) == ["learning_rates", "models/epoch.001.pt"]
    same = _write_run(tmp_path / "same", learning_rates=LEARNING_RATES.replace("2020", "2021"))
    assert compare_folders(same, expected) == []
    other = _write_run(tmp_path / "a", value=1 + 2**-20)
    (other / ".out.hdf.1.new").touch()
    assert [text.split(",")[0] for text in compare_folders(other, expected)] == [
        ".out.hdf.1.new is too much",
        "models/epoch.001.pt: /model/w: values differ",
    ]
    other = _write_run(tmp_path / "b", learning_rates=LEARNING_RATES.replace("0.5", "0.50000000001"))
    (other / "models/epoch.001.pt").unlink()
    missing, text = compare_folders(other, expected)
    assert missing == "models/epoch.001.pt is missing" and text.startswith("learning_rates: text: ")


def test_files_are_seen_while_they_are_written(tmp_path: Path) -> None:
    (tmp_path / "models").mkdir()
    with FolderEvents(tmp_path, [".", "models"]) as events:
        assert events.wait(0) == []
        with open(tmp_path / "models/a.tmp", "wb", buffering=0) as file:
            file.write(b"1")
            assert events.wait(1) == [("created", "models/a.tmp"), ("changed", "models/a.tmp")]
        os.replace(tmp_path / "models/a.tmp", tmp_path / "a")
        assert events.wait(1) == [("renamed", "a")]
        (tmp_path / "a").unlink()
        assert events.wait(1) == [("deleted", "a")]


def test_processes_of_a_run_are_found() -> None:
    # Also one that went into a session of its own, and whose parent has ended.
    code = "import os, sys; os.fork() and os._exit(0); os.setsid(); print(os.getpid(), flush=True); sys.stdin.read()"
    process = subprocess.Popen(
        [sys.executable, "-c", code],
        env={**os.environ, "KILL_MATRIX_RUN": "test-1"},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdin is not None and process.stdout is not None
    pid = int(process.stdout.readline())
    process.wait()
    assert list(marked_processes("test-1")) == [pid]
    assert not marked_processes("test-2")
    process.stdin.close()
    process.stdout.close()
