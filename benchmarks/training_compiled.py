#!/usr/bin/env python3
"""
Training with the option torch_compile, against the same training without it, and against a hand-written loop with
torch.compile over batches that are ready in memory.

The data of training_tiny.py; a feed-forward network with layer norm, GELU and residuals, where a compiler has something
to fuse. Needs a C++ compiler. The first epoch, in which everything is compiled, does not count.

usage: python benchmarks/training_compiled.py [--num_seqs 4000] [--epochs 3] [--dim 64] [--layers 6]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

from benchmarks.training_tiny import TimedEngine, engine_epoch, make_hdf  # noqa: E402
from returnn.config import Config  # noqa: E402
from returnn.log import log  # noqa: E402


class Layer(torch.nn.Module):
    """x + feed-forward(layer norm(x))"""

    def __init__(self, dim: int):
        super().__init__()
        self.norm = torch.nn.LayerNorm(dim)
        self.up, self.down = torch.nn.Linear(dim, 4 * dim), torch.nn.Linear(4 * dim, dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,T,dim] -> [B,T,dim]"""
        y: torch.Tensor = x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))
        return y


def get_model(*, dim: int, layers: int, **_kwargs: object) -> torch.nn.Module:
    """:return: from 10 features to 10"""
    inner = [Layer(dim) for _ in range(layers)]
    return torch.nn.Sequential(torch.nn.Linear(10, dim), *inner, torch.nn.Linear(dim, 10))


def loss_and_frames(model: torch.nn.Module, x: torch.Tensor, lens: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:return: summed loss over the frames, number of frames"""
    mask = torch.arange(x.shape[1])[None, :] < lens[:, None]
    return torch.where(mask, ((model(x) - x) ** 2).sum(-1), 0.0).sum(), lens.sum()


def train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: Any, **_kwargs: object) -> None:
    """What a user writes."""
    loss, frames = loss_and_frames(model, data["data"], data["data:size1"])
    run_ctx.mark_as_loss(loss, "mse", inv_norm_factor=frames)


def make_engine(hdf: str, *, dim: int, layers: int, compiled: bool) -> TimedEngine:
    """:return: ready to train"""
    dataset = {"class": "HDFDataset", "files": [hdf], "seq_ordering": "laplace:.1000"}
    opts: dict[str, Any] = {
        "task": "train",
        "device": "cpu",
        "train": dataset,
        "dev": dataset,
        "batch_size": 1000,
        "max_seqs": 40,
        "get_model": functools.partial(get_model, dim=dim, layers=layers),
        "train_step": train_step,
        "optimizer": {"class": "adam"},
        "learning_rate": 0.001,
        "num_workers_per_gpu": 0,
        "num_epochs": 1000,
        "torch_compile": compiled,
    }
    engine = TimedEngine(config=Config(opts))
    engine.init_train()
    engine.epoch = 0
    return engine


def hand_written_epoch(batches: list[tuple[torch.Tensor, torch.Tensor]], state: dict[str, Any]) -> float:
    """:return: seconds of one epoch of a loop as one writes it by hand"""
    start = time.perf_counter()
    for x, lens in batches:
        loss, frames = state["func"](state["model"], x, lens)
        state["optimizer"].zero_grad()
        (loss / frames).backward()
        state["optimizer"].step()
    return time.perf_counter() - start


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__.strip().splitlines()[0] if __doc__ else None)
    parser.add_argument("--num_seqs", type=int, default=4000)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--dim", type=int, default=64)
    parser.add_argument("--layers", type=int, default=6)
    args = parser.parse_args()
    log.initialize(verbosity=[2])
    with tempfile.TemporaryDirectory() as tmp:
        hdf = os.path.join(tmp, "data.hdf")
        make_hdf(hdf, args.num_seqs)
        engines = {c: make_engine(hdf, dim=args.dim, layers=args.layers, compiled=c) for c in (False, True)}
        model = get_model(dim=args.dim, layers=args.layers)
        state: dict[str, Any] = {
            "model": model,
            "optimizer": torch.optim.Adam(model.parameters(), lr=0.001),
            "func": torch.compile(loss_and_frames, dynamic=True),
        }
        loader: Any = engines[False]._train_dataloader
        batches = [(batch["data"].clone(), batch["data:size1"].clone()) for batch in loader]
        best = {"plain": float("inf"), "compiled": float("inf"), "hand-written": float("inf")}
        for epoch in range(args.epochs + 1):
            secs = {
                "plain": engine_epoch(engines[False]),
                "compiled": engine_epoch(engines[True]),
                "hand-written": hand_written_epoch(batches, state),
            }
            if epoch:
                best = {name: min(best[name], value) for name, value in secs.items()}
        for engine in engines.values():
            engine.close_loaders()
    ours, plain, limit = best["compiled"], best["plain"], best["hand-written"]
    print(
        f"torch_compile, {len(batches)} steps: {ours:.2f} s, without it {plain:.2f} s (ratio {ours / plain:.2f}), "
        f"compiled hand-written loop {limit:.2f} s (ratio {ours / limit:.2f})"
    )


if __name__ == "__main__":
    main()
