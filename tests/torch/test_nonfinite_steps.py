"""Trainings in which some steps have a loss or gradients of inf or nan: as if those sequences were not there."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.engine.host_copy import HostCopy
from returnn.errors import NonFiniteGradientError, NonFiniteLossError
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.torch.engine import Engine
from returnn.torch.optim.gradients import nan_unless_finite
from returnn.torch.optim.skipped_updates import SkippedUpdates, batches_text

_BAD = 7.0


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[4])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _dataset(good: list[bool]) -> dict[str, Any]:
    """:return: options; bad sequences begin with a number that no other has"""
    data, num = [], 0
    for is_good in good:
        x = numpy.sin(numpy.arange(10, dtype="float32") + num).reshape(5, 2)
        if not is_good:
            x[0, 0] = _BAD
        num += is_good
        data.append({"data": x})
    return {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2)}}


def get_model(**_kwargs: object) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 1))


def _spoil_gradient(grad: torch.Tensor) -> torch.Tensor:
    return grad * math.nan


def _make_step(kind: str) -> Any:  # Any: a function of a config
    def train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        y = model(data["data"].flatten(0, 1))
        loss = y.square().mean()
        if run_ctx.train_flag and (data["data"][:, 0, 0] == _BAD).any():
            if kind == "gradient":
                y.register_hook(_spoil_gradient)
            elif kind == "hidden":  # the gradient does not show it
                loss = loss + torch.tensor(math.inf)
            else:
                loss = loss * float(kind)
        run_ctx.mark_as_loss(loss, "l")

    return train_step


def _train(good: list[bool], kind: str, model: str, **opts: Any) -> Engine:
    config = Config(
        {
            "task": "train",
            "device": "cpu",
            "train": _dataset(good),
            "dev": _dataset([True]),
            "get_model": get_model,
            "train_step": _make_step(kind),
            "max_seqs": 1,
            "num_workers_per_gpu": 0,
            "optimizer": {"class": "adam"},
            "learning_rate": 0.01,
            "num_epochs": 2,
            "model": model,
            "stop_on_nonfinite_train_score": False,
            **opts,
        }
    )
    engine = Engine(config=config)
    engine.init_train()
    engine.train()
    return engine


def _saved(model: str, epoch: int = 2) -> tuple[dict[str, Any], dict[str, Any]]:
    """:return: parameters and buffers, state of the optimizer. Any: tensors, as in the files"""
    whole, optimizer = (torch.load(f"{model}.{epoch:03d}{end}", weights_only=True) for end in (".pt", ".opt.pt"))
    return whole["model"], optimizer["state"]


@pytest.mark.parametrize("kind", ["nan", "inf", "hidden", "gradient"])
@pytest.mark.parametrize(
    "good", [[True, False, True, True, False], [False, True, True, True, True, True, False, False, True]]
)
def test_as_if_the_sequences_were_not_there(good: list[bool], kind: str, capsys: pytest.CaptureFixture[str]) -> None:
    of_all = _train(good, kind, "with/m").learning_rate_control
    out = capsys.readouterr().out
    of_good = _train([x for x in good if x], kind, "without/m").learning_rate_control
    assert of_all is not None and of_good is not None
    if kind in ("nan", "inf"):  # else the loss that is reported is finite
        assert of_all.get_epoch_error_dict(2) == of_good.get_epoch_error_dict(2)
    for of_with, of_without in zip(_saved("with/m"), _saved("without/m"), strict=True):
        assert str(of_with) == str(of_without)
    bad = [i for i, x in enumerate(good) if not x]
    for epoch in (1, 2):
        named = "; ".join(f"step {i + (epoch - 1) * len(good)}: seq-{i}" for i in bad)
        assert f"Epoch {epoch}: {len(bad)} updates skipped because of inf/nan. S{named[1:]}." in out
    what = (
        "inf or nan in the gradients, update skipped" if kind == "gradient" else "the loss is inf or nan, step skipped"
    )
    assert f"Warning: {what} (1 in succession, limit 3). Step {bad[0]}: seq-{bad[0]}." in out


@pytest.mark.parametrize("kind", ["nan", "gradient"])
def test_when_it_stops_the_model_is_as_before(kind: str) -> None:
    """Also its buffers: what is saved now is right."""
    engines: list[Engine] = []

    class KeptEngine(Engine):
        def init_train(self, *args: Any, **kwargs: Any) -> None:  # Any: datasets
            engines.append(self)
            super().init_train(*args, **kwargs)

    good = [True] * 6 + [False] * 3
    opts = {"stop_on_nonfinite_train_score": True, "num_epochs": 1}
    with pytest.raises((NonFiniteLossError, NonFiniteGradientError)) as info, pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "Engine", KeptEngine)
        _train(good, kind, "stopped/m", **opts)
    if kind == "nan":
        assert "step 6" in str(info.value) and "seq-6" in str(info.value)
    assert not os.path.exists("stopped/m.001.pt")
    _train(good[:6], kind, "whole/m", **opts)
    assert engines[0]._model is not None
    assert str(dict(engines[0]._model.state_dict())) == str(dict(_saved("whole/m", 1)[0]))


def test_loss_without_a_trace_in_the_gradients() -> None:
    """What other devices than the CPU do, which must not be waited for."""
    w = torch.ones(3, requires_grad=True)
    for value in (0.0, math.inf, math.nan):
        loss = nan_unless_finite((2 * w).sum() + value)
        (grad,) = torch.autograd.grad(loss, w)
        assert grad.tolist() == [2.0] * 3 if math.isfinite(value) else grad.isnan().all()
    assert nan_unless_finite(torch.tensor(0.1, dtype=torch.float64)).item() == 0.1


def test_batches_on_a_device_are_named_when_it_tells(capsys: pytest.CaptureFixture[str]) -> None:
    skipped = SkippedUpdates(None)
    for step in range(60):
        skipped.group.append((step, [f"s{step}"]))
        skipped.count_on_device(torch.tensor(float(step in (3, 4, 55))))
    assert skipped.num_skipped == 3
    out = capsys.readouterr().out
    assert "2 updates skipped, at most 2 in succession. Step 3: s3; step 4: s4." in out
    assert "1 updates skipped, at most 1 in succession. Step 55: s55." in out
    assert skipped.take_batches() == ((3, ["s3"]), (4, ["s4"]), (55, ["s55"]))


def test_skips_are_noticed_when_their_numbers_come(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody waits for them; too many in succession end the training then, also if two groups of numbers are on their way."""
    is_ready = False
    monkeypatch.setattr(HostCopy, "is_ready", lambda self: is_ready)
    skipped = SkippedUpdates(5)
    for step in range(120):
        skipped.count_on_device(torch.tensor(float(step in (3, 47, 48, 49, 50, 51))))
    assert capsys.readouterr().out == ""
    is_ready = True
    with pytest.raises(NonFiniteGradientError, match="5 invalid gradients in succession"):
        skipped.count_on_device(torch.tensor(0.0))
    assert "4 updates skipped, at most 3 in succession" in capsys.readouterr().out
    assert skipped.num_skipped == 6


def test_skips_on_the_host_and_on_the_device_are_in_order() -> None:
    """A custom engine may skip steps itself, where the updates tell later what became of them."""
    skipped = SkippedUpdates(3)
    for _ in range(2):
        skipped.count_skipped("loss")
        skipped.check()
    skipped.count_on_device(torch.tensor(0.0))
    skipped.count_skipped("loss")
    skipped.check()
    assert skipped.num_in_succession == 1 and skipped.num_skipped == 3
    skipped.count_on_device(torch.tensor(1.0))
    skipped.count_valid()
    assert skipped.num_in_succession == 0
    for _ in range(2):
        skipped.count_on_device(torch.tensor(1.0))
    skipped.count_skipped("loss")
    with pytest.raises(NonFiniteGradientError, match="3 invalid gradients in succession"):
        skipped.check()


def test_batches_text() -> None:
    assert batches_text([(1, ["a", "b", "c"]), (5, ["d"])], num_tags=2) == "Step 1: a, b and 1 more; step 5: d"
    assert batches_text([(i, ["x"]) for i in range(7)], num_steps=2) == "Step 0: x; step 1: x; 5 more steps"
