#!/usr/bin/env python3
"""
Memory over many epochs with workers: the slope of the memory of the training process and of its workers.

A training of a tiny model on one HDF file, with evaluation and checkpoints each epoch, by the engine in this process.
After each epoch the memory of this process and of all its descendants is summed (proportional set size of
anonymous and shared memory: what several share counts once). The slope is that of the line through the epochs of the second half.

    python benchmarks/memory.py [--num_epochs 200] [--num_seqs 400] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile

import numpy

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

from benchmarks.training_tiny import get_model, make_hdf, train_step  # noqa: E402
from returnn.config import Config  # noqa: E402
from returnn.log import log  # noqa: E402
from returnn.torch.engine import Engine  # noqa: E402

MAX_SLOPE_MIB = 0.1


def children(pid: int) -> list[int]:
    """:return: of this process"""
    pids: list[int] = []
    for thread in os.listdir(f"/proc/{pid}/task"):
        with open(f"/proc/{pid}/task/{thread}/children") as file:
            pids += map(int, file.read().split())
    return pids


def _pss_mib(pid: int, *, with_files: bool) -> float:
    with open(f"/proc/{pid}/smaps_rollup") as file:
        if with_files:
            return next(int(line.split()[1]) / 1024 for line in file if line.startswith("Pss:"))
        # Not that of files, e.g. libraries: it depends on what other processes of the machine use.
        return sum(int(line.split()[1]) / 1024 for line in file if line.startswith(("Pss_Anon:", "Pss_Shmem:")))


def tree_mib(pid: int | None = None, *, with_files: bool = False) -> tuple[float, int]:
    """
    :param pid: None: this process
    :param with_files: also what is mapped from files
    :return: MiB of the process and its descendants, and their number
    """
    pid = pid or os.getpid()
    mib, num = _pss_mib(pid, with_files=with_files), 1
    for child in children(pid):
        try:
            child_mib, child_num = tree_mib(child, with_files=with_files)
        except (FileNotFoundError, ProcessLookupError, StopIteration):  # ended meanwhile
            continue
        mib, num = mib + child_mib, num + child_num
    return mib, num


def slope_of(values: list[float]) -> float:
    """:return: of the line through the values, per value"""
    return float(numpy.polyfit(numpy.arange(len(values)), numpy.array(values), 1)[0])


class MeasuredEngine(Engine):
    """Looks at the memory when a checkpoint is saved."""

    mib: list[float]
    mib_with_files: list[float]
    num_processes: int = 0

    def save_model(self) -> None:
        """See the base."""
        super().save_model()
        mib, self.num_processes = tree_mib()
        self.mib.append(mib)
        self.mib_with_files.append(tree_mib(with_files=True)[0])


def main() -> None:
    """Print one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_epochs", type=int, default=200)
    parser.add_argument("--num_seqs", type=int, default=400)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    with tempfile.TemporaryDirectory() as tmp:
        hdf = os.path.join(tmp, "data.hdf")
        make_hdf(hdf, args.num_seqs)
        dataset = {"class": "HDFDataset", "files": [hdf], "seq_ordering": "laplace:.100"}
        engine = MeasuredEngine(
            config=Config(
                {
                    "task": "train",
                    "device": "cpu",
                    "train": dataset,
                    "dev": dataset,
                    "batch_size": 1000,
                    "max_seqs": 40,
                    "get_model": get_model,
                    "train_step": train_step,
                    "optimizer": {"class": "adam"},
                    "learning_rate": 0.001,
                    "num_workers_per_gpu": args.workers,
                    "num_epochs": args.num_epochs,
                    "model": os.path.join(tmp, "model"),
                    "cleanup_old_models": {"keep_last_n": 1, "keep": []},
                }
            )
        )
        engine.mib, engine.mib_with_files = [], []
        torch.set_num_threads(1)
        engine.init_train()
        engine.train()
        engine.close_loaders()
    half = engine.mib[len(engine.mib) // 2 :]
    slope = slope_of(half)
    slope_with_files = slope_of(engine.mib_with_files[len(engine.mib) // 2 :])
    verdict = "reached" if slope < MAX_SLOPE_MIB else "NOT reached"
    print(
        f"{len(engine.mib)} epochs, {args.workers} workers, {engine.num_processes} processes: {engine.mib[0]:.1f} MiB after "
        f"the first epoch, {half[0]:.1f} in the middle, {half[-1]:.1f} at the end, "
        f"{slope:.3f} MiB per epoch in the second half (target {MAX_SLOPE_MIB}: {verdict}; with mapped files, whose share "
        f"depends on other processes, {slope_with_files:.3f})",
        flush=True,
    )


if __name__ == "__main__":
    main()
