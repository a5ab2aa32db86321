#!/usr/bin/env python3
"""
What the engine adds to a training step: 10,000 steps of a model with one parameter, two losses, gradient_clip_norm and Adam,
against the same torch calls by hand. The batches are ready in memory in both.

Best of several rounds, the two in turn. The same in mainline's dialect, with two streams in extern_data. Then with a step of 20 ms,
as a share.

usage: python benchmarks/engine_step.py [--steps 10000] [--rounds 3] [--slow_steps 100]
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Iterator
from typing import Any

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

import returnn.frontend as rf  # noqa: E402
from returnn.config import Config  # noqa: E402
from returnn.log import log  # noqa: E402
from returnn.torch.engine import Engine  # noqa: E402

CLIP_NORM = 1.0
SLOW_STEP_SECS = 0.02


class OneParameter(torch.nn.Module):
    """A scale."""

    def __init__(self, **_kwargs: object) -> None:
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(1))


def losses(model: OneParameter, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """:return: two summed losses"""
    y = x * model.scale
    return (y - 0.5).square().sum(), y.abs().sum()


def train_step(*, model: OneParameter, data: dict[str, Any], run_ctx: Any, **_kwargs: object) -> None:
    """What a user writes."""
    first, second = losses(model, data["data"])
    run_ctx.mark_as_loss(first, "first", inv_norm_factor=16)
    run_ctx.mark_as_loss(second, "second", scale=0.1, inv_norm_factor=16)


def slow_train_step(*, model: OneParameter, data: dict[str, Any], run_ctx: Any, **_kwargs: object) -> None:
    """The same, of a model that computes for long."""
    _compute()
    train_step(model=model, data=data, run_ctx=run_ctx)


def mainline_train_step(*, model: OneParameter, extern_data: Any, **_kwargs: object) -> None:
    """The same in mainline's dialect."""
    first, second = losses(model, extern_data["data"].raw_tensor)
    run_ctx = rf.get_run_ctx()
    run_ctx.mark_as_loss(first, "first", custom_inv_norm_factor=16)
    run_ctx.mark_as_loss(second, "second", scale=0.1, custom_inv_norm_factor=16)


EXTERN_DATA = {"data": {"dim": 1}, "classes": {"dim": 3, "sparse": True}}


def make_batch(seed: int) -> dict[str, Any]:
    """:return: two streams of four sequences. Any: as the loader gives it"""
    lens = torch.tensor([4, 4, 3, 2], dtype=torch.int32)
    return {
        "data": torch.randn(4, 4, 1, generator=torch.Generator().manual_seed(seed)),
        "data:size1": lens,
        "classes": torch.zeros(4, 4, dtype=torch.int32),
        "classes:size1": lens,
        "seq_tag": ["a", "b", "c", "d"],
    }


def _compute() -> None:
    end = time.perf_counter() + SLOW_STEP_SECS
    while time.perf_counter() < end:
        pass


class ReadyBatches:
    """In place of the engine's loader."""

    def __init__(self, batches: list[dict[str, Any]]):
        self._batches = batches

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self._batches)


class StepEngine(Engine):
    """Trains, and nothing else."""

    def eval_model(self, *, skip_already_evaluated: bool = False) -> None:
        """Not part of the measurement."""

    def save_model(self) -> None:
        """Not part of the measurement."""

    def _save_optimizer(self) -> None:
        pass


def make_engine(batches: list[dict[str, Any]], step: Any, **options: Any) -> StepEngine:
    """:return: ready to train with these batches. Any: a train_step"""
    engine = StepEngine(
        config=Config(
            {
                "task": "train",
                "device": "cpu",
                "train": {"class": "Task12AXDataset", "num_seqs": 1},
                "dev": {"class": "Task12AXDataset", "num_seqs": 1},
                "batch_size": 1000,
                "get_model": OneParameter,
                "train_step": step,
                "optimizer": {"class": "adam"},
                "gradient_clip_norm": CLIP_NORM,
                "learning_rate": 0.001,
                "num_workers_per_gpu": 0,
                "num_epochs": 1000,
                **options,
            }
        )
    )
    engine.init_train()
    engine.epoch = 1
    loader: Any = ReadyBatches(batches)
    engine._train_dataloader = loader
    return engine


def engine_epoch(engine: StepEngine) -> float:
    """:return: seconds of one epoch"""
    start = time.perf_counter()
    engine.train_epoch()
    return time.perf_counter() - start


def by_hand(
    model: OneParameter, optimizer: torch.optim.Optimizer, batches: list[dict[str, Any]], *, slow: bool
) -> float:
    """:return: seconds of the same torch calls in a plain loop"""
    start = time.perf_counter()
    sums = [0.0, 0.0]
    for data in batches:
        if slow:
            _compute()
        first, second = losses(model, data["data"])
        loss = first / 16 + second / 16 * 0.1
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), CLIP_NORM)
        optimizer.step()
        sums[0] += first.item()
        sums[1] += second.item()
    return time.perf_counter() - start


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    parser.add_argument("--slow_steps", type=int, default=100)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    slow_what = f"model of {SLOW_STEP_SECS * 1000:.0f} ms"
    for what, num, step, options in (
        ("one parameter", args.steps, train_step, {}),
        ("one parameter, mainline's dialect", args.steps, mainline_train_step, {"extern_data": EXTERN_DATA}),
        (slow_what, args.slow_steps, slow_train_step, {}),
    ):
        slow = step is slow_train_step
        batches = [make_batch(i) for i in range(num)]
        engine = make_engine(batches, step, **options)
        model = OneParameter()
        optimizer = torch.optim.Adam(model.parameters(), lr=0.001)
        ours, limits = [], []
        for _ in range(args.rounds):
            limits.append(by_hand(model, optimizer, batches, slow=slow))
            ours.append(engine_epoch(engine))
        more = (min(ours) - min(limits)) / num * 1e6
        print(
            f"{num} steps, {what}: ours {min(ours) / num * 1e6:.0f} us per step, by hand {min(limits) / num * 1e6:.0f} us, "
            f"{more:.0f} us more, ratio {min(ours) / min(limits):.3f}",
            flush=True,
        )


if __name__ == "__main__":
    main()
