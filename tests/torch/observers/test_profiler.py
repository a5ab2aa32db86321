"""torch_profile: writes a trace, ends the program, and nothing else is written."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest

from returnn._state import state
from returnn.errors import OptionError
from returnn.options.observers import ObserverOptions, ProfileOptions
from tests.helpers import run_rnn, write_config
from tests.torch.observers.configs import config, train

SHORT = {"schedule": {"skip_first": 1, "wait": 0, "warmup": 1, "active": 1}, "with_stack": False}


@pytest.mark.parametrize("mainline", [False, True])
def test_trace_and_end(mainline: bool, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as exc_info:
        train(config(mainline=mainline, torch_profile={**SHORT, "filename": "out/trace.json"}))
    assert exc_info.value.code == 0
    assert sorted(os.listdir(".")) == ["out"] and os.listdir("out") == ["trace.json"]
    with open("out/trace.json") as f:
        names = {event.get("name") for event in json.load(f)["traceEvents"]}
    assert "aten::addmm" in names or "aten::linear" in names
    out = capsys.readouterr().out
    assert "Self CPU" in out and "aten::linear" in out and "done after 3 training steps" in out


def test_over_several_epochs_without_checkpoints() -> None:
    schedule = {"skip_first": 0, "wait": 4, "warmup": 1, "active": 1}
    with pytest.raises(SystemExit):
        train(config(torch_profile={"schedule": schedule, "with_stack": False}))
    assert os.listdir(".") == ["torch_profile.json"]


def test_repeat_and_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    schedule = {"skip_first": 0, "wait": 0, "warmup": 1, "active": 1, "repeat": 2}
    with pytest.raises(SystemExit):
        train(config(torch_profile={"schedule": schedule, "with_stack": False}))
    assert sorted(os.listdir(".")) == ["torch_profile.2.json", "torch_profile.json"]
    options = ProfileOptions.parse(True)
    assert options is not None
    from returnn.torch.observers.profiler import Profiler

    monkeypatch.setattr(state, "world_size", 2)
    monkeypatch.setattr(state, "rank", 1)
    assert Profiler(options).trace_filename == "torch_profile.rank1.json"


def test_too_short_run_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    train(config(torch_profile=True))
    assert os.listdir(".") == []
    assert "ended after 8 training steps, but its schedule needs 21" in capsys.readouterr().out


def test_defaults() -> None:
    options = ProfileOptions.parse(True)
    assert options is not None and options == ProfileOptions.parse({})
    assert options.arguments == dict.fromkeys(("profile_memory", "record_shapes", "with_stack", "with_flops"), True)
    assert options.schedule == {"skip_first": 10, "wait": 5, "warmup": 3, "active": 3, "repeat": 1}
    assert ProfileOptions.parse(False) is None and ProfileOptions.parse(None) is None


@pytest.mark.parametrize(
    "value",
    [
        "yes",
        {"shedule": {}},
        {"schedule": {"active": 0}},
        {"schedule": {"warm": 1}},
        {"activities": ["tpu"]},
        {"filename": ""},
        {"schedule": {"repeat": 0}},
    ],
)
def test_invalid(value: Any) -> None:
    with pytest.raises(OptionError, match="torch_profile"):
        ObserverOptions.from_config({"torch_profile": value})


@pytest.mark.slow
def test_program(tmp_path: Any) -> None:
    cfg = write_config(
        tmp_path / "config.py",
        """
        import numpy, torch
        task, device, num_epochs, batch_size = "train", "cpu", 3, 10
        _x = [{"data": numpy.ones((3, 2), "float32")} for _ in range(30)]
        train = dev = {"class": "StaticDataset", "data": _x, "output_dim": {"data": (2, 2)}}
        optimizer, model, learning_rate_file = {"class": "sgd"}, "net/epoch", "lr"
        torch_profile = {"schedule": {"skip_first": 2, "wait": 0}}

        def get_model(**_): return torch.nn.Linear(2, 1)

        def train_step(*, model, data, run_ctx, **_):
            run_ctx.mark_as_loss(model(data["data"]).sum(), "x")
        """,
    )
    proc = run_rnn(str(cfg), cwd=tmp_path)
    assert "wrote torch_profile.json" in proc.stdout and "Quitting" in proc.stdout + proc.stderr or proc.returncode == 0
    assert proc.returncode == 0
    assert not (tmp_path / "net").exists() and not (tmp_path / "lr").exists()
