"""
A training step without a due log line does not wait for the device.

Tensors of the device "meta" have no data: whatever needs a number of them fails. So a training there goes on only as long as nothing
asks the device, which is checked without a GPU. On CUDA the same trainings run in a mode in which torch refuses to wait.
"""

from __future__ import annotations

import pathlib
import sys
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import returnn.frontend as rf
from returnn._state import process_state_ctx
from returnn.engine.host_copy import HostCopy
from returnn.log import log
from returnn.torch import buffer_guard
from returnn.torch.engine import Engine
from tests.torch.test_engine import _config, _dataset, train_step

_FUSED_DEVICES = "_get_fused_kernels_supported_devices"
_NUM_STEPS = 120  # over all intervals in which numbers are sent to the host


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[1])  # no lines
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


class _Enough(Exception):
    """Ends the training between two steps."""


class _Model(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(2, 4)
        self.norm = torch.nn.BatchNorm1d(4)
        self.out = torch.nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        hidden = self.norm(self.inner(x).flatten(0, 1)).unflatten(0, x.shape[:2])
        out: torch.Tensor = self.out(torch.tanh(hidden))
        return out


def _mainline_step(*, model: torch.nn.Module, extern_data: Any, **_kwargs: object) -> None:
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model(data.raw_tensor)
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), classes.raw_tensor.long(), reduction="none")
    rf.get_run_ctx().mark_as_loss(ce, "ce", dims=classes.dims, use_normalized_loss=True)
    wrong = logits.argmax(-1) != classes.raw_tensor
    rf.get_run_ctx().mark_as_loss(wrong, "fer", dims=classes.dims, as_error=True)


_MAINLINE: dict[str, Any] = {
    "extern_data": {"data": {"dim": 2}, "classes": {"dim": 3, "sparse": True}},
    "train_step": _mainline_step,
}

OPTIONS: dict[str, dict[str, Any]] = {
    "mini": {},
    "mainline": _MAINLINE,
    "clipping": {"gradient_clip_global_norm": 1.0},
    "clipping by value, mainline": {**_MAINLINE, "gradient_clip": 0.5},
    "noise and accumulation": {"gradient_noise": 0.1, "accum_grad_multiple_step": 3},
    "norm of gradients, mainline": {**_MAINLINE, "log_grad_norm": True, "gradient_clip_global_norm": 5.0},
    "average of weights": {"ema": {"decay": 0.99}},
    "learning rate by step": {
        "dynamic_learning_rate": lambda *, global_train_step, **_kwargs: 0.1 / (1 + global_train_step)
    },
    "sgd": {"optimizer": {"class": "sgd", "momentum": 0.9}},
}


def _engine(device: str, opts: dict[str, Any]) -> Engine:
    optimizer = dict(opts.get("optimizer", {"class": "adam"}))
    if device == "meta":
        optimizer["fused"] = True  # as by default on CUDA
    config = _config(
        **{
            "train": _dataset(2 * _NUM_STEPS + 2),
            "train_step": train_step,
            "get_model": lambda **_kwargs: _Model(),
            "max_seqs": 2,
            "batch_size": 1000,
            **opts,
            "device": device,
            "optimizer": optimizer,
        }
    )
    engine = Engine(config=config)
    engine.init_train()
    return engine


def _train(engine: Engine, monkeypatch: pytest.MonkeyPatch, *, from_step: int = 0) -> int:
    """
    :param from_step: waiting is refused from this step on
    :return: steps that were done
    """
    steps = engine.run_train_step
    num_steps = 0

    def _step(*args: Any, **kwargs: Any) -> Any:
        nonlocal num_steps
        if num_steps == from_step and engine._device != "meta":
            torch.cuda.set_sync_debug_mode("error")
        if num_steps == _NUM_STEPS:
            raise _Enough
        num_steps += 1
        return steps(*args, **kwargs)

    monkeypatch.setattr(engine, "run_train_step", _step)
    try:
        with pytest.raises(_Enough):
            engine.train()
    finally:
        if torch.cuda.is_available():
            torch.cuda.set_sync_debug_mode("default")
    return num_steps


@pytest.mark.parametrize("case", OPTIONS)
def test_steps_need_no_number_of_the_device(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """On the device without data. The queue of numbers on their way is never ready."""
    monkeypatch.setattr(sys.modules[torch.optim.Optimizer.__module__], _FUSED_DEVICES, lambda: ["meta"])
    monkeypatch.setattr(
        torch, "_fused_sgd_", lambda *args, **kwargs: None
    )  # the only one that torch does not have there
    monkeypatch.setattr(HostCopy, "is_ready", lambda self: False)
    # In its first four steps the guard of buffers compares them.
    monkeypatch.setattr(buffer_guard._Copies, "changed", lambda self: [])
    engine = _engine("meta", OPTIONS[case])
    assert _train(engine, monkeypatch) == _NUM_STEPS


def test_waiting_is_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    """The check above fails if a step asks for a number."""

    def _step(**kwargs: Any) -> None:
        train_step(**kwargs)
        if kwargs["model"].out.weight.sum() > 0:
            raise AssertionError("this has no value")

    monkeypatch.setattr(sys.modules[torch.optim.Optimizer.__module__], _FUSED_DEVICES, lambda: ["meta"])
    monkeypatch.setattr(buffer_guard._Copies, "changed", lambda self: [])
    with pytest.raises(RuntimeError, match="meta tensors"):
        _train(_engine("meta", {"train_step": _step}), monkeypatch)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")
@pytest.mark.parametrize("case", [*OPTIONS, "float16", "bfloat16"])
def test_cuda_steps_do_not_wait(case: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """torch refuses to wait, after the first steps of warming up."""
    opts = OPTIONS[case] if case in OPTIONS else {"torch_amp": case}
    engine = _engine("cuda", opts)
    assert _train(engine, monkeypatch, from_step=8) == _NUM_STEPS


def test_numbers_in_the_order_of_the_tensors() -> None:
    """Of several types; exact."""
    values = [1.5, 3, -2.25, 7, 2**53 - 1]
    types = [torch.float32, torch.int64, torch.bfloat16, torch.int64, torch.float64]
    tensors = [torch.tensor(v, dtype=t, requires_grad=t.is_floating_point) for v, t in zip(values, types, strict=True)]
    copy = HostCopy([tensor.reshape([1] * (i % 3)) for i, tensor in enumerate(tensors)])
    assert copy.is_ready()
    with torch.no_grad():
        tensors[0] += 1
    assert copy.numbers() == values, "as they were"
    assert HostCopy([]).numbers() == [] and HostCopy([]).is_ready()
