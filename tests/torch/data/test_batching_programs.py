"""Options of the data loader in whole trainings, as a user runs them: functions of the config in worker processes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tests.helpers import run_rnn, write_config

CONFIG = """
import os, sys
import numpy, torch

task, device, num_epochs = "train", "cpu", 2
log_verbosity = 5
_rng = numpy.random.RandomState(1)
_lens = [3, 9, 4, 7, 1, 12, 5, 5, 8, 2, 6, 10]
train = {"class": "StaticDataset", "data": [{"data": _rng.randn(n, 2).astype("float32")} for n in _lens],
         "output_dim": {"data": (2, 2)}}
dev = train
optimizer, model, learning_rate_file = {"class": "sgd"}, "net/epoch", "lr"
learning_rate = 0.01
max_seq_length = 10


def get_model(**_):
    return torch.nn.Linear(2, 1)

"""

MINI = """
def train_step(*, model, data, run_ctx, **_):
    print("BATCH", data["data:size1"].tolist())
    run_ctx.mark_as_loss(model(data["data"]).pow(2).sum(), "sq", inv_norm_factor=data["data:size1"].sum())
"""

MAINLINE = """
extern_data = {"data": {"dim": 2}}

def train_step(*, model, extern_data, **_):
    from returnn import frontend as rf
    data = extern_data["data"]
    print("BATCH", data.dims[1].dyn_size_ext.raw_tensor.tolist())
    rf.get_run_ctx().mark_as_loss(model(data.raw_tensor).squeeze(-1).pow(2), "sq", dims=data.dims[:2])
"""

FUNCTION = """
def torch_batching(dataset, *, train, **kwargs):
    assert any(name.startswith("__fwd_compat") for name in kwargs)
    class Sorted(torch.utils.data.IterableDataset):
        def __iter__(self):
            seqs = sorted(dataset, key=lambda seq: len(seq["data"]))
            size = 4 if train else 11
            yield from (seqs[i : i + size] for i in range(0, len(seqs), size))
    return Sorted()
"""

INIT_FN = """
def _init(worker_id):
    os.write(2, b"INIT %i\\n" % worker_id)  # at once: print writes in pieces, and several workers start together

torch_dataloader_opts = {"num_workers": 2, "worker_init_fn": _init, "timeout": 5}
batch_size = 20
"""


def _batches(text: str) -> list[list[int]]:
    return [[int(n) for n in line.split(",")] for line in re.findall(r"BATCH \\[(.*)\\]".replace("\\\\", "\\"), text)]


@pytest.mark.slow
@pytest.mark.parametrize("dialect", [MINI, MAINLINE])
@pytest.mark.parametrize("workers", [0, 1])
def test_function_of_the_config(tmp_path: Path, dialect: str, workers: int) -> None:
    config = write_config(tmp_path / "config.py", CONFIG + dialect + FUNCTION + f"num_workers_per_gpu = {workers}\n")
    out = run_rnn(str(config), cwd=tmp_path).stdout
    epoch = [[1, 2, 3, 4], [5, 5, 6, 7], [8, 9, 10]]
    assert _batches(out) == (epoch + [sum(epoch, [])]) * 2
    # What the length filter dropped is said for each dataset and epoch.
    assert out.count("dropped: 1 of 12 seqs: 1 data longer than 10") == 4


@pytest.mark.slow
def test_loader_options(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.py", CONFIG + MAINLINE + INIT_FN)
    proc = run_rnn(str(config), cwd=tmp_path)
    text = proc.stdout + proc.stderr
    assert sorted(re.findall(r"INIT (\d)", text)) == ["0", "0", "1", "1"]  # of train and dev
    assert text.count("timeout (a worker that died is noticed within seconds") == 1
    assert sorted(n for batch in _batches(proc.stdout)[:4] for n in batch)
    assert proc.stdout.count("dropped: 1 of 12 seqs: 1 data longer than 10") == 4


@pytest.mark.slow
def test_mistake_in_the_function_names_it(tmp_path: Path) -> None:
    mistake = FUNCTION.replace("len(seq[", "len(seq_of[")
    config = write_config(tmp_path / "config.py", CONFIG + MAINLINE + mistake)
    proc = run_rnn(str(config), cwd=tmp_path, check=False)
    assert proc.returncode != 0
    assert "seq_of" in proc.stdout + proc.stderr and "config.py" in proc.stdout + proc.stderr


@pytest.mark.slow
def test_options_that_torch_batching_replaces_are_named(tmp_path: Path) -> None:
    config = write_config(tmp_path / "config.py", CONFIG + MAINLINE + FUNCTION + "batch_size, num_epochs = 10, 1\n")
    out = run_rnn(str(config), cwd=tmp_path).stdout
    assert re.search(r"nothing reads in this run: .*batch_size", out)
