#!/usr/bin/env python3
"""
Evaluation of three small sets in each epoch with workers: how many processes a training starts in each epoch.

A real training by rnn.py. The config counts what multiprocessing starts (fork, spawn, forkserver), epoch by epoch.

    python benchmarks/evaluation.py [--num_epochs 5] [--num_seqs 200] [--workers 1 2]
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

ROOT = os.path.dirname(os.path.dirname(os.path.realpath(__file__)))

CONFIG = """#!rnn.py
import json
import multiprocessing.process
import time
import torch
from returnn.config import get_global_config

config = get_global_config()
_data = {"class": "Task12AXDataset", "num_seqs": config.int("num_seqs", 200)}
train = {**_data, "num_seqs": 400}
dev = _data
eval_datasets = {"test1": _data, "test2": _data}
batch_size = 1000
max_seqs = 10
optimizer = {"class": "sgd"}
learning_rate = 0.001
device = "cpu"
log_verbosity = 1
model = "model"

_events = []
_start = multiprocessing.process.BaseProcess.start

def _counting_start(self):
    _events.append("start")
    _start(self)

multiprocessing.process.BaseProcess.start = _counting_start

def get_model(**_):
    return torch.nn.Linear(9, 2)

def train_step(*, model, data, run_ctx, **_):
    run_ctx.mark_as_loss(model(data["data"]).square().mean(), "x")

def epoch_start(*, epoch, dataset_name, **_):
    if dataset_name == "train":
        _events.append(epoch)

def epoch_end(**_):
    with open("events.json", "w") as file:
        json.dump(_events, file)
"""


def main() -> None:
    """Print one line per number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_epochs", type=int, default=5)
    parser.add_argument("--num_seqs", type=int, default=200, help="of each of the three sets, ten in a batch")
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    args = parser.parse_args()
    for workers in args.workers:
        with tempfile.TemporaryDirectory() as tmp:
            with open(os.path.join(tmp, "c.config"), "w") as f:
                f.write(CONFIG)
            command = [sys.executable, os.path.join(ROOT, "rnn.py"), "c.config"]
            for key, value in (
                ("num_workers_per_gpu", workers),
                ("num_epochs", args.num_epochs),
                ("num_seqs", args.num_seqs),
            ):
                command += [f"++{key}", str(value)]
            subprocess.run(command, cwd=tmp, check=True, stdout=subprocess.DEVNULL)
            with open(os.path.join(tmp, "events.json")) as f:
                events = json.load(f)
        counts = [0]
        for event in events:
            if event == "start":
                counts[-1] += 1
            else:
                counts.append(0)
        print(
            f"{workers} workers, three sets of {args.num_seqs // 10} batches: process starts before the first epoch "
            f"{counts[0]}, in each epoch {counts[1:]}",
            flush=True,
        )


if __name__ == "__main__":
    main()
