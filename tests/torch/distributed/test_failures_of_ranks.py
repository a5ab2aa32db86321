"""Real processes: ranks that raise, are killed, wait for others, are interrupted; and what the next start makes of it."""

from __future__ import annotations

import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from tests.contract import client_code
from tests.helpers import ROOT, program_env, run_rnn, write_config

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="looks into /proc")]

#: From the failure of one rank to the end of all.
LIMIT_SECS = 15.0
CONFIG = """
import os
import signal
import time
import torch
device = "cpu"
train = {"class": "Task12AXDataset", "num_seqs": 24}
dev = {"class": "Task12AXDataset", "num_seqs": 3, "fixed_random_seed": 1}
eval_datasets = {"tiny": {"class": "Task12AXDataset", "num_seqs": 1, "fixed_random_seed": 2}}  # less than ranks
batch_size = 400
optimizer = {"class": "adam"}
learning_rate = 0.01
num_epochs = 3
num_workers_per_gpu = int(os.environ.get("TEST_WORKERS", "0"))
model = "models/epoch"
learning_rate_file = "learning_rates"
log = ["log/my.log"]
log_verbosity = [5, 3]

def get_model(**_):
    return torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2))

def train_step(*, model, data, run_ctx, **_):
    how = os.environ.get("TEST_FAILURE")
    if how and run_ctx.epoch == 2 and run_ctx.global_step >= 4 and not os.path.exists("failed"):
        if os.environ["RANK"] == "1":
            with open("failed.tmp", "w") as file:
                file.write(str(time.time()))
            os.rename("failed.tmp", "failed")
            if how == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            if how == "raise":
                raise ValueError("this is wrong")
            time.sleep(1000)
    lens = data["data:size1"]
    ce = torch.nn.functional.cross_entropy(model(data["data"]).transpose(1, 2), data["classes"].long(), reduction="none")
    ce = ce * (torch.arange(ce.shape[1])[None] < lens[:, None])
    run_ctx.mark_as_loss(ce.sum(), "ce", inv_norm_factor=lens.sum())
"""


class Run:
    """One start of all ranks, with a mark in their environment, by which what they start is found too."""

    def __init__(self, folder: Path, *torchrun_options: str, **env: str):
        self.folder = folder
        self._mark = f"TEST_MARK={uuid.uuid4().hex}".encode()
        name, value = self._mark.decode().split("=")
        self._env = program_env({name: value, **env})
        self._env.pop("RANK", None)
        self._options = torchrun_options
        self.processes: list[subprocess.Popen[str]] = []

    def torchrun(self) -> subprocess.Popen[str]:
        """Start under torchrun, in a process group of its own."""
        program = [
            sys.executable,
            "-m",
            "torch.distributed.run",
            "--standalone",
            "--nproc-per-node",
            "2",
            *self._options,
        ]
        return self._start([*program, str(ROOT / "rnn.py"), "my.config"], {})

    def plain(self) -> list[subprocess.Popen[str]]:
        """Start each rank by itself, as a job system does."""
        with socket.create_server(("127.0.0.1", 0)) as server:
            port = server.getsockname()[1]
        env = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
        program = [sys.executable, str(ROOT / "rnn.py"), "my.config"]
        return [self._start(program, {**env, "RANK": str(r), "LOCAL_RANK": str(r)}) for r in range(2)]

    def _start(self, program: list[str], env: dict[str, str]) -> subprocess.Popen[str]:
        process = subprocess.Popen(
            program,
            cwd=self.folder,
            env={**self._env, **env},
            text=True,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            # A shell starts background jobs with SIGINT ignored, which children inherit.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        self.processes.append(process)
        return process

    def pids(self) -> list[int]:
        """:return: all processes with our mark, and their children, that are alive"""
        found = []
        for folder in Path("/proc").iterdir():
            try:
                if folder.name.isdigit() and self._mark in (folder / "environ").read_bytes().split(b"\0"):
                    if (folder / "stat").read_text().rsplit(")", 1)[1].split()[0] != "Z":
                        found.append(int(folder.name))
            except OSError:
                continue
        return found

    def assert_no_orphans(self) -> None:
        """Helpers of multiprocessing notice the end of their parent a moment later."""
        deadline = time.monotonic() + 10
        while self.pids() and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not self.pids()

    def secs_since_failure(self) -> float:
        return time.time() - float((self.folder / "failed").read_text())

    def wait_for_failure(self) -> None:
        """Until rank 1 has come to its place."""
        deadline = time.monotonic() + 60
        while not (self.folder / "failed").exists():
            assert time.monotonic() < deadline and all(p.poll() is None for p in self.processes)
            time.sleep(0.05)

    def end(self) -> None:
        for pid in self.pids():
            os.kill(pid, signal.SIGKILL)
        for process in self.processes:
            process.communicate()


@pytest.fixture
def runs() -> Iterator[list[Run]]:
    started: list[Run] = []
    yield started
    for run in started:
        run.end()


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training."""
    folder = tmp_path_factory.mktemp("reference")
    write_config(folder / "my.config", CONFIG)
    run = Run(folder)
    try:
        out = run.torchrun().communicate(timeout=120)[0]
        assert run.processes[0].returncode == 0, out
        assert not [line for line in out.splitlines() if line.startswith("[rank")], out
        run.assert_no_orphans()
    finally:
        run.end()
    _check_reports(folder, out)
    return folder


def _check_reports(folder: Path, out: str) -> None:
    """Rank 0 alone reports on the screen; each rank has its log."""
    assert out.count("Finished training at epoch 4.") == 1
    assert out.count("2 ranks, ") == 3 and "slowest: rank" in out
    assert sorted(os.listdir(folder / "log")) == ["my.torch-distrib-0-2.log", "my.torch-distrib-1-2.log"]
    for name in os.listdir(folder / "log"):
        assert "train epoch 3, step:1" in (folder / "log" / name).read_text()
    assert "epoch.003.pt" in os.listdir(folder / "models")


def _assert_same_result(folder: Path, reference: Path) -> None:
    got, expected = (torch.load(d / "models/epoch.003.pt", weights_only=True) for d in (folder, reference))
    for name, param in expected["model"].items():
        assert torch.equal(got["model"][name], param), name
    assert (folder / "learning_rates").read_text() == (reference / "learning_rates").read_text()


def _last_line(text: str) -> str:
    return [line for line in text.splitlines() if line.strip(" =")][-1]


def test_scores_are_those_of_one_process(reference: Path, tmp_path: Path) -> None:
    for name in ("my.config", "learning_rates"):
        shutil.copy(reference / name, tmp_path)
    shutil.copytree(reference / "models", tmp_path / "models")
    out = run_rnn("my.config", "++task", "eval", "++load_epoch", "3", "++dry_run", "True", cwd=tmp_path).stdout
    scores = client_code.read_learning_rates(reference / "learning_rates")[3]["error"]
    for name in ("dev", "tiny"):
        match = re.search(rf"^Epoch 3 evaluation: {name}: ce: ([\d.]+)$", out, re.MULTILINE)
        assert match and float(match.group(1)) == pytest.approx(scores[f"{name}_loss_ce"], abs=6e-6), out


def test_a_rank_raises_and_the_next_start_goes_on(tmp_path: Path, reference: Path, runs: list[Run]) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    run = Run(tmp_path, "--tee", "3", TEST_FAILURE="raise")
    runs.append(run)
    out = run.torchrun().communicate(timeout=120)[0]
    assert run.processes[0].returncode == 1
    assert run.secs_since_failure() < LIMIT_SECS
    run.assert_no_orphans()
    assert "[rank 1] ValueError: this is wrong" in out
    assert "[rank 0] ended because rank 1 failed first: ValueError: this is wrong" in out
    root_cause = out.split("Root Cause")[1]
    assert "rank      : 1 " in root_cause and "exitcode  : 1 " in root_cause
    assert _last_line(out).strip() == "ValueError: this is wrong"
    again = Run(tmp_path)
    runs.append(again)
    out = again.torchrun().communicate(timeout=120)[0]
    assert again.processes[0].returncode == 0, out
    assert "resume after epoch 1" in out
    _assert_same_result(tmp_path, reference)


@pytest.mark.parametrize("how", ["kill", "raise"])
def test_without_torchrun(how: str, tmp_path: Path, runs: list[Run]) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    run = Run(tmp_path, TEST_FAILURE=how, TEST_WORKERS="1")
    runs.append(run)
    first, second = run.plain()
    out, other_out = first.communicate(timeout=120)[0], second.communicate(timeout=120)[0]
    assert run.secs_since_failure() < LIMIT_SECS
    assert (first.returncode, second.returncode) == (1, 1 if how == "raise" else -signal.SIGKILL), out + other_out
    last = _last_line(out)
    assert last.startswith("[rank 0] ") and "rank 1 failed first: " in last
    assert ("ValueError: this is wrong" if how == "raise" else "was killed") in last
    assert how != "raise" or _last_line(other_out) == "[rank 1] ValueError: this is wrong"
    run.assert_no_orphans()


def test_elastic_restart_goes_on_by_itself(tmp_path: Path, reference: Path, runs: list[Run]) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    run = Run(tmp_path, "--max-restarts", "1", TEST_FAILURE="kill")
    runs.append(run)
    out = run.torchrun().communicate(timeout=120)[0]
    assert run.processes[0].returncode == 0, out
    assert "Start: fresh" in out and "resume after epoch 1" in out
    assert "[rank 0] ended because rank 1 failed first: " in out
    _assert_same_result(tmp_path, reference)


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
def test_stop_all_while_rank_0_waits_for_the_other(signum: int, tmp_path: Path, runs: list[Run]) -> None:
    """The first signal only asks for a stop after the step, which never ends here."""
    write_config(tmp_path / "my.config", CONFIG)
    run = Run(tmp_path, TEST_FAILURE="sleep", TEST_WORKERS="1")
    runs.append(run)
    ranks = run.plain()
    run.wait_for_failure()
    for process in ranks:
        os.killpg(process.pid, signum)
    time.sleep(2.5)  # what comes within two seconds belongs to the first
    assert all(process.poll() is None for process in ranks)
    start = time.monotonic()
    for process in ranks:
        os.killpg(process.pid, signum)
    outs = [process.communicate(timeout=60)[0] for process in ranks]
    assert time.monotonic() - start < LIMIT_SECS
    assert all(process.returncode not in (0, 85) for process in ranks), outs
    assert "the training saves after this step and stops" in outs[0] and "saves after" not in outs[1]
    run.assert_no_orphans()
    assert not [p for p in tmp_path.rglob("*") if ".tmp" in p.name or ".new_tmp" in p.name]


def test_ranks_end_if_torchrun_is_killed(tmp_path: Path, runs: list[Run]) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    run = Run(tmp_path, TEST_FAILURE="sleep")
    runs.append(run)
    torchrun = run.torchrun()
    run.wait_for_failure()
    torchrun.kill()
    out = torchrun.communicate(timeout=60)[0]  # until the ranks have closed it
    run.assert_no_orphans()
    assert "torchrun, which started it, was killed" in out
