#!/usr/bin/env python3
"""
Training of a tiny model, where everything but the model counts: the engine with 0, 1 and 2 loader workers against a
hand-written loop over batches that are ready in memory.

20,000 sequences of 5 to 50 frames of 10 floats in one HDF file, laplace order, batch_size 1000, max_seqs 40, Adam,
a network of two layers of width 16; one epoch. Best of several epochs, the two measured in turn.

With --step_ms the step function computes for that long in both loops: a model of 20 ms per step, say.

usage: python benchmarks/training_tiny.py [--num_seqs 20000] [--epochs 5] [--workers 0 1 2] [--step_ms 20]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from typing import Any

import numpy

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

from benchmarks.common import print_row  # noqa: E402
from returnn.config import Config  # noqa: E402
from returnn.datasets.hdf import SimpleHDFWriter  # noqa: E402
from returnn.log import log  # noqa: E402
from returnn.torch.engine import Engine  # noqa: E402


def make_hdf(path: str, num_seqs: int) -> None:
    """Write the data."""
    rnd = numpy.random.RandomState(1)
    with SimpleHDFWriter(path, dim=10, ndim=2) as writer:
        for start in range(0, num_seqs, 500):
            num = min(500, num_seqs - start)
            lens = rnd.randint(5, 51, size=num)
            data = rnd.randn(num, lens.max(), 10).astype("float32")
            writer.insert_batch(data, lens, [f"seq-{i}" for i in range(start, start + num)])


def get_model(**_kwargs: object) -> torch.nn.Module:
    """:return: two layers"""
    return torch.nn.Sequential(torch.nn.Linear(10, 16), torch.nn.ReLU(), torch.nn.Linear(16, 10))


class StepTime:
    """How long each step computes beside the tiny model."""

    secs = 0.0


def loss_and_frames(model: torch.nn.Module, x: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:return: summed loss over the frames, number of frames"""
    if StepTime.secs:
        end = time.perf_counter() + StepTime.secs
        while time.perf_counter() < end:
            pass
    mask = torch.arange(x.shape[1])[None, :] < lens[:, None]
    return ((model(x) - x) ** 2).sum(-1)[mask].sum(), lens.sum()


def train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: Any, **_kwargs: object) -> None:
    """What a user writes."""
    loss, frames = loss_and_frames(model, data["data"], data["data:size1"])
    run_ctx.mark_as_loss(loss, "mse", inv_norm_factor=frames)


class TimedEngine(Engine):
    """Measures the training pass alone."""

    def eval_model(self, *, skip_already_evaluated: bool = False) -> None:
        """Not part of the measurement."""

    def save_model(self) -> None:
        """Not part of the measurement."""

    def _save_optimizer(self) -> None:
        pass


def make_engine(hdf: str, num_workers: int) -> TimedEngine:
    """:return: ready to train"""
    dataset = {"class": "HDFDataset", "files": [hdf], "seq_ordering": "laplace:.1000"}
    engine = TimedEngine(
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
                "num_workers_per_gpu": num_workers,
                "num_epochs": 1000,
            }
        )
    )
    engine.init_train()
    engine.epoch = 0
    return engine


def engine_epoch(engine: TimedEngine) -> float:
    """:return: seconds of one epoch"""
    engine.epoch += 1
    engine._epoch_mp_shared.value = engine.epoch
    start = time.perf_counter()
    engine.init_train_epoch()
    engine.train_epoch()
    return time.perf_counter() - start


def hand_written_epoch(batches: list[tuple[torch.Tensor, torch.Tensor]], state: dict[str, Any]) -> float:
    """:return: seconds of one epoch of a loop as one writes it by hand"""
    model, optimizer = state["model"], state["optimizer"]
    start = time.perf_counter()
    total = 0.0
    for x, lens in batches:
        loss, frames = loss_and_frames(model, x, lens)
        optimizer.zero_grad()
        (loss / frames).backward()
        optimizer.step()
        total += loss.item()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--step_ms", type=float, default=0.0)
    args = parser.parse_args()
    StepTime.secs = args.step_ms / 1000
    target = 1.25 if not args.step_ms else 1.02
    log.initialize(verbosity=[1])
    with tempfile.TemporaryDirectory() as tmp:
        hdf = os.path.join(tmp, "data.hdf")
        make_hdf(hdf, args.num_seqs)
        reader = make_engine(hdf, 0)
        reader._epoch_mp_shared.value = 1
        assert reader._train_dataloader is not None
        batches = [(b["data"], b["data:size1"]) for b in reader._train_dataloader]
        start = time.perf_counter()
        num = sum(len(b["seq_tag"]) for b in reader._train_dataloader)
        print(f"data only, in-process: {num} seqs, {len(batches)} batches in {time.perf_counter() - start:.3f} s")
        model = get_model()
        state = {"model": model, "optimizer": torch.optim.Adam(model.parameters(), lr=0.001)}
        hand_written_epoch(batches, state)
        for num_workers in args.workers:
            engine = make_engine(hdf, num_workers)
            engine_epoch(engine)  # starts the workers
            ours, limits = [], []
            for _ in range(args.epochs):
                limits.append(hand_written_epoch(batches, state))
                ours.append(engine_epoch(engine))
            engine.close_loaders()
            what = f", model of {args.step_ms:g} ms" if args.step_ms else ""
            print_row(f"train one epoch, {num_workers} workers{what}", min(ours), min(limits), target)


if __name__ == "__main__":
    main()
