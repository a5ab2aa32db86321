"""use_tensorboard: which scalars at which steps, also after a restart."""

from __future__ import annotations

import importlib
import os
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import pytest

from returnn._state import state
from returnn.errors import MissingDependencyError, OptionError
from returnn.options.observers import ObserverOptions
from tests.torch.observers.configs import config, train

pytest.importorskip("tensorboard")


def _scalars(folder: str) -> dict[str, list[tuple[int, float]]]:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(folder)
    events.Reload()
    return {tag: [(e.step, e.value) for e in events.Scalars(tag)] for tag in events.Tags()["scalars"]}


@pytest.mark.parametrize("mainline", [False, True])
def test_scalars(mainline: bool) -> None:
    opts: dict[str, Any] = {
        "use_tensorboard": True,
        "tensorboard_opts": {"log_every_n_train_steps": 3},
        "calculate_exp_loss": True,
    }
    train(config(mainline=mainline, **opts))
    scalars = _scalars("models/tensorboard")
    other = "err" if mainline else "huge"
    assert [step for step, _ in scalars["train/sq"]] == [0, 3, 6]
    assert [step for step, _ in scalars["dev/sq"]] == [4, 8]
    assert {"train/sq:exp", f"train/{other}", "dev/sq:exp", f"dev/{other}"} < set(scalars)
    assert scalars["train/learning_rate"] == [(step, pytest.approx(0.01)) for step in (0, 3, 6)]


def test_without_step_lines(capsys: pytest.CaptureFixture[str]) -> None:
    from returnn.log import log

    log.initialize(verbosity=[3])
    train(config(use_tensorboard=True, tensorboard_opts={"log_every_n_train_steps": 2, "log_dir": "tb"}))
    assert [step for step, _ in _scalars("tb")["train/sq"]] == [0, 2, 4, 6]
    assert "writing to tb" in capsys.readouterr().out


def test_steps_go_on_after_restart() -> None:
    opts: dict[str, Any] = {"use_tensorboard": True, "tensorboard_opts": {"log_every_n_train_steps": 1}}
    train(config(num_epochs=1, **opts))
    train(config(num_epochs=2, **opts))
    scalars = _scalars("models/tensorboard")
    assert [step for step, _ in scalars["train/sq"]] == list(range(8))
    assert [step for step, _ in scalars["dev/sq"]] == [4, 8]
    # The last epoch once more: its old values are hidden.
    os.remove("models/epoch.002.pt")
    os.remove("models/epoch.002.opt.pt")
    train(config(num_epochs=2, **opts))
    steps = [step for step, _ in _scalars("models/tensorboard")["train/sq"]]
    assert steps == [0, 1, 2, 3, 4, 4, 5, 6, 7]  # the first one again, with the same value


def test_only_the_first_rank_writes(monkeypatch: pytest.MonkeyPatch) -> None:
    from returnn.torch.observers.create import create_observers

    observer = create_observers(config(use_tensorboard=True))[0]

    class _Engine:
        _train_step = 0

        def _should_write_to_disk(self) -> bool:
            return state.rank == 0

    monkeypatch.setattr(state, "rank", 1)
    observer.start_pass("train", engine=_Engine())  # type: ignore[arg-type]
    assert not observer.wants_losses("train", step=0, global_step=0)
    observer.end_pass("dev", epoch=1, scores={"a": 1.0})
    observer.close()
    assert not os.path.exists("models")


def test_dry_run_writes_nothing() -> None:
    train(config(use_tensorboard=True, dry_run=True))
    assert not os.path.exists("models")


def test_missing_package(monkeypatch: pytest.MonkeyPatch) -> None:
    original = importlib.import_module

    def fail(name: str, package: str | None = None) -> ModuleType:
        if name == "torch.utils.tensorboard":
            raise ModuleNotFoundError("No module named 'tensorboard'", name="tensorboard")
        return original(name, package)

    monkeypatch.setattr(importlib, "import_module", fail)
    with pytest.raises(MissingDependencyError, match=r"(?s)use_tensorboard.*pip install tensorboard"):
        train(config(use_tensorboard=True))
    assert not os.path.exists("models")


@pytest.mark.parametrize(
    "opts", [{"log_every_n_train_steps": 0}, {"log_every_n_train_steps": 2.5}, {"log_every": 1}, [1], {"log_dir": 3}]
)
def test_invalid(opts: Mapping[str, Any]) -> None:
    with pytest.raises(OptionError, match="tensorboard_opts"):
        ObserverOptions.from_config({"use_tensorboard": True, "tensorboard_opts": opts})
