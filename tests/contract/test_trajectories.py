"""Whole trainings against golden data of the peers: every step's data, losses, log line; parameters; files."""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.helpers import GOLDEN, run_rnn

TRAJ = GOLDEN / "06-engine" / "traj"
NAMES = ["a_linear_adam", "b_lstm_chunk_accum_sgd", "c_dropout_adamw_newbob"]
MAINLINE = "d_mainline_raw_torch"


def _run(name: str, out: Path, num_epochs: int = 3, *, num_workers: int) -> str:
    out.mkdir(exist_ok=True)
    env = {"GOLDEN_OUT": str(out), "GOLDEN_EPOCHS": str(num_epochs)}
    args = [str(TRAJ / f"{name}.py"), "++num_workers_per_gpu", str(num_workers)]
    if name == MAINLINE:  # it has its own spelling of these
        args = [args[0], "++num_epochs", str(num_epochs)]
        args += ["++torch_dataloader_opts", f"{{'num_workers': {num_workers}}}"]
    return run_rnn(*args, cwd=out, env=env).stdout


#: (name, number of workers) -> folder and output of a run without interruption.
WholeRun = Callable[[str, int], tuple[Path, str]]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> WholeRun:
    @functools.cache
    def run(name: str, num_workers: int) -> tuple[Path, str]:
        out = tmp_path_factory.mktemp(name)
        return out, _run(name, out, num_workers=num_workers)

    return run


def _trace(out: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (out / "trace.jsonl").read_text().splitlines()]


def _params(out: Path, epoch: int) -> dict[str, torch.Tensor]:
    checkpoint = torch.load(out / "models" / f"epoch.{epoch:03d}.pt", weights_only=True)
    assert checkpoint["epoch"] == epoch
    return dict(checkpoint["model"])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_trajectory(name: str, whole: WholeRun) -> None:
    golden = json.loads((TRAJ / f"{name}.golden.json").read_text())
    out, stdout = whole(name, 1 if name.startswith("b_") else 0)  # as in the config
    init = json.loads((out / "init_params.json").read_text())
    assert init == golden["init_params"]

    trace = _trace(out)
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
        if not (out / "models" / f"epoch.{int(epoch):03d}.pt").exists():
            assert name.startswith("c_"), "only config c deletes old models"
            continue
        got_params = _params(out, int(epoch))
        assert set(got_params) == set(params)
        for key, value in params.items():
            expected_tensor = torch.tensor(value, dtype=torch.float64)
            assert torch.allclose(got_params[key].double(), expected_tensor, rtol=1e-6, atol=1e-8), (epoch, key)
    last = torch.load(out / "models" / "epoch.003.pt", weights_only=True)
    assert last["step"] == golden["checkpoint_step_after_epoch3"]
    assert (out / "learning_rates").read_text() == (TRAJ / f"{name}.learning_rates.txt").read_text()


@pytest.mark.slow
def test_trajectory_in_the_mainline_dialect(whole: WholeRun) -> None:
    golden = json.loads((TRAJ / f"{MAINLINE}.golden.json").read_text())
    out, stdout = whole(MAINLINE, 0)
    assert json.loads((out / "init_params.json").read_text()) == golden["init_params"]
    trace = _trace(out)
    assert len(trace) == len(golden["steps"])
    lines = re.findall(
        r"^(ep \d+ (?:train|\w+ eval), step \d+, .*?)(?:, [\d.]+ sec/step)?"
        r", elapsed \d:\d\d:\d\d, exp\. remaining \d:\d\d:\d\d, complete [\d.]+%$",
        stdout,
        re.M,
    )
    assert lines == [step["log"] for step in golden["steps"]]
    for got, expected in zip(trace, golden["steps"], strict=True):
        for key in ("mode", "epoch", "step", "seq_tag", "seq_len"):
            assert got[key] == expected[key], (key, got, expected)
        assert got["total_loss"] == pytest.approx(expected["total_loss"], rel=1e-6)
        assert list(got["losses"]) == list(expected["losses"])
        for loss, (value, norm) in expected["losses"].items():
            assert got["losses"][loss] == [pytest.approx(value, rel=1e-6), norm]
    for epoch, params in golden["params_after_epoch"].items():
        got_params = _params(out, int(epoch))
        assert set(got_params) == set(params)
        for key, value in params.items():
            expected_tensor = torch.tensor(value, dtype=torch.float64)
            assert torch.allclose(got_params[key].double(), expected_tensor, rtol=1e-6, atol=1e-8), (epoch, key)
    assert (
        _without_machine((out / "learning_rates").read_text()) == (TRAJ / f"{MAINLINE}.learning_rates.txt").read_text()
    )


def _without_machine(learning_rates: str) -> str:
    """:return: without what differs between machines, as in the golden file"""
    text = re.sub(r"(':meta:(?:cpu|hostname|returnn|time|torch)': )'[^'\n]+'", r"\1'<removed>'", learning_rates)
    return re.sub(r"(':meta:epoch_train_time_secs': )\d+", r"\g<1>0", text)


@pytest.mark.slow
@pytest.mark.parametrize("name", [*NAMES, MAINLINE])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_restart_equals_no_interruption(name: str, num_workers: int, whole: WholeRun, tmp_path: Path) -> None:
    expected, _ = whole(name, num_workers)
    for num_epochs in (1, 2, 3) if not num_workers else (2, 3):
        stdout = _run(name, tmp_path, num_epochs, num_workers=num_workers)
    assert "resume after epoch 2" in stdout
    assert _trace(tmp_path) == _trace(expected)
    learning_rates = [(folder / "learning_rates").read_text() for folder in (tmp_path, expected)]
    assert _without_machine(learning_rates[0]) == _without_machine(learning_rates[1])
    for file in ("models/epoch.003.pt", "models/epoch.003.opt.pt"):
        _assert_equal(
            torch.load(tmp_path / file, weights_only=True), torch.load(expected / file, weights_only=True), file
        )


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
    elif isinstance(a, str):  # e.g. the learning rates in a checkpoint
        assert _without_machine(a) == _without_machine(b), where
    else:
        assert a == b, where
