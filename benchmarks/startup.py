#!/usr/bin/env python3
"""
Start-up: from the command to the end of the first step, with 0 and 1 workers, a dev and an eval set, against a program
that imports torch and does one step, and against two programs, one after the other, that only import torch; and tasks
that need no model against an empty Python process.

usage: python benchmarks/startup.py [--repeat 3]
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time

ROOT = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
sys.path.insert(0, ROOT)

from benchmarks.common import print_row  # noqa: E402

TARGET = 1.5
CONFIG = """#!rnn.py
import os
import torch
train = {"class": "Task12AXDataset", "num_seqs": 100}
dev = {"class": "Task12AXDataset", "num_seqs": 10}
eval_datasets = {"other": {"class": "Task12AXDataset", "num_seqs": 10}}
batch_size = 1000
optimizer = {"class": "sgd"}
device = "cpu"
log_verbosity = 1
def get_model(**_):
    return torch.nn.Linear(9, 2)
def train_step(*, model, data, run_ctx, **_):
    if run_ctx.global_step == 1:
        os._exit(0)
    run_ctx.mark_as_loss(model(data["data"]).sum(), "x")
"""
HAND = """
import torch
model = torch.nn.Linear(9, 2)
opt = torch.optim.SGD(model.parameters(), lr=1.0)
model(torch.ones(10, 50, 9)).sum().backward()
opt.step()
"""


def seconds(command: list[str], cwd: str, repeat: int) -> float:
    """:return: wall time, best of some"""
    best = float("inf")
    for _ in range(repeat):
        start = time.perf_counter()
        subprocess.run(command, cwd=cwd, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        best = min(best, time.perf_counter() - start)
    return best


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeat", type=int, default=3)
    args = parser.parse_args()
    rnn = [sys.executable, os.path.join(ROOT, "rnn.py")]
    with tempfile.TemporaryDirectory() as tmp:
        with open(os.path.join(tmp, "c.config"), "w") as f:
            f.write(CONFIG)
        with open(os.path.join(tmp, "nop.config"), "w") as f:
            f.write('#!rnn.py\ntask = "nop"\n')
        limit = twice = float("inf")
        ours_by_workers = dict.fromkeys(("0", "1"), float("inf"))
        for _ in range(args.repeat):  # in turn
            limit = min(limit, seconds([sys.executable, "-c", HAND], tmp, 1))
            importing = [sys.executable, "-c", "import torch"]
            twice = min(twice, seconds(importing, tmp, 1) + seconds(importing, tmp, 1))
            for workers, ours in ours_by_workers.items():
                command = [*rnn, "c.config", "++num_workers_per_gpu", workers]
                ours_by_workers[workers] = min(ours, seconds(command, tmp, 1))
        for workers, ours in ours_by_workers.items():
            print_row(f"first step, {workers} workers, import torch twice", ours, twice, TARGET)
            print(
                f"first step, {workers} workers: ours {ours:.2f} s, torch alone {limit:.2f} s, ratio {ours / limit:.2f}"
            )
        limit = seconds([sys.executable, "-c", "pass"], tmp, args.repeat)
        for what in (["--help"], ["--version"], ["nop.config"]):
            ours = seconds([*rnn, *what], tmp, args.repeat)
            print(f"rnn.py {what[0]}: ours {ours:.2f} s, empty Python {limit:.2f} s")


if __name__ == "__main__":
    main()
