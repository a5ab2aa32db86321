"""Whole trainings against golden data of Mini-RETURNN: every step's data, losses, log line; parameters; files."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import GOLDEN, run_rnn

TRAJ = GOLDEN / "06-engine" / "traj"
NAMES = ["a_linear_adam", "b_lstm_chunk_accum_sgd", "c_dropout_adamw_newbob"]


def _run(name: str, out: Path, num_epochs: int = 3, args: tuple[str, ...] = ()) -> str:
    out.mkdir(exist_ok=True)
    env = {"GOLDEN_OUT": str(out), "GOLDEN_EPOCHS": str(num_epochs)}
    return run_rnn(str(TRAJ / f"{name}.py"), *args, cwd=out, env=env).stdout


def _trace(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]


def _params(out: Path, epoch: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(out / "models" / f"epoch.{epoch:03d}.pt", weights_only=True)
    assert checkpoint["epoch"] == epoch
    return dict(checkpoint["model"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trajectory(name: str, tmp_path: Path) -> None:
    golden = json.loads((TRAJ / f"{name}.golden.json").read_text())
    stdout = _run(name, tmp_path)
    init = json.loads((tmp_path / "init_params.json").read_text())
    assert init == golden["init_params"]

    trace = _trace(tmp_path)
    assert len(trace) == len(golden["steps"])
    lines = re.findall(
        r"^((?:train|eval \w+) epoch \d+), step:(\d+), step time: [\d.]+(?:, total time: [\d.]+)?, "
        r"total \(grad\) loss: ([\d.]+), (.*)$",
        stdout,
        re.M,
    )
    assert len(lines) == len(trace)
    for got, expected, line in zip(trace, golden["steps"], lines, strict=True):
        for key in ("mode", "epoch", "global_step", "seq_tag", "seq_idx", "sizes"):
            assert got[key] == expected[key], (key, got, expected)
        for loss, (value, norm) in expected["losses"].items():
            assert got["losses"][loss] == [pytest.approx(value, rel=1e-6), norm]
        assert (line[0], int(line[1])) == (expected["log_prefix"], expected["log_step"])
        assert float(line[2]) == pytest.approx(expected["log_total_grad_loss"], abs=2e-6)
        assert line[3] == expected["log_losses"]

    for epoch, params in golden["params_after_epoch"].items():
        if not (tmp_path / "models" / f"epoch.{int(epoch):03d}.pt").exists():
            assert name.startswith("c_"), "only config c deletes old models"
            continue
        got_params = _params(tmp_path, int(epoch))
        assert set(got_params) == set(params)
        for key, value in params.items():
            expected_tensor = torch.tensor(value, dtype=torch.float64)
            assert torch.allclose(got_params[key].double(), expected_tensor, rtol=1e-6, atol=1e-8), (epoch, key)
    last = torch.load(tmp_path / "models" / "epoch.003.pt", weights_only=True)
    assert last["step"] == golden["checkpoint_step_after_epoch3"]
    assert (tmp_path / "learning_rates").read_text() == (TRAJ / f"{name}.learning_rates.txt").read_text()


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("num_workers", [0, 1])
def test_restart_equals_no_interruption(name: str, num_workers: int, tmp_path: Path) -> None:
    workers = ("++num_workers_per_gpu", str(num_workers))
    whole, parts = tmp_path / "whole", tmp_path / "parts"
    _run(name, whole, 3, workers)
    for num_epochs in (1, 2, 3):
        stdout = _run(name, parts, num_epochs, workers)
    assert "resume after epoch 2" in stdout
    assert _trace(parts) == _trace(whole)
    assert (parts / "learning_rates").read_text() == (whole / "learning_rates").read_text()
    for file in ("models/epoch.003.pt", "models/epoch.003.opt.pt"):
        _assert_equal(torch.load(parts / file, weights_only=True), torch.load(whole / file, weights_only=True), file)


def _assert_equal(a: Any, b: Any, where: str) -> None:  # Any: contents of checkpoints
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert a.keys() == b.keys(), where
        for key in a:
            if key in ("numpy", "python"):  # nobody seeds these, so two runs differ; nothing here draws from them
                continue
            _assert_equal(a[key], b[key], f"{where}/{key}")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_equal(x, y, f"{where}/{i}")
    else:
        assert a == b, where
