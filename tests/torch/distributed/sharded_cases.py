"""
Program that torchrun starts for test_sharded_model.py: each case trains a model in shards and in one piece, and rank 0 prints one line of
JSON with the name of the case and the largest difference of a parameter, or the text of the error.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor

from returnn.cli.rank_end import leave_in_order
from returnn.options.sharding import MixedPrecision, ShardingOptions
from returnn.torch.distributed.sharded_model import ShardedModel
from returnn.torch.distributed.tensors import is_sharded, like_parameter, whole_model_state, whole_tensor
from returnn.torch.optim.gradients import found_nonfinite, gradient_noise_

NUM_LABELS = 7
NUM_STEPS = 6


class Block(torch.nn.Module):
    """Residual layer."""

    def __init__(self, dim: int):
        super().__init__()
        self.linear = torch.nn.Linear(dim, dim)
        self.norm = torch.nn.LayerNorm(dim)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.norm(x + torch.relu(self.linear(x)))  # type: ignore[no-any-return]

    def scale(self, x: torch.Tensor) -> torch.Tensor:
        """:return: x, scaled; a method that is not forward"""
        return self.norm(x)  # type: ignore[no-any-return]


class Model(torch.nn.Module):
    """Embedding, blocks, output layer; :meth:`scores` in place of forward."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind
        self.emb = torch.nn.Embedding(NUM_LABELS, 6)
        self.blocks: Any = torch.nn.ModuleList([Block(6) for _ in range(3)])  # Any: torch's types of attributes
        self.out = torch.nn.Linear(6, NUM_LABELS, bias=False)
        self.rnn = torch.nn.LSTM(6, 6, batch_first=True) if kind == "rnn" else None
        if kind == "frozen":  # the first block has an input without gradients, and no gradient for its bias
            self.emb.weight.requires_grad_(False)
            first: Any = self.blocks[0]  # Any: as above
            first.linear.bias.requires_grad_(False)
        if kind == "unused":
            self.blocks[1].extra = torch.nn.Linear(3, 3)
        if kind == "nested":
            self.blocks = torch.nn.ModuleList([torch.nn.Sequential(Block(6), Block(6)), Block(6)])
        if kind == "tied":
            self.out.weight = self.emb.weight

    def scores(self, x: torch.Tensor) -> torch.Tensor:
        """:return: [B,T,labels]"""
        h = self.emb(x)
        for block in self.blocks:
            if self.kind == "checkpointing":
                h = torch.utils.checkpoint.checkpoint(block, h, use_reentrant=False)
            else:
                h = block(h)
        if self.kind == "twice":
            h = self.blocks[0](h)
        if self.kind in ("method", "method not listed"):
            h = self.blocks[1].scale(h)
        if self.rnn is not None:
            h, _ = self.rnn(h)
        return self.out(h)  # type: ignore[no-any-return]


def make_model(kind: str) -> Model:
    """:return: always with the same parameters"""
    torch.manual_seed(0)
    return Model(kind)


def loss_of(model: Model, *, step: int, rank: int) -> torch.Tensor:
    """:return: of the batch of that rank"""
    labels = torch.arange(NUM_LABELS)
    x = ((labels + rank + step) % NUM_LABELS).view(1, NUM_LABELS)
    scores = model.scores(x).float()
    return torch.nn.functional.cross_entropy(scores.view(-1, NUM_LABELS), (labels + rank) % NUM_LABELS)


def has_data(step: int, rank: int) -> bool:
    """Whether a rank has data in a step: the last one often has not."""
    return rank < dist.get_world_size() - 1 or step not in (2, 3, 5)


def train_whole(kind: str, *, accumulate: int, optimizer: str) -> Model:
    """:return: the model trained in one piece, on the batches of all ranks"""
    model = make_model(kind)
    optim = make_optimizer(model, optimizer)
    for step in range(NUM_STEPS):
        for rank in range(dist.get_world_size()):
            if has_data(step, rank):
                (loss_of(model, step=step, rank=rank) / dist.get_world_size()).backward()
        if (step + 1) % accumulate == 0:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optim.step()
            optim.zero_grad()
    if NUM_STEPS % accumulate:
        optim.step()
    return model


def make_optimizer(model: torch.nn.Module, name: str) -> torch.optim.Optimizer:
    """:return: over the trainable parameters"""
    args: dict[str, Any] = {"momentum": 0.9} if name == "SGD" else {}
    params = [param for param in model.parameters() if param.requires_grad]
    return getattr(torch.optim, name)(params, lr=0.01, **args)  # type: ignore[no-any-return]


def train_sharded(
    kind: str, options: ShardingOptions, *, accumulate: int, optimizer: str
) -> tuple[Model, dict[str, Any]]:
    """:return: the model trained in shards, and its whole state dict"""
    rank = dist.get_rank()
    model = make_model(kind)
    sharded = ShardedModel(model, device="cpu", options=options)
    assert type(model) is Model
    optim = make_optimizer(model, optimizer)
    sharded.watch_optimizer(optim)
    for step in range(NUM_STEPS):
        updates = (step + 1) % accumulate == 0
        sharded.set_gradient_sync(updates)
        if has_data(step, rank):
            loss = sharded.run(lambda step=step: loss_of(model, step=step, rank=rank))  # type: ignore[misc]
        else:
            loss = sharded.empty_step()
        loss.backward()
        if updates:
            torch.nn.utils.clip_grad_norm_(model.parameters(), 0.3)
            optim.step()
            optim.zero_grad()
    if NUM_STEPS % accumulate:
        sharded.reduce_gradients()
        optim.step()
    with torch.no_grad():  # evaluation, the first rank without data
        if rank:
            sharded.run(lambda: loss_of(model, step=0, rank=rank))
        else:
            assert sharded.empty_step().item() == 0
    assert all(map(is_sharded, model.parameters()))
    return model, whole_model_state(model)


def difference(
    kind: str = "plain",
    shard_modules: tuple[str, ...] | None = ("Block",),
    accumulate: int = 1,
    optimizer: str = "AdamW",
    **options: Any,  # Any: fields of ShardingOptions
) -> float:
    """:return: largest difference of a parameter between both ways"""
    whole = train_whole(kind, accumulate=accumulate, optimizer=optimizer).state_dict()
    sharding = ShardingOptions(shard_modules=shard_modules, **options)
    _, state = train_sharded(kind, sharding, accumulate=accumulate, optimizer=optimizer)
    assert list(state) == list(whole)
    return max(float((state[name] - value).abs().max()) for name, value in whole.items())


def parts() -> float:
    """The part of each rank and the whole are the same tensor."""
    model = make_model("plain")
    whole = {name: param.detach().clone() for name, param in model.named_parameters()}
    ShardedModel(model, device="cpu", options=ShardingOptions(shard_modules=("Block",)))
    worst = 0.0
    for name, param in model.named_parameters():
        part = like_parameter(whole[name] + 1, param)
        assert isinstance(param, DTensor)
        assert part.placements == param.placements and part.device_mesh == param.device_mesh
        worst = max(worst, float((whole_tensor(part) - whole[name] - 1).abs().max()))
        assert like_parameter(5, param) == 5 and like_parameter(torch.zeros(2, 9), param).shape == (2, 9)
    return worst


def nonfinite() -> float:
    """An inf that one rank has is found on all."""
    model = make_model("plain")
    sharded = ShardedModel(model, device="cpu", options=ShardingOptions(shard_modules=()))
    sharded.run(lambda: loss_of(model, step=0, rank=0)).backward()
    grads = [param.grad for param in model.parameters() if param.grad is not None]
    assert found_nonfinite(grads).item() == 0
    if dist.get_rank() == dist.get_world_size() - 1:
        grads[0].to_local().fill_(float("inf"))  # type: ignore[attr-defined]
    assert found_nonfinite(grads).item() == 1
    return 0.0


def bfloat16() -> float:
    """Mixed precision: computation in bfloat16, parameters and gradients in float32."""
    precision = MixedPrecision(param_dtype="bfloat16", reduce_dtype="float32")
    model, _ = train_sharded(
        "plain", ShardingOptions(shard_modules=("Block",), mixed_precision=precision), accumulate=1, optimizer="SGD"
    )
    assert all(param.dtype == torch.float32 for param in model.parameters())
    return 0.0


def noise() -> float:
    """Noise of the gradients is that of one process with the same generator."""
    model, whole = make_model("plain"), make_model("plain")
    sharded = ShardedModel(model, device="cpu", options=ShardingOptions(shard_modules=("Block",)))
    sharded.run(lambda: loss_of(model, step=0, rank=0)).backward()
    loss_of(whole, step=0, rank=0).backward()
    for params in (model.parameters(), whole.parameters()):
        gradient_noise_(params, 0.1, generator=torch.Generator().manual_seed(1))
    pairs = zip(model.parameters(), whole.parameters(), strict=True)
    return max(
        float((whole_tensor(a.grad) - b.grad).abs().max())
        for a, b in pairs
        if a.grad is not None and b.grad is not None
    )


def unusual(param: Any) -> float:
    """:param param: a parameter that cannot be sharded. Any: one of torch's classes of parameters"""
    model = make_model("plain")
    model.register_parameter("own", param)
    ShardedModel(model, device="cpu", options=ShardingOptions())
    return 0.0


CASES: dict[str, Callable[[], float]] = {
    "plain": difference,
    "whole model at once": lambda: difference(shard_modules=()),
    "by size": lambda: difference(shard_modules=None),
    "kept between forward and backward": lambda: difference(reshard_after_forward=False),
    "frozen": lambda: difference("frozen"),
    "unused": lambda: difference("unused"),
    "nested": lambda: difference("nested", ("Block", "Sequential")),
    "twice": lambda: difference("twice"),
    "checkpointing": lambda: difference("checkpointing"),
    "tied": lambda: difference("tied", ("Block", "Embedding")),
    "rnn": lambda: difference("rnn", ("Block", "LSTM"), optimizer="SGD"),
    "method": lambda: difference("method", forward_methods={"Block": ("scale",)}),
    "accumulate 2": lambda: difference(accumulate=2),
    "accumulate 4": lambda: difference(accumulate=4),
    "parts": parts,
    "nonfinite": nonfinite,
    "noise": noise,
    "bfloat16": bfloat16,
    "method not listed": lambda: difference("method not listed", optimizer="SGD"),
    "class with typo": lambda: difference(shard_modules=("Blok",)),
    "container": lambda: difference(shard_modules=("ModuleList",)),
    "methods of another class": lambda: difference(forward_methods={"Linear": ("scale",)}),
    "unknown method": lambda: difference(forward_methods={"Block": ("scal",)}),
    "adafactor": lambda: difference(optimizer="Adafactor"),
    "scalar parameter": lambda: unusual(torch.nn.Parameter(torch.zeros(()))),
    "other dtype": lambda: unusual(torch.nn.Parameter(torch.zeros(2, dtype=torch.float64))),
    "empty parameter": lambda: unusual(torch.nn.Parameter(torch.zeros(0, 2))),
    "lazy parameter": lambda: unusual(torch.nn.parameter.UninitializedParameter()),
}


def main() -> None:
    """Run all cases."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    for name, case in CASES.items():
        result: dict[str, Any] = {"case": name}
        try:
            result["difference"] = case()
        except Exception as exc:
            result["error"] = f"{type(exc).__name__}: {exc}"
        if dist.get_rank() == 0:
            sys.stdout.write(json.dumps(result) + "\n")
            sys.stdout.flush()
        dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
    leave_in_order(0)  # as rnn.py: destructors of C++ libraries abort the process now and then
