"""However a training ends, none of its processes is left: loader workers, their own processes, the servers they come from."""

from __future__ import annotations

import os
import subprocess
import time
import uuid
from pathlib import Path

import pytest

from tests.cli.helpers import command, environment, write_config

#: All that the program starts has this variable, and the environment of a process can be read.
_VARIABLE = "RETURNN_TEST_OF_ORPHANS"

CONFIG = """
import os
import signal
import sys

import numpy
import torch

from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2

end, _, who = os.environ["END"].partition(" in ")


def act():
    if end == "error":
        raise ValueError("wrong")
    if end == "sys.exit":
        sys.exit(3)
    if end == "os._exit":
        os._exit(4)
    if end == "abort":
        os.abort()
    if end == "hang":
        signal.pause()
    if end.startswith("SIG"):
        os.kill(os.getpid(), getattr(signal, end))


class Data(CachedDataset2):
    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.num_outputs = {"data": (3, 2)}

    def init_seq_order(self, epoch=None, seq_list=None, seq_order=None):
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._num_seqs = 60
        return True

    def get_current_seq_order(self):
        return numpy.arange(60)

    def get_total_num_seqs(self, *, fast=False):
        return 60

    def _collect_single_seq(self, seq_idx):
        if seq_idx == 20 and who == "process of a worker":
            act()
        return DatasetSeq(seq_idx, {"data": numpy.ones((4, 3), "float32")}, seq_tag=f"seq-{seq_idx}")


def map_seq(data, **kwargs):
    global num_mapped
    num_mapped += 1
    if num_mapped == 20 and who == "worker":
        act()
    return data


num_mapped = 0
train = {
    "class": "PostprocessingDataset",
    "dataset": {"class": "MultiProcDataset", "dataset": {"class": Data}, "num_workers": 2, "buffer_size": 2},
    "map_seq": map_seq,
}
extern_data = {"data": {"dim": 3}}
batch_size = 4
max_seqs = 1
num_workers_per_gpu = 1
optimizer = {"class": "sgd"}
learning_rate = 0.01
model = "models/epoch"
num_epochs = 2 if end == "finished" else 1000
device = "cpu"


class Model(torch.nn.Module):
    def __init__(self, **kwargs):
        super().__init__()
        self.linear = torch.nn.Linear(3, 2)
        self.steps = 0


get_model = Model


def train_step(*, model, extern_data, **kwargs):
    import returnn.frontend as rf

    model.steps += 1
    if model.steps == 5:
        print("step 5", flush=True)
        if who == "main process":
            act()
        if end == "hang":  # by now, the other process does
            os.kill(os.getpid(), signal.SIGTERM)
    loss = model.linear(extern_data["data"].raw_tensor).square().mean()
    rf.get_run_ctx().mark_as_loss(name="loss", loss=loss)
"""

#: Exit codes; None: not 0.
_ENDS = {
    "finished": 0,
    "error in main process": 1,
    "abort in main process": -6,
    "SIGTERM in main process": None,
    "SIGINT in main process": None,
    "SIGKILL in main process": -9,
    "error in process of a worker": 1,
    "SIGKILL in worker": 1,
    "hang in process of a worker": None,
}
#: Variants of these, with the environment variable RETURNN_TEST_ALL_ENDS=1.
_MORE_ENDS = {
    "sys.exit in main process": 3,
    "os._exit in main process": 4,
    "SIGUSR1 in main process": None,
    "SIGHUP in main process": -1,
    "SIGSEGV in main process": -11,
    "error in worker": 1,
    "SIGKILL in process of a worker": 1,
    "hang in worker": None,
}
if os.environ.get("RETURNN_TEST_ALL_ENDS"):
    _ENDS.update(_MORE_ENDS)


def _count(mark: str) -> list[str]:
    """:return: command lines of the processes with that mark which run"""
    found = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and f"{_VARIABLE}={mark}".encode() in (folder / "environ").read_bytes():
                found.append(f"{folder.name}: {(folder / 'cmdline').read_bytes()[:200]!r}")
        except OSError:  # it ended just now
            continue
    return found


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/environ").exists(), reason="reads the environment of other processes")
@pytest.mark.parametrize("end", _ENDS)
def test_no_process_is_left(end: str, tmp_path: Path) -> None:
    mark = uuid.uuid4().hex
    proc = subprocess.Popen(
        command([write_config(tmp_path, CONFIG)]),
        cwd=tmp_path,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        env=environment({_VARIABLE: mark, "END": end}),
    )
    assert proc.stdout is not None
    seen = []
    num_processes = 0
    try:
        for line in proc.stdout:
            seen.append(line)
            if line == "step 5\n":
                num_processes = max(num_processes, len(_count(mark)))
        code = proc.wait(100)
    finally:
        proc.kill()
    text = "".join(seen)
    if end in ("finished", "hang in worker", "hang in process of a worker"):
        # It, the server, its tracker, the worker, the server of that, its tracker, the two processes of that.
        assert num_processes >= 6, text
    assert code == _ENDS[end] if _ENDS[end] is not None else code != 0, text
    deadline = time.monotonic() + 30
    while (left := _count(mark)) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not left, f"{len(left)} of {num_processes} processes are left: {left}\n{text}"
