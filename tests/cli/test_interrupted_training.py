"""Training that is interrupted and started again, as a user and a job scheduler do it."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.cli.helpers import command, environment, write_config

CONFIG = """
import torch

train = {"class": "Task12AXDataset", "num_seqs": 200}
dev = {"class": "Task12AXDataset", "num_seqs": 10, "fixed_random_seed": 1}
batch_size = 500
max_seqs = 10
num_workers_per_gpu = 1
optimizer = {"class": "sgd"}
learning_rate = 0.01
learning_rate_file = "learning_rates"
model = "models/epoch"
num_epochs = 1000
device = "cpu"
log_verbosity = 4


class Model(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.linear = torch.nn.Linear(9, 2)


get_model = Model


def train_step(*, model, data, run_ctx, **kwargs):
    logits = model.linear(data["data"])
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["classes"].long())
    run_ctx.mark_as_loss(name="ce", loss=loss)
"""


def run_until(folder: Path, line_start: str, signum: signal.Signals) -> tuple[int, str, str]:
    """Run; send the signal when a line starts so. :return: exit code, stdout, stderr"""
    proc = subprocess.Popen(
        command(["my.config"]),
        cwd=folder,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert proc.stdout is not None
    seen = []
    for line in proc.stdout:
        seen.append(line)
        if line.startswith(line_start):
            break
    else:
        raise AssertionError("".join(seen) + proc.communicate()[1])
    with open(f"/proc/{proc.pid}/task/{proc.pid}/children") as f:
        children = [int(pid) for pid in f.read().split()]
    proc.send_signal(signum)
    out, err = proc.communicate(timeout=100)
    # They notice the end of their parent, or were told; both take a moment.
    deadline = time.monotonic() + 30
    while any(is_running(pid) for pid in children) and time.monotonic() < deadline:
        os.sched_yield()
    assert not [pid for pid in children if is_running(pid)], "children still run"
    return proc.returncode, "".join(seen) + out, err


def is_running(pid: int) -> bool:
    """:return: whether the process is there, and not only waiting to be collected by its new parent"""
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rsplit(")", 1)[1].split()[0] != "Z"
    except FileNotFoundError:
        return False


@pytest.mark.slow
@pytest.mark.skipif(not os.path.exists("/proc/self/task"), reason="needs /proc")
def test_interrupt_terminate_and_go_on(tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    code, out, err = run_until(tmp_path, "start epoch 3 ", signal.SIGINT)
    assert code == 85
    assert out.splitlines()[-2:] == [
        "Stopped as requested (Ctrl-C). All is saved, the next start goes on there. Exit code 85.",
        "Quitting",
    ]
    assert err.splitlines() == [
        "Ctrl-C: the training saves after this step and stops. Another Ctrl-C ends it without that."
    ]
    assert [name for name in os.listdir(tmp_path / "models") if name.startswith("epoch.003.step")]
    code, out, err = run_until(tmp_path, "start epoch 5 ", signal.SIGTERM)
    assert code == 85
    assert "from models/epoch.003.step" in next(line for line in out.splitlines() if line.startswith("Start: "))
    assert out.splitlines()[-1] == "Quitting"
    assert [
        line for line in err.splitlines() if not line.startswith("SIGTERM: the training saves after this step")
    ] == []
    assert not list((tmp_path / "models").glob("epoch.003.step*")), "its epoch has a checkpoint of its own"
    for name in os.listdir(tmp_path / "models"):
        assert name.endswith(".pt"), f"left behind: {name}"
    assert {"epoch.004.pt", "epoch.004.opt.pt"} <= set(os.listdir(tmp_path / "models"))
