"""returnn.torch.inner_checkpoints: stopping and going on inside an epoch changes nothing in the result."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.torch.engine import Engine
from returnn.util import stop_request
from tests.torch.test_engine import _config


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


class Killed(BaseException):
    """In place of SIGKILL."""


class Interrupted(Engine):
    """Is stopped, or killed, after some training steps."""

    stop_after: frozenset[int] = frozenset()
    kill_after: frozenset[int] = frozenset()

    def _after_update(self, step: int) -> None:
        super()._after_update(step)
        if step in self.stop_after:
            assert stop_request.request("test")

    def _call_run_train_step(self, data: Any, run_ctx: RunCtx, step_idx: int) -> Any:  # Any: as in the base
        if self._train_step in self.kill_after:
            raise Killed
        return super()._call_run_train_step(data, run_ctx, step_idx)


def _run(config: Config, *, seed: int, engine_class: type[Engine] = Interrupted) -> tuple[Engine, str]:
    """:return: engine, and how the run ended"""
    # What a process starts with is not what the training goes on with.
    random.seed(seed)
    numpy.random.seed(seed)
    torch.manual_seed(seed)
    engine = engine_class(config=config)
    try:
        engine.init_train()
        engine.train()
    except stop_request.TrainingStopped as exc:
        assert exc.code == stop_request.EXIT_CODE_STOPPED
        stop_request.forget()
        return engine, "stopped"
    except Killed:
        return engine, "killed"
    return engine, "done"


def _config_in(folder: str, opts: dict[str, Any]) -> Config:
    return _config(**{"model": f"{folder}/epoch", "learning_rate_file": f"{folder}/learning_rates", **opts})


def _whole_and_parts(
    opts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    stop_after: set[int],
    kill_after: set[int] | None = None,
    in_parts: dict[str, Any] | None = None,
) -> list[str]:
    """
    Train in one go, and with interruptions; all that stays must be the same.

    :param stop_after: numbers of training steps
    :param kill_after: such numbers
    :param in_parts: options for that run only
    :return: how the parts ended
    """
    whole, ended = _run(_config_in("whole", opts), seed=1)
    assert ended == "done"
    kills = set(kill_after or ())
    monkeypatch.setattr(Interrupted, "stop_after", frozenset(stop_after))
    ends = []
    for seed in [1, *range(100, 130)]:
        monkeypatch.setattr(Interrupted, "kill_after", frozenset(kills))
        parts, ended = _run(_config_in("parts", {**opts, **(in_parts or {})}), seed=seed)
        ends.append(ended)
        if ended == "killed":
            kills.remove(parts._train_step)
        if ended == "done":
            break
    assert ends[-1] == "done" and len(ends) == 1 + len(stop_after) + len(kill_after or ())
    assert sorted(os.listdir("whole")) == sorted(os.listdir("parts"))
    for name in sorted(os.listdir("whole")):
        if name.endswith(".pt"):
            a, b = (torch.load(f"{folder}/{name}", weights_only=True) for folder in ("whole", "parts"))
            _assert_same(a, b, name)
        elif name == "learning_rates":
            assert Path("whole", name).read_text() == Path("parts", name).read_text()
    return ends


def _assert_same(a: Any, b: Any, where: str) -> None:  # Any: what checkpoints consist of
    assert type(a) is type(b), where
    if isinstance(a, torch.Tensor):
        assert torch.equal(a, b), where
    elif isinstance(a, dict):
        assert set(a) == set(b), where
        for key in a:
            _assert_same(a[key], b[key], f"{where}[{key!r}]")
    elif isinstance(a, (list, tuple)):
        assert len(a) == len(b), where
        for i, (x, y) in enumerate(zip(a, b, strict=True)):
            _assert_same(x, y, f"{where}[{i}]")
    else:
        assert a == b or (a != a and b != b), where


def test_stopped_and_continued(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    _whole_and_parts({}, monkeypatch, stop_after={2, 3, 6})
    out = capsys.readouterr().out
    assert "Start: resume inside epoch 1, after training step 2 (over all epochs), from parts/epoch.001.step2" in out
    assert "Stopping (test) in epoch 1, after training step 2. All is saved, the next start goes on here." in out


def test_killed_and_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    _whole_and_parts({}, monkeypatch, stop_after=set(), kill_after={3, 5, 7}, in_parts={"save_every_steps": 2})
