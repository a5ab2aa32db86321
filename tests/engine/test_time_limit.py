"""Stopping in time before a SLURM job ends."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.engine.time_limit import TimeLimit, parse_time_left, slurm_secs_left
from returnn.errors import OptionError
from returnn.log import log
from returnn.options.passes import PassOptions
from returnn.util.stop_request import EXIT_CODE_STOPPED
from tests.helpers import ROOT, program_env, run_rnn, write_config


@pytest.fixture(autouse=True)
def _log() -> None:
    log.initialize(verbosity=[5])


@pytest.mark.parametrize(
    "text, secs",
    [
        ("0:07", 7),
        ("59:59\n", 3599),
        ("1:00:00", 3600),
        ("2-03:04:05", 2 * 86400 + 3 * 3600 + 4 * 60 + 5),
        ("UNLIMITED", None),
        ("NOT_SET", None),
        ("INVALID", None),
        ("", None),
    ],
)
def test_parse_time_left(text: str, secs: float | None) -> None:
    assert parse_time_left(text) == secs


def _fake_squeue(folder: Path, answer: str) -> str:
    """:return: PATH with a squeue that checks its arguments"""
    folder.mkdir(exist_ok=True)
    squeue = folder / "squeue"
    squeue.write_text(f'#!/bin/sh\n[ "$*" = "--noheader --format %L --jobs 17" ] || exit 3\n{answer}\n')
    squeue.chmod(0o755)
    return f"{folder}:/usr/bin:/bin"


def test_slurm_secs_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert slurm_secs_left({}) is None
    soon = slurm_secs_left({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": str(int(time.time()) + 1000)})
    assert soon is not None and 0 < soon <= 1000
    assert slurm_secs_left({"SLURM_JOB_ID": "17", "SLURM_JOB_END_TIME": "1"}) == 0
    job = {"SLURM_JOB_ID": "17"}
    assert slurm_secs_left({**job, "PATH": _fake_squeue(tmp_path, "echo 1:02:03")}) == 3723
    assert slurm_secs_left({**job, "PATH": _fake_squeue(tmp_path, "echo UNLIMITED")}) is None
    assert slurm_secs_left({**job, "PATH": _fake_squeue(tmp_path, "true")}) is None
    with process_state_ctx(shown_warnings=set()):
        assert slurm_secs_left({**job, "PATH": _fake_squeue(tmp_path, "exit 1")}) is None
    assert "squeue --noheader --format %L --jobs 17 failed" in capsys.readouterr().out


@pytest.mark.parametrize("left, stops", [(0.0, True), (1e9, False), (None, False)])
def test_stops_after_an_epoch(left: float | None, stops: bool, capsys: pytest.CaptureFixture[str]) -> None:
    stopped: list[bool] = []
    limit = TimeLimit(safety_factor=1.2, secs_left=lambda: left, stop=lambda: stopped.append(True))
    limit.epoch_starts()
    with process_state_ctx(rank=1):
        assert limit.epoch_ends() is False  # the first rank decides for all
    assert limit.epoch_ends() is stops
    assert stopped == [True] * stops
    assert ("The job has 0 seconds left" in capsys.readouterr().out) is stops


def test_only_if_asked_for() -> None:
    def ask() -> float:
        raise AssertionError("nobody asked for it")

    limit = TimeLimit.from_options(PassOptions.from_config({}))
    limit._secs_left = ask
    assert limit.epoch_ends() is False
    with pytest.raises(OptionError, match="stop_for_resubmission_safety_factor.*above 0"):
        PassOptions.from_config(Config({"stop_for_resubmission_safety_factor": 0}))


CONFIG = """
import torch
task = "train"
device = "cpu"
train = dev = {"class": "DummyDataset", "input_dim": 2, "output_dim": 3, "num_seqs": 4, "seq_len": 3}
optimizer = {"class": "sgd"}
batch_size, num_workers_per_gpu, num_epochs = 100, 0, 2
model = "models/epoch"
stop_for_resubmission_when_low_time_left = True

def get_model(**kwargs):
    return torch.nn.Linear(2, 3)

def train_step(*, model, data, run_ctx, **kwargs):
    run_ctx.mark_as_loss(model(data["data"]).pow(2).mean(), "loss")
"""


@pytest.mark.slow
def test_the_next_job_continues(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    env = {"SLURM_JOB_ID": "17", "PATH": _fake_squeue(tmp_path / "bin", "echo 0:00")}
    # A group of its own, which gets the signal.
    with subprocess.Popen(
        [sys.executable, str(ROOT / "rnn.py"), "my.config"],
        cwd=tmp_path,
        env=program_env(env),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    ) as process:
        out, _ = process.communicate(timeout=300)
    assert process.returncode == EXIT_CODE_STOPPED and "Stopping (" in out and "Traceback" not in out
    assert "The job has 0 seconds left" in out and "the next job continues" in out
    assert sorted(path.name for path in (tmp_path / "models").iterdir()) == ["epoch.001.opt.pt", "epoch.001.pt"]
    res = run_rnn("my.config", cwd=tmp_path, env=env)  # after the last epoch there is nothing to stop for
    assert "resume after epoch 1" in res.stdout and (tmp_path / "models" / "epoch.002.pt").exists()
