"""
Trainings for test_training.py, each on any number of ranks with the same global batches. As a program, started by torchrun: each
rank does all of them and writes what came out to a file.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy
import torch

from returnn import frontend as rf
from returnn._state import state
from returnn.cli.rank_end import leave_in_order
from returnn.config import Config, global_config_ctx
from returnn.errors import ReturnnError
from returnn.options.distributed import DistributedOptions
from returnn.tensor import Dim, TensorDict, batch_dim
from returnn.torch.context import get_run_ctx
from returnn.torch.distributed.context import get_distributed, init_distributed, shutdown_distributed
from returnn.torch.engine import Engine
from returnn.torch.updater import Updater
from returnn.util.launcher import find_launch, set_process_rank

#: sequences of a step over all ranks
GLOBAL_BATCH = 6


class Net(torch.nn.Module):
    """Two layers over frames."""

    def __init__(self, kind: str = "plain"):
        super().__init__()
        self.kind = kind
        self.hidden = torch.nn.Linear(4, 8)
        self.norm = torch.nn.BatchNorm1d(8) if kind == "batch_norm" else torch.nn.Identity()
        self.output = torch.nn.Linear(8, 3)
        if kind == "unused":
            self.unused = torch.nn.Linear(2, 2)
        if kind in ("sometimes", "alternating"):
            self.sometimes = torch.nn.Linear(8, 3)
        self.num_calls = 0

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        self.num_calls += self.training
        hidden = self.hidden(x)
        if self.kind == "batch_norm":
            hidden = self.norm(hidden.mT).mT
        hidden = torch.tanh(hidden)
        if self.kind == "sometimes" and state.rank == 0:
            return self.output(hidden) + self.sometimes(hidden)  # type: ignore[no-any-return]
        if self.kind == "alternating" and self.num_calls % 2:
            return self.output(hidden) + self.sometimes(hidden)  # type: ignore[no-any-return]
        return self.output(hidden)  # type: ignore[no-any-return]


def _frame_losses(logits: torch.Tensor, lens: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """:return: [frames] of all sequences"""
    mask = torch.arange(logits.shape[1])[None, :] < lens[:, None]
    return torch.nn.functional.cross_entropy(logits[mask], targets[mask].long(), reduction="none")


def mini_step(*, model: Net, data: Mapping[str, Any], run_ctx: Any, **_: Any) -> None:
    """Two losses with different norm factors, and one that is only reported."""
    assert type(model) is Net
    lens = data["data:size1"]
    ce = _frame_losses(model(data["data"]), lens, data["classes"])
    run_ctx.mark_as_loss(ce.sum(), "ce", inv_norm_factor=lens.sum())
    run_ctx.mark_as_loss((ce**2).sum(), "square", scale=0.3, inv_norm_factor=len(lens))
    run_ctx.mark_as_loss((ce > 1.1).sum().float(), "high", scale=0, inv_norm_factor=lens.sum())


def late_loss_step(*, model: Net, data: Mapping[str, Any], run_ctx: Any, **_: Any) -> None:
    """Marks a second loss only for batches with long sequences: in some steps only, and there maybe on some ranks only."""
    lens = data["data:size1"]
    ce = _frame_losses(model(data["data"]), lens, data["classes"])
    run_ctx.mark_as_loss(ce.sum(), "ce", inv_norm_factor=lens.sum())
    is_long = lens >= 10
    if is_long.any():
        long = (ce * is_long.repeat_interleave(lens)) ** 2
        run_ctx.mark_as_loss(long.sum(), "long", scale=0.02, inv_norm_factor=is_long.sum())


def inf_step(*, model: Net, data: Mapping[str, Any], run_ctx: Any, **_: Any) -> None:
    """The loss of the batch with a certain sequence is inf."""
    lens = data["data:size1"]
    ce = _frame_losses(model(data["data"]), lens, data["classes"]).sum()
    if "seq-5" in data["seq_tag"]:
        ce = ce * math.inf
    run_ctx.mark_as_loss(ce, "ce", inv_norm_factor=lens.sum())


def mainline_step(*, model: Net, extern_data: TensorDict, **_: Any) -> None:
    """The sum over the frames, not normalised."""
    _mainline_losses(model, extern_data, normalised=False)


def mainline_normalised_step(*, model: Net, extern_data: TensorDict, **_: Any) -> None:
    """The mean over the frames."""
    _mainline_losses(model, extern_data, normalised=True)


def _mainline_losses(model: Net, extern_data: TensorDict, *, normalised: bool) -> None:
    data, classes = extern_data["data"], extern_data["classes"]
    sizes = data.dims[1].dyn_size_ext
    assert sizes is not None and sizes.raw_tensor is not None
    logits = model(data.raw_tensor)
    ce = torch.nn.functional.cross_entropy(logits.flatten(0, 1), classes.raw_tensor.flatten().long(), reduction="none")
    dims = (batch_dim, data.dims[1])
    ctx = rf.get_run_ctx()
    ctx.mark_as_loss(ce.view(logits.shape[:2]), "ce", dims=dims, scale=0.05, use_normalized_loss=normalised)


def _data(num_seqs: int, seed: int) -> dict[str, Any]:
    rng = numpy.random.RandomState(seed)
    seqs = [
        {
            "data": rng.normal(size=(length, 4)).astype("float32"),
            "classes": rng.randint(0, 3, size=(length,)).astype("int32"),
        }
        for length in rng.randint(2, 12, size=num_seqs)
    ]
    return {
        "class": "StaticDataset",
        "data": seqs,
        "output_dim": {"data": (4, 2), "classes": (3, 1)},
        "seq_ordering": "random",
    }


def base_config(num_ranks: int, *, num_seqs: int = 33) -> dict[str, Any]:
    """:return: options; with 33 sequences, the last step has 3 sequences"""
    return {
        "task": "train",
        "device": "cpu",
        "train": _data(num_seqs, 1),
        "dev": _data(7, 2),
        "get_model": lambda **_: Net(),
        "train_step": mini_step,
        "batch_size": 100_000,
        "max_seqs": GLOBAL_BATCH // num_ranks,
        "num_workers_per_gpu": 0,
        "num_epochs": 2,
        "learning_rate": 0.1,
        "optimizer": {"class": "sgd", "momentum": 0.9},
        "log_verbosity": 5,
    }


def mainline_config(num_ranks: int) -> dict[str, Any]:
    """:return: the same in the dialect of RETURNN"""
    time_dim = Dim(None, name="time")
    return {
        **base_config(num_ranks),
        "train_step": mainline_step,
        "extern_data": {
            "data": {"dims": [batch_dim, time_dim, Dim(4, name="feature")], "dtype": "float32"},
            "classes": {"dims": [batch_dim, time_dim], "dtype": "int32", "sparse_dim": Dim(3, name="classes")},
        },
    }


def _dist(**opts: Any) -> dict[str, Any]:
    return {"torch_distributed": opts}


def _dynamic_rate(*, global_train_step: int, epoch_continuous: float | None, learning_rate: float, **_: Any) -> float:
    assert epoch_continuous is not None
    return learning_rate * (1 + epoch_continuous) / (1 + global_train_step)


def _dynamic_group(*, epoch_continuous: float | None, **_: Any) -> int:
    assert epoch_continuous is not None
    return 1 if epoch_continuous < 0.5 else 2


class OwnUpdater(Updater):
    """Its step uses the optimizer itself."""

    def step(self, loss: torch.Tensor, step_idx: int | None = None) -> None:
        """Without ours."""
        assert self.optimizer is not None
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step()


class TwoUpdatersEngine(Engine):
    """A custom engine: an updater for each layer, and its own training step."""

    def init_train(self, *args: Any, **kwargs: Any) -> None:
        """Replaces the updater."""
        super().init_train(*args, **kwargs)
        assert isinstance(self._model, Net)
        self._updater = {}
        for name in ("hidden", "output"):
            updater = Updater(
                config=self.config, network=getattr(self._model, name), device="cpu", initial_learning_rate=0.1
            )
            updater.create_optimizer()
            self._updater[name] = updater

    def init_train_epoch(self) -> None:
        """The learning rate stays."""

    def run_train_step(self, data: Any, run_ctx: Any, step_idx: int) -> Any:
        """One update after the other."""
        assert data is not None and self._model is not None
        for name, updater in self._updater.items():
            run_ctx.init_step(self._train_step)
            for param_name, param in self._model.named_parameters():
                param.requires_grad_(param_name.startswith(name))
            total = self._plain_step(data, run_ctx)
            updater.step(total, step_idx)
        return total, run_ctx.losses

    def save_model(self) -> None:
        """Nothing is saved."""

    def _save_optimizer(self) -> None:
        pass


class OwnUpdaterEngine(Engine):
    """With an updater that does not call ours."""

    def init_train(self, *args: Any, **kwargs: Any) -> None:
        """Replaces the updater."""
        super().init_train(*args, **kwargs)
        assert self._model is not None
        self._updater = OwnUpdater(config=self.config, network=self._model, device="cpu", initial_learning_rate=0.1)
        self._updater.create_optimizer()


class OwnLoopEngine(Engine):
    """With its own loop, but our steps."""

    def train_epoch(self) -> None:
        """Each rank its own data."""
        self._init_train_step_run_ctx(train=True)
        assert self._train_dataloader is not None
        for step_idx, data in enumerate(self._train_dataloader):
            run_ctx = get_run_ctx()
            run_ctx.init_step(self._train_step)
            self.run_train_step(data, run_ctx, step_idx)


class OwnLoopAndStepsEngine(OwnLoopEngine):
    """All its own."""

    def run_train_step(self, data: Any, run_ctx: Any, step_idx: int) -> Any:
        """No step at all."""

    def train_epoch(self) -> None:
        """Ends with a checkpoint."""
        super().train_epoch()
        self.save_model()


Variant = Callable[[int], dict[str, Any]]

#: name -> options for that number of ranks. What one process trains is the same as what the ranks train together.
EQUAL: dict[str, Variant] = {
    "ddp": lambda n: {**base_config(n), **_dist()},
    "ddp views": lambda n: {**base_config(n), **_dist(options={"gradient_as_bucket_view": True})},
    "explicit": lambda n: {**base_config(n), **_dist(reduce_type="grad_explicit")},
    "adamw": lambda n: {**base_config(n), "optimizer": {"class": "adamw", "weight_decay": 0.1}, "learning_rate": 0.01},
    "partial last step": lambda n: {**base_config(n, num_seqs=31)},
    "partial last step, explicit": lambda n: {**base_config(n, num_seqs=31), **_dist(reduce_type="grad_explicit")},
    "less data than ranks": lambda n: {**base_config(n, num_seqs=1)},
    "less data than ranks, explicit": lambda n: {**base_config(n, num_seqs=1), **_dist(reduce_type="grad_explicit")},
    "clip norm": lambda n: {**base_config(n), "gradient_clip_norm": 0.2},
    "clip norm, explicit": lambda n: {
        **base_config(n),
        "gradient_clip_norm": 0.2,
        **_dist(reduce_type="grad_explicit"),
    },
    "clip value": lambda n: {**base_config(n), "gradient_clip": 0.02},
    "unused parameter": lambda n: {
        **base_config(n),
        "get_model": lambda **_: Net("unused"),
        "optimizer": {"class": "adamw", "weight_decay": 0.5},
        **_dist(options={"find_unused_parameters": True}),
    },
    "unused parameter, explicit": lambda n: {
        **base_config(n),
        "get_model": lambda **_: Net("unused"),
        "optimizer": {"class": "adamw", "weight_decay": 0.5},
        **_dist(reduce_type="grad_explicit"),
    },
    "unused parameter, partial last step": lambda n: {
        **base_config(n, num_seqs=31),
        "get_model": lambda **_: Net("unused"),
        "optimizer": {"class": "adamw", "weight_decay": 0.5},
        **_dist(options={"find_unused_parameters": True}),
    },
    "late loss": lambda n: {**base_config(n), "train_step": late_loss_step},
    "inf loss": lambda n: {
        **base_config(n),
        "train_step": inf_step,
        "stop_on_nonfinite_train_score": False,
        "gradient_clip_norm": 0.2,
    },
    "inf loss, accumulation": lambda n: {
        **base_config(n),
        "train_step": inf_step,
        "stop_on_nonfinite_train_score": False,
        "accum_grad_multiple_step": 2,
    },
    "dynamic": lambda n: {
        **base_config(n, num_seqs=36),
        "dynamic_learning_rate": _dynamic_rate,
        "accum_grad_multiple_step": _dynamic_group,
    },
    "log grad norm": lambda n: {**base_config(n), "log_grad_norm": True},
    "workers": lambda n: {**base_config(n), "num_workers_per_gpu": 1},
    "mainline, normalised": lambda n: {
        **mainline_config(n),
        "train_step": mainline_normalised_step,
        **_dist(loss_normalization="global"),
    },
    "mainline, sums": lambda n: {**mainline_config(n), **_dist(loss_normalization="global")},
    "mainline, accumulation": lambda n: {
        **mainline_config(n),
        "accum_grad_multiple_step": 4,
        **_dist(loss_normalization="global", reduce_type="grad_explicit"),
    },
}
for _type, _options in (("grad", {"options": {"find_unused_parameters": True}}), ("grad_explicit", {})):
    # A layer that is only used in the first step of each group, so not in that which brings the gradients together.
    EQUAL[f"alternating {_type}"] = lambda n, kind=_type, options=_options: {  # type: ignore[misc]
        **base_config(n, num_seqs=36),
        "get_model": lambda **_: Net("alternating"),
        "accum_grad_multiple_step": 2,
        **_dist(reduce_type=kind, **options),
    }
for _leftover in ("carry", "drop", "flush"):
    for _type in ("grad", "grad_explicit"):
        EQUAL[f"accumulation {_leftover} {_type}"] = lambda n, leftover=_leftover, kind=_type: {  # type: ignore[misc]
            **base_config(n),
            "accum_grad_multiple_step": 4,
            "accum_grad_leftover": leftover,
            "gradient_clip_norm": 0.3,
            **_dist(reduce_type=kind),
        }

#: Ranks are the same among themselves, but not the same as one process.
OTHERS: dict[str, Variant] = {
    "param": lambda n: {**base_config(n), **_dist(reduce_type="param", param_sync_step=2)},
    "param on cpu": lambda n: {**base_config(n), **_dist(reduce_type="param", param_sync_step=2, sync_on_cpu=True)},
    "param, partial last step": lambda n: {
        **base_config(n, num_seqs=31),
        "accum_grad_multiple_step": 2,
        **_dist(reduce_type="param", param_sync_step=3),
    },
    "two updaters, param": lambda n: {
        **base_config(n, num_seqs=31),
        "CustomEngine": TwoUpdatersEngine,
        **_dist(reduce_type="param", param_sync_step=2),
    },
    "per rank": lambda n: {**base_config(n, num_seqs=31), **_dist(loss_normalization="per_rank")},
    "mainline": mainline_config,
    "stop": lambda n: {**base_config(n, num_seqs=31), **_dist(uneven="stop")},
    "batch norm": lambda n: {**base_config(n, num_seqs=31), "get_model": lambda **_: Net("batch_norm")},
    "batch norm, explicit": lambda n: {
        **base_config(n, num_seqs=31),
        "get_model": lambda **_: Net("batch_norm"),
        **_dist(reduce_type="grad_explicit"),
    },
    "sometimes": lambda n: {
        **base_config(n, num_seqs=31),
        "get_model": lambda **_: Net("sometimes"),
        **_dist(options={"find_unused_parameters": True}),
    },
    "sometimes, explicit": lambda n: {
        **base_config(n, num_seqs=31),
        "get_model": lambda **_: Net("sometimes"),
        **_dist(reduce_type="grad_explicit"),
    },
    "noise": lambda n: {**base_config(n), "gradient_noise": 0.1},
    "scaler": lambda n: {
        **base_config(n, num_seqs=31),
        "torch_amp": {"dtype": "bfloat16", "grad_scaler": {"init_scale": 4.0}},
        "gradient_clip_norm": 0.2,
    },
    "two updaters": lambda n: {**base_config(n, num_seqs=31), "CustomEngine": TwoUpdatersEngine},
    "own updater": lambda n: {**base_config(n, num_seqs=31), "CustomEngine": OwnUpdaterEngine},
    "peers": lambda n: {**base_config(n), **_dist(data="peers")},
}

#: The sentence that a training ends with on all ranks.
ERRORS: dict[str, Variant] = {
    "unused": lambda n: {**base_config(n), "get_model": lambda **_: Net("unused")},
    "no parameter": lambda n: {
        **base_config(n),
        "get_model": lambda **_: Net().requires_grad_(False),
    },
    "other model": lambda n: {
        **base_config(n),
        "get_model": lambda **_: Net("unused" if state.rank else "plain"),
    },
    "sync batch norm": lambda n: {
        **base_config(n),
        "get_model": lambda **_: torch.nn.SyncBatchNorm.convert_sync_batchnorm(Net("batch_norm")),
    },
    "ddp option": lambda n: {**base_config(n), **_dist(options={"find_unused_parameter": True})},
    "class": lambda n: {**base_config(n), **_dist(**{"class": "my_module.MyWrapper"})},
    "own loop": lambda n: {**base_config(n, num_seqs=31), "CustomEngine": OwnLoopEngine},
    "own loop and steps": lambda n: {**base_config(n, num_seqs=31), "CustomEngine": OwnLoopAndStepsEngine},
    "static graph": lambda n: {**base_config(n), **_dist(options={"static_graph": True})},
}


def train(options: dict[str, Any]) -> dict[str, Any]:
    """:return: parameters and buffers after the training, and scores; or the text of an error"""
    config = Config(options)
    ctx = get_distributed()
    if ctx is not None:
        ctx.options = DistributedOptions.from_config(config)
    with global_config_ctx(config):
        engine = options.get("CustomEngine", Engine)(config=config)
        try:
            engine.init_train()
            engine.train()
        except ReturnnError as exc:
            return {"error": str(exc)}
        finally:
            engine.close_loaders()
        assert engine._model is not None and engine.learning_rate_control is not None
        return {
            "model": {name: tensor.clone() for name, tensor in engine._model.state_dict().items()},
            "scores": {epoch: dict(engine.learning_rate_control.get_epoch_error_dict(epoch)) for epoch in (1, 2)},
            "num_calls": getattr(engine._model, "num_calls", None),
            "num_steps": engine._train_step,
            "draw": float(torch.rand(())),
        }


def main(folder: Path) -> None:
    """:param folder: for the results of all ranks"""
    set_process_rank(find_launch(job_systems=False))
    ctx = init_distributed(Config({"device": "cpu"}))
    assert ctx is not None
    results = {}
    for name, variant in {**EQUAL, **OTHERS, **ERRORS}.items():
        results[name] = train(variant(ctx.size))
        ctx.barrier()
    torch.save(results, folder / f"{ctx.size}-{ctx.rank}.pt")
    shutdown_distributed()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
    leave_in_order(0)  # as rnn.py: destructors of C++ libraries abort the process now and then
