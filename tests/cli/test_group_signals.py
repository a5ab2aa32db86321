"""Signals that come to all processes of a training at once, as from SLURM, timeout, and a terminal."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from tests.cli.helpers import command, environment, rnn, write_config

CONFIG = """
import os
import time
import torch

train = {"class": "MultiProcDataset", "dataset": {"class": "Task12AXDataset", "num_seqs": 40}, "num_workers": 1, "buffer_size": 2}
dev = {"class": "Task12AXDataset", "num_seqs": 3, "fixed_random_seed": 1}
batch_size = 10_000
max_seqs = 1
num_workers_per_gpu = 1
optimizer = {"class": "sgd"}
learning_rate = 0.01
model = "models/epoch"
num_epochs = 1
device = "cpu"
log_verbosity = 5


def get_model(**_):
    return torch.nn.Linear(9, 2)


def train_step(*, model, data, run_ctx, **_):
    if "TEST_SLOW" in os.environ:
        time.sleep(0.2)  # so that it is not over before the signal comes
    logits = model(data["data"])
    loss = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["classes"].long())
    run_ctx.mark_as_loss(name="ce", loss=loss)
"""


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(os, "killpg"), reason="needs process groups")
@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGUSR1], ids=lambda s: s.name)
def test_a_whole_job(signum: signal.Signals, tmp_path: Path) -> None:
    write_config(tmp_path, CONFIG)
    proc = subprocess.Popen(
        command(["my.config"]),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment({"TEST_SLOW": "1"}),
        start_new_session=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert proc.stdout is not None
    seen = ""
    for line in proc.stdout:
        seen += line
        if line.startswith("train epoch 1, step:3"):
            break
    os.killpg(proc.pid, signum)
    out, err = proc.communicate(timeout=100)
    assert proc.returncode == 85, (seen, out, err)
    assert "Error" not in out + err and "died" not in out + err
    with pytest.raises(ProcessLookupError):
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline:  # the server and its tracker end when they see that we are gone
            os.killpg(proc.pid, 0)
    assert any(".step" in name for name in os.listdir(tmp_path / "models"))
    assert not any(name.endswith(".lock") for name in os.listdir(tmp_path / "models"))
    if signum != signal.SIGTERM:
        return
    result = rnn(["my.config"], tmp_path)
    assert result.code == 0, result.err
    assert sorted(os.listdir(tmp_path / "models")) == ["epoch.001.opt.pt", "epoch.001.pt"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_workers_and_their_server_stay_and_others_end(tmp_path: Path) -> None:
    code = """
        import multiprocessing, os, signal, subprocess, sys, time
        from returnn.datasets._loading.server import start_server
        from returnn.util.group_signals import leave_signals_to_parent

        def worker(conn):
            leave_signals_to_parent()
            conn.send(os.getppid())
            conn.send(conn.recv())

        def other(conn):
            conn.send(1)
            time.sleep(100)

        def start(context, function):
            here, there = context.Pipe()
            process = context.Process(target=function, args=(there,))
            process.start()
            there.close()
            return process, here, here.recv()

        if __name__ == "__main__":
            start_server(with_torch=False)
            context = multiprocessing.get_context("forkserver")
            first, conn, server_pid = start(context, worker)
            for signum in (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2):
                os.kill(server_pid, signum)
                os.kill(first.pid, signum)
            second, other_conn, same_server_pid = start(context, other)
            conn.send("still there")
            print(conn.recv())
            first.join()
            second.terminate()  # a process of user code, which does not know of us
            second.join()
            print(first.exitcode, second.exitcode)
    """
    root = Path(__file__).parents[2]
    (tmp_path / "script.py").write_text(textwrap.dedent(code))
    result = subprocess.run(
        [sys.executable, "script.py"],
        text=True,
        capture_output=True,
        cwd=tmp_path,
        env=environment({"PYTHONPATH": str(root)}),
        timeout=100,
    )
    assert result.stdout == "still there\n0 -15\n", result.stderr
