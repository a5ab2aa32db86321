"""Tiny trainings in both dialects, for tests of what watches them."""

from __future__ import annotations

from typing import Any

import numpy
import torch

from returnn import frontend as rf
from returnn.config import Config
from returnn.frontend.run_ctx import RunCtx
from returnn.torch.engine import Engine


def _data(num: int) -> list[dict[str, numpy.ndarray]]:
    rng = numpy.random.RandomState(num)
    return [
        {"data": rng.randn(2 + i % 4, 2).astype("float32"), "classes": numpy.arange(1 + i % 3, dtype="int32") % 3}
        for i in range(num)
    ]


def _dataset(num: int) -> dict[str, Any]:
    return {"class": "StaticDataset", "data": _data(num), "output_dim": {"data": (2, 2), "classes": (3, 1)}}


def get_model(**_kwargs: object) -> torch.nn.Module:
    """:return: a parameter"""
    return torch.nn.Linear(2, 1)


def mini_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    """Two losses."""
    run_ctx.mark_as_loss(model(data["data"]).pow(2).sum(), "sq", inv_norm_factor=data["data:size1"].sum())
    run_ctx.mark_as_loss(torch.tensor(1e6), "huge", scale=0.0)


def mainline_step(*, model: torch.nn.Module, extern_data: Any, **_kwargs: object) -> None:
    """A loss and an error."""
    data = extern_data["data"]
    loss = model(data.raw_tensor).squeeze(-1).pow(2)
    ctx = rf.get_run_ctx()
    ctx.mark_as_loss(loss, "sq", dims=data.dims[:2])
    ctx.mark_as_loss(loss.detach(), "err", dims=data.dims[:2], as_error=True)


def config(*, mainline: bool = False, num_seqs: int = 12, **opts: Any) -> Config:
    """:return: 4 batches of 3 sequences per epoch, one evaluation batch per 3"""
    dialect: dict[str, Any] = {"train_step": mini_step}
    if mainline:
        dialect = {
            "train_step": mainline_step,
            "extern_data": {"data": {"dim": 2}, "classes": {"dim": 3, "sparse": True}},
        }
    return Config(
        {
            "task": "train",
            "device": "cpu",
            "train": _dataset(num_seqs),
            "dev": _dataset(3),
            "get_model": get_model,
            "batch_size": None,
            "max_seqs": 3,
            "num_workers_per_gpu": 0,
            "optimizer": {"class": "sgd"},
            "learning_rate": 0.01,
            "num_epochs": 2,
            "model": "models/epoch",
            "learning_rate_file": "learning_rates",
            **dialect,
            **opts,
        }
    )


def train(cfg: Config) -> Engine:
    """:return: engine, after training"""
    engine = Engine(config=cfg)
    engine.init_train()
    engine.train()
    return engine
