"""Options of the optimizer that the engine has a part in, in both dialects: functions of the position, reported norms, leftovers."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

import returnn.frontend as rf
from returnn._state import process_state_ctx
from returnn.errors import OptionError
from returnn.log import log
from returnn.torch.engine import Engine
from tests.torch.test_engine import _config, _dataset, _params, _scores, _train


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _mainline_step(*, model: torch.nn.Module, extern_data: Any, **_kwargs: object) -> None:
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model(data.raw_tensor)
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), classes.raw_tensor.long(), reduction="none")
    rf.get_run_ctx().mark_as_loss(ce, "ce", dims=classes.dims, use_normalized_loss=True)


#: 9 sequences in 5 batches.
_DATA: dict[str, Any] = {"train": _dataset(9), "max_seqs": 2, "batch_size": 1000}
_DIALECTS: dict[str, dict[str, Any]] = {
    "mini": {},
    "mainline": {
        "extern_data": {"data": {"dim": 2}, "classes": {"dim": 3, "sparse": True}},
        "train_step": _mainline_step,
    },
}


@pytest.fixture(params=sorted(_DIALECTS))
def dialect(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {**_DATA, **_DIALECTS[request.param]}


def _position(kwargs: dict[str, Any]) -> tuple[int, float, int]:
    return kwargs["global_train_step"], round(kwargs["epoch_continuous"], 3), kwargs["epoch"]


_POSITIONS = [
    *[(0, 0.0, 1), (1, 0.222, 1), (2, 0.444, 1), (3, 0.667, 1), (4, 0.889, 1)],
    *[(5, 1.0, 2), (6, 1.222, 2), (7, 1.444, 2), (8, 1.667, 2), (9, 1.889, 2)],
]


def test_learning_rate_of_each_step(dialect: dict[str, Any]) -> None:
    calls: list[tuple[int, float, int]] = []
    rates: list[float] = []

    def dynamic_learning_rate(*, learning_rate: float, **kwargs: Any) -> float:
        calls.append(_position(kwargs))
        return learning_rate / (1 + float(kwargs["global_train_step"]))

    class OwnEngine(Engine):
        def run_train_step(self, data: Any, run_ctx: Any, step_idx: int) -> Any:
            result = super().run_train_step(data, run_ctx, step_idx)
            rates.append(self._updater.optimizer.param_groups[0]["lr"])
            return result

    _train(_config(**dialect, num_epochs=2, dynamic_learning_rate=dynamic_learning_rate), OwnEngine)
    assert rates == [0.01 / (1 + step) for step in range(10)]
    assert sorted(set(calls) - {(5, 1.0, 1), (10, 2.0, 2)}) == _POSITIONS
    assert torch.load("models/epoch.001.pt", weights_only=True)["effective_learning_rate"] == 0.01 / 6


def test_learning_rate_of_each_step_after_a_restart(dialect: dict[str, Any]) -> None:
    def dynamic_learning_rate(*, learning_rate: float, epoch_continuous: float, **_kwargs: object) -> float:
        return learning_rate * (1.0 - 0.1 * epoch_continuous)

    opts = {**dialect, "dynamic_learning_rate": dynamic_learning_rate}
    whole = _params(_train(_config(**opts)))
    shutil.rmtree("models")
    os.remove("learning_rates")
    for num_epochs in (1, 3):
        engine = _train(_config(**opts, num_epochs=num_epochs))
    for name, value in _params(engine).items():
        assert torch.equal(value, whole[name]), name


def test_accumulation_by_a_function(dialect: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    calls: list[tuple[int, float, int]] = []

    def accum_grad_multiple_step(**kwargs: Any) -> int:
        calls.append(_position(kwargs))
        return int(kwargs["epoch"]) + 1

    _train(_config(**dialect, num_epochs=2, accum_grad_multiple_step=accum_grad_multiple_step))
    assert calls == _POSITIONS
    out = capsys.readouterr().out
    mode, what = ("drop", "are dropped") if "extern_data" in dialect else ("carry", "are added to the first group")
    assert f"the last 1 steps of the epoch are no complete group; their gradients {what}" in out
    assert f'(accum_grad_leftover = "{mode}").' in out


@pytest.mark.parametrize("mode", ["carry", "drop", "flush"])
def test_leftovers_are_said_in_the_log(mode: str, dialect: dict[str, Any], capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(**dialect, num_epochs=1, accum_grad_multiple_step=3, accum_grad_leftover=mode))
    assert "the last 2 steps of the epoch are no complete group; their gradients" in (out := capsys.readouterr().out)
    assert f'(accum_grad_leftover = "{mode}").' in out


def test_norm_of_the_gradients_in_scores_and_step_lines(
    dialect: dict[str, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    _train(_config(**dialect, num_epochs=1, accum_grad_multiple_step=2, log_grad_norm=True))
    key = "train_loss_grad_norm:p2" if "extern_data" in dialect else "grad_norm:p2"
    scores = _scores(1)
    assert scores[key] > 0 and "dev_loss_grad_norm:p2" not in scores
    lines = [
        line
        for line in capsys.readouterr().out.splitlines()
        if "1 train, step" in line or "train epoch 1, step" in line
    ]
    assert ["grad_norm:p2" in line for line in lines] == [False, True, False, True, False]
    assert key.removeprefix("train_loss_") not in " ".join(k for k in scores if k.startswith("dev"))


def test_functions_without_kwargs_end_at_the_start(dialect: dict[str, Any]) -> None:
    config = _config(**dialect, dynamic_learning_rate=lambda *, learning_rate: learning_rate)
    with pytest.raises(OptionError, match=r'option "dynamic_learning_rate" .* a function with \*\*kwargs'):
        Engine(config=config).init_train()
