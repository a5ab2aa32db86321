"""Real processes that are interrupted: Ctrl-C, SIGTERM, kill -9 at any moment; and what the next start makes of it."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

from tests.helpers import ROOT, program_env, run_rnn, write_config

pytestmark = pytest.mark.slow

CONFIG = """
import os
import time
import torch
device = "cpu"
train = {"class": "Task12AXDataset", "num_seqs": 30}
dev = {"class": "Task12AXDataset", "num_seqs": 3, "fixed_random_seed": 1}
batch_size = 400
optimizer = {"class": "adam"}
accum_grad_multiple_step = 3
learning_rate = 0.01
num_epochs = 4
num_workers_per_gpu = int(os.environ.get("TEST_WORKERS", "0"))
model = "models/epoch"
learning_rate_file = "learning_rates"
log_verbosity = 5

def get_model(**_):
    return torch.nn.Sequential(torch.nn.Linear(9, 16), torch.nn.Dropout(0.2), torch.nn.Linear(16, 2))

def train_step(*, model, data, run_ctx, **_):
    if "TEST_SLOW" in os.environ:
        time.sleep(0.2)  # so that the epoch is not over before the signal comes
    logits = model(data["data"])
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["classes"].long(), reduction="none")
    lens = data["data:size1"]
    run_ctx.mark_as_loss(ce, "ce", dims=[len(lens), lens], use_normalized_loss=True)
"""


def _start(cwd: Path, **env: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, str(ROOT / "rnn.py"), "my.config"],
        cwd=cwd,
        env=program_env({"PYTHONUNBUFFERED": "1", **env}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )


def _wait_for(process: subprocess.Popen[str], pattern: str) -> str:
    """Read the output up to a line that fits. :return: what was read"""
    assert process.stdout is not None
    seen = ""
    for line in process.stdout:
        seen += line
        if re.search(pattern, line):
            return seen
    raise AssertionError(f"no line {pattern!r} in:\n{seen}\n{process.stderr.read() if process.stderr else ''}")


def _children(pid: int) -> list[int]:
    res = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                stat = Path(f"/proc/{name}/stat").read_text()
            except OSError:
                continue
            if int(stat.rsplit(")", 1)[1].split()[1]) == pid:
                res += [int(name), *_children(int(name))]
    return res


def _alive(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] != "Z"
    except OSError:
        return False


def _assert_all_end(pids: list[int]) -> None:
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline and any(map(_alive, pids)):
        time.sleep(0.05)
    assert not [pid for pid in pids if _alive(pid)]


def _leftovers(folder: Path) -> list[str]:
    return [str(p) for p in folder.rglob("*") if ".tmp" in p.name or ".new_tmp" in p.name]


@pytest.fixture(scope="module")
def reference(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An uninterrupted training."""
    folder = tmp_path_factory.mktemp("reference")
    write_config(folder / "my.config", CONFIG)
    run_rnn("my.config", cwd=folder)
    return folder


def _assert_same_result(folder: Path, reference: Path) -> None:
    got, expected = (torch.load(d / "models/epoch.004.pt", weights_only=True) for d in (folder, reference))
    assert got["step"] == expected["step"]
    for name, param in expected["model"].items():
        assert torch.equal(got["model"][name], param), name
    assert (folder / "learning_rates").read_text() == (reference / "learning_rates").read_text()


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_stop_in_an_epoch_and_go_on(signum: int, num_workers: int, tmp_path: Path, reference: Path) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    process = _start(tmp_path, TEST_WORKERS=str(num_workers), TEST_SLOW="1")
    _wait_for(process, r"^train epoch 2, step:0")
    children = _children(process.pid)
    assert bool(children) == bool(num_workers)
    process.send_signal(signum)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 85, (out, err)
    assert "Traceback" not in err and len(err.splitlines()) <= 3, err
    _assert_all_end(children)
    names = sorted(os.listdir(tmp_path / "models"))
    assert names[:2] == ["epoch.001.opt.pt", "epoch.001.pt"]
    assert len(names) == 4 and all(re.fullmatch(r"epoch\.002\.step\d+(\.opt)?\.pt", name) for name in names[2:])
    assert not _leftovers(tmp_path)
    if not num_workers:
        stdout = run_rnn("my.config", cwd=tmp_path).stdout
        assert ".step" in next(line for line in stdout.splitlines() if line.startswith("Start: "))
        assert not list((tmp_path / "models").glob("*.step*"))
        _assert_same_result(tmp_path, reference)


def test_kill_9_ends_the_workers_too(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    process = _start(tmp_path, TEST_WORKERS="2")
    _wait_for(process, r"^train epoch 1, step:1")
    children = _children(process.pid)
    assert children
    process.kill()
    process.communicate()
    _assert_all_end(children)


def test_kill_9_while_saving_loses_at_most_one_epoch(tmp_path: Path, reference: Path) -> None:
    write_config(tmp_path / "my.config", CONFIG)
    # Each start goes on where the one before was killed: after the epoch whose files were whole.
    for moment in ("Save model under", "Save optimizer under", "Evaluating dataset", "Trained"):
        process = _start(tmp_path)
        _wait_for(process, "^start epoch ")
        _wait_for(process, f"^{moment}")
        process.kill()
        process.communicate()
    run_rnn("my.config", cwd=tmp_path)
    _assert_same_result(tmp_path, reference)
    assert not _leftovers(tmp_path)


def test_no_write_permission_is_worded(tmp_path: Path) -> None:
    write_config(tmp_path / "my.config", CONFIG.replace('"models/epoch"', '"my.config/epoch"'))
    res = run_rnn("my.config", "++num_epochs", "1", cwd=tmp_path, check=False)
    assert res.returncode == 1
    last = res.stderr.strip().splitlines()[-1]
    assert last.startswith('ConfigError: option "model": cannot write') and "my.config/epoch" in last
    assert "Trained" not in res.stdout, "it is known before the training"
