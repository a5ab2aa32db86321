"""returnn.torch.inner_checkpoints: stopping and going on inside an epoch changes nothing in the result."""

from __future__ import annotations

import functools
import os
import random
import re
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.engine.inner_files import inner_checkpoints
from returnn.engine.pauses import PausePlan
from returnn.errors import CheckpointError, DatasetError, UserError
from returnn.frontend.run_ctx import RunCtx
from returnn.log import log
from returnn.torch import inner_checkpoints as inner_checkpoints_module
from returnn.torch import inner_start
from returnn.torch.engine import Engine
from returnn.torch.inner_checkpoints import InnerCheckpoints
from returnn.util import stop_request
from tests.torch.test_engine import _config, _dataset


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
    """Is stopped, or killed, after some training steps, and is stopped in some evaluation steps."""

    stop_after: frozenset[int] = frozenset()
    kill_after: frozenset[int] = frozenset()
    #: by number of training steps; one is taken away by each stop
    stops_in_eval: dict[int, int] = {}

    def run_eval_step(self, data: Any, run_ctx: RunCtx) -> Any:  # Any: as in the base
        if self.stops_in_eval.get(self._train_step, 0) > 0:
            self.stops_in_eval[self._train_step] -= 1
            assert stop_request.request("test in eval")
        return super().run_eval_step(data, run_ctx)

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


def whole_and_parts(
    opts: dict[str, Any],
    monkeypatch: pytest.MonkeyPatch,
    *,
    stop_after: set[int],
    kill_after: set[int] | None = None,
    stops_in_eval: dict[int, int] | None = None,
    make_config: Callable[[str, dict[str, Any]], Config] | None = None,
    engine_class: type[Interrupted] = Interrupted,
    num_more_stops: int = 0,
    in_parts: dict[str, Any] | None = None,
) -> list[str]:
    """
    Train in one go, and with interruptions; all that stays must be the same.

    :param stop_after: numbers of training steps
    :param kill_after: such numbers
    :param stops_in_eval: how often in the evaluation after so many training steps
    :param make_config: of the folder of the files, and the options
    :param engine_class: of both runs
    :param num_more_stops: that the engine class does by itself
    :param in_parts: options for that run only
    :return: how the parts ended
    """
    make_config = make_config or _config_in
    for name in ("stop_after", "kill_after"):
        monkeypatch.setattr(Interrupted, name, frozenset())
    monkeypatch.setattr(Interrupted, "stops_in_eval", {})
    for folder in ("whole", "parts"):
        shutil.rmtree(folder, ignore_errors=True)
    whole, ended = _run(make_config("whole", opts), seed=1, engine_class=engine_class)
    assert ended == "done"
    kills = set(kill_after or ())
    num_stops = len(stop_after) + len(kills) + sum((stops_in_eval or {}).values()) + num_more_stops
    monkeypatch.setattr(Interrupted, "stops_in_eval", dict(stops_in_eval or {}))
    monkeypatch.setattr(Interrupted, "stop_after", frozenset(stop_after))
    ends = []
    for seed in [1, *range(100, 130)]:
        monkeypatch.setattr(Interrupted, "kill_after", frozenset(kills))
        parts, ended = _run(make_config("parts", {**opts, **(in_parts or {})}), seed=seed, engine_class=engine_class)
        ends.append(ended)
        if ended == "killed":
            kills.remove(parts._train_step)
        if ended == "done":
            break
    assert ends[-1] == "done" and len(ends) == 1 + num_stops
    assert sorted(os.listdir("whole")) == sorted(os.listdir("parts"))
    for name in sorted(os.listdir("whole")):
        if name.endswith(".pt"):
            a, b = (torch.load(f"{folder}/{name}", weights_only=True) for folder in ("whole", "parts"))
            _assert_same(a, b, name)
        elif name == "learning_rates":
            assert _without_times(Path("whole", name).read_text()) == _without_times(Path("parts", name).read_text())
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
    elif isinstance(a, str):
        assert _without_times(a) == _without_times(b), where
    else:
        assert a == b or (a != a and b != b), where


def _without_times(learning_rates: str) -> str:
    """:return: without the facts of the mainline dialect that tell when and how long"""
    return re.sub(r"':meta:(time|epoch_train_time_secs)': .*\n", "", learning_rates)


def test_stopped_and_continued(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    whole_and_parts({}, monkeypatch, stop_after={2, 3, 6})
    out = capsys.readouterr().out
    assert "Start: resume inside epoch 1, after training step 2 (over all epochs), from parts/epoch.001.step2" in out
    assert "Stopping (test) in epoch 1, after training step 2." in out


def test_killed_and_continued(monkeypatch: pytest.MonkeyPatch) -> None:
    whole_and_parts({}, monkeypatch, stop_after=set(), kill_after={3, 5, 7}, in_parts={"save_every_steps": 2})


CASES: dict[str, dict[str, Any]] = {
    "accum": {"accum_grad_multiple_step": 4},
    "accum, dropped": {"accum_grad_multiple_step": 4, "accum_grad_leftover": "drop"},
    "accum, flushed": {"accum_grad_multiple_step": 4, "accum_grad_leftover": "flush"},
    "ema": {"ema": {"decay": 0.9, "start_step": 3, "eval": True}},
    "bfloat16": {"torch_amp_options": {"dtype": "bfloat16"}},
    "chunks": {"chunking": "3:2", "batch_size": 9},
    "max_seqs, reversed": {"max_seqs": 2, "train": _dataset(12, seq_ordering="reverse")},
    "newbob": {
        "learning_rate_control": "newbob",
        "learning_rate_file": None,
        "newbob_relative_error_threshold": -0.5,
    },
    "noise": {"gradient_noise": 0.1, "gradient_clip_norm": 0.5, "log_grad_norm": True},
    "save_interval": {"save_interval": 2},
}


@pytest.mark.parametrize("name", CASES)
def test_all_kinds_of_state(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    whole_and_parts(CASES[name], monkeypatch, stop_after={1, 4, 8, 9, 10})


def test_stopped_in_the_evaluation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """save_interval: there is no checkpoint of the epoch to go on from. The number of steps differs between the epochs."""
    opts = {"save_interval": 2, "eval_datasets": {"test": _dataset(5, 50)}, "num_epochs": 4, "max_seqs": 2}
    whole, _ = _run(_config_in("steps", opts), seed=1)
    per_epoch = whole._train_step // 4
    assert per_epoch * 4 == whole._train_step
    stops = {per_epoch: 3, 2 * per_epoch: 2, 3 * per_epoch: 1, 4 * per_epoch: 2}
    capsys.readouterr()
    whole_and_parts(opts, monkeypatch, stop_after={per_epoch, 4 * per_epoch - 1}, stops_in_eval=stops)
    out = capsys.readouterr().out
    assert "Stopping (test in eval) in epoch 1" in out
    assert f"Save checkpoint inside the epoch under parts/epoch.001.step{per_epoch}.pt" in out
    assert f"parts/epoch.002.step{2 * per_epoch}.pt" not in out, "that of the epoch is there"


class SomeNonFinite(Interrupted):
    """In some steps, data are inf."""

    def _call_run_train_step(self, data: Any, run_ctx: RunCtx, step_idx: int) -> Any:  # Any: as in the base
        if self._train_step in (1, 7):
            data = {**data, "data": data["data"] * float("inf")}
        return super()._call_run_train_step(data, run_ctx, step_idx)


def test_skipped_steps_are_remembered(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    opts = {"stop_on_nonfinite_train_score": False, "accum_grad_multiple_step": 3, "max_seqs": 2}
    lines = []
    for stop_after in ({1, 2, 3, 5, 8}, set[int]()):
        whole_and_parts(opts, monkeypatch, stop_after=stop_after, engine_class=SomeNonFinite)
        out = capsys.readouterr().out
        lines.append([line for line in out.splitlines() if "updates skipped because of inf/nan" in line])
    assert len(lines[1]) == 4 and lines[0] == lines[1]


class OwnStep(Interrupted):
    """Computes its steps in another way."""

    def run_train_step(self, data: Any, run_ctx: RunCtx, step_idx: int) -> Any:  # Any: as in the base
        return super().run_train_step(data, run_ctx, step_idx)


class OwnEpoch(Engine):
    """Has its own loop."""

    def train_epoch(self) -> None:
        """As the base."""
        assert not stop_request.will_stop_on_request(), "nobody could save"
        super().train_epoch()


@pytest.mark.parametrize(("engine_class", "method"), [(OwnStep, "run_train_step"), (OwnEpoch, "train_epoch")])
def test_engines_with_own_ways_go_on_as_ever(
    engine_class: type[Engine], method: str, capsys: pytest.CaptureFixture[str]
) -> None:
    reason = f"no checkpoints inside epochs, since the engine {engine_class.__name__} has its own {method}"
    _, ended = _run(_config(save_every_steps=1), seed=1, engine_class=engine_class)
    out = capsys.readouterr().out
    assert ended == "done" and f"Warning: {reason}: save_every_steps has no effect." in out
    assert "inside the epoch under" not in out
    assert "epoch.003.pt" in os.listdir("models") and not inner_checkpoints("models/epoch")
    _run(_config(num_epochs=4), seed=1, engine_class=engine_class)
    out = capsys.readouterr().out
    assert f"Note: {reason}; stopped inside an epoch, the training goes on at its start." in out
    assert "resume after epoch 3" in out


def test_those_which_nobody_can_go_on_from_are_left(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Interrupted, "stop_after", frozenset({8}))
    _run(_config(), seed=1)
    (inner,) = inner_checkpoints("models/epoch").values()
    assert Path(inner).name == "epoch.002.step8"
    capsys.readouterr()

    monkeypatch.setattr(Interrupted, "kill_after", frozenset({6}))
    _, ended = _run(_config(max_seqs=3), seed=1)
    out = capsys.readouterr().out
    assert ended == "killed" and f"warning: {inner} cannot be used to go on: " in out and "max_seqs" in out
    assert "Start: resume after epoch 1 from models/epoch.001" in out
    assert Path(inner + ".pt").exists(), "with the options from before, it can be used"

    checkpoint = torch.load(inner + ".pt", weights_only=True)
    checkpoint["position"]["num_ranks"] = 2
    checkpoint["position"]["ranks"] *= 2
    torch.save(checkpoint, inner + ".pt")
    monkeypatch.setattr(Interrupted, "stop_after", frozenset())
    monkeypatch.setattr(Interrupted, "kill_after", frozenset())
    _, ended = _run(_config(num_epochs=2), seed=1)
    out = capsys.readouterr().out
    assert "cannot be used to go on: it was written by 2 processes, now there are 1." in out
    assert ended == "done" and not inner_checkpoints("models/epoch"), "the epoch is done"


def test_changed_options(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """Those which do not keep the training from going on, but should be told."""
    monkeypatch.setattr(Interrupted, "stop_after", frozenset({2, 3}))
    _run(_config(start_epoch=1), seed=1)
    out = capsys.readouterr().out
    assert "Warning: start_epoch = 1: the next start begins with epoch 1 again. Remove the option to go on here." in out
    for task in ("eval", "forward"):
        for opts in ({}, {"load_epoch": 1}):
            config = _config(task=task, forward_step=print, **opts)
            with pytest.raises(
                UserError, match=r'or set load = "models/epoch.001.step2.pt", which is from inside an epoch'
            ):
                Engine.get_start_point(config)
    _run(_config(learning_rate=0.5), seed=1)
    out = capsys.readouterr().out
    assert "Note: epoch 1 goes on with its learning rate, 0.01; by the options as they are now it would be 0.5." in out
    monkeypatch.setattr(Interrupted, "stop_after", frozenset())
    _run(_config(), seed=1)
    assert "learning rate, 0.01" not in capsys.readouterr().out


def test_number_of_epochs_lowered_after_a_stop_in_the_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interrupted, "stops_in_eval", {6: 1})
    _, ended = _run(_config(save_interval=3, max_seqs=2, batch_size=1000), seed=1)
    assert ended == "stopped" and sorted(os.listdir("models")) == ["epoch.001.step6.opt.pt", "epoch.001.step6.pt"]
    _, ended = _run(_config(save_interval=3, max_seqs=2, batch_size=1000, num_epochs=1), seed=1)
    assert ended == "done" and sorted(os.listdir("models")) == ["epoch.001.opt.pt", "epoch.001.pt"]


def test_changed_data(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(Interrupted, "stop_after", frozenset({8}))
    _run(_config(), seed=1)
    inner = torch.load("models/epoch.002.step8.pt", weights_only=True)
    capsys.readouterr()
    shutil.copytree("models", "before")
    _run(_config(train=_dataset(9, seq_ordering="random"), num_epochs=2), seed=1)
    out = capsys.readouterr().out
    assert "models/epoch.002.step8 cannot be used to go on: the training data have changed since." in out
    assert "the number of sequences was 12, and now is 9." in out and "Start: resume after epoch 1" in out

    # Not noticed by the fingerprint.
    shutil.rmtree("models")
    shutil.copytree("before", "models")
    del inner["data"]
    torch.save(inner, "models/epoch.002.step8.pt")
    with pytest.raises(DatasetError, match="To start the epoch again .* remove models/epoch.002.step8.pt"):
        _run(_config(train=_dataset(9, seq_ordering="random")), seed=1)

    # An engine that cannot go on there.
    _run(_config(num_epochs=2), seed=1, engine_class=OwnEpoch)
    out = capsys.readouterr().out
    assert "warning: models/epoch.002.step8 is not used, since the engine OwnEpoch has its own train_epoch." in out


def test_others_can_read_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interrupted, "stop_after", frozenset({2}))
    engine, _ = _run(_config(), seed=1)
    assert sorted(os.listdir("models")) == ["epoch.001.step2.opt.pt", "epoch.001.step2.pt"]
    checkpoint = torch.load("models/epoch.001.step2.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["step"]) == (1, 2)
    assert engine._model is not None
    for name, param in engine._model.state_dict().items():
        assert torch.equal(checkpoint["model"][name], param)
    loaded = Engine(config=_config(task="eval", load="models/epoch.001.step2"))
    loaded.init_eval_task()
    assert (loaded.epoch, loaded._train_step) == (1, 2)


def test_the_newest_only_and_none_of_done_epochs(monkeypatch: pytest.MonkeyPatch) -> None:
    seen = []
    written = InnerCheckpoints._submit_checkpoint

    def submit(self: InnerCheckpoints, *args: Any, **kwargs: Any) -> None:  # Any: as there
        written(self, *args, **kwargs)
        assert self._writer is not None
        self._writer.wait()
        seen.append(sorted(name for name in os.listdir("models") if "step" in name))

    monkeypatch.setattr(InnerCheckpoints, "_submit_checkpoint", submit)
    engine, _ = _run(_config(save_every_steps=3), seed=1)
    assert len(seen) == engine._train_step // 3
    for i, names in enumerate(seen):
        step = 3 * (i + 1)
        assert [name.split(".", 2)[2] for name in names] == [f"step{step}.opt.pt", f"step{step}.pt"]
    assert not inner_checkpoints("models/epoch")


def test_limits_of_time(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    clock = iter(range(0, 1000000, 10))  # seconds
    plan = functools.partial(PausePlan, clock=lambda: float(next(clock)))
    monkeypatch.setattr(inner_start, "PausePlan", plan)
    _, ended = _run(_config(save_every_minutes=0.6, stop_after_minutes=2), seed=1)
    out = capsys.readouterr().out
    assert ended == "stopped" and out.count("Save checkpoint inside the epoch under") >= 2
    assert "Stopping (stop_after_minutes) in epoch" in out
    assert len(inner_checkpoints("models/epoch")) == 1


def test_limit_of_time_in_an_evaluation(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0

    class SlowEval(Engine):
        def run_eval_step(self, data: Any, run_ctx: RunCtx) -> Any:  # Any: as in the base
            nonlocal now
            now += 1000.0
            return super().run_eval_step(data, run_ctx)

    monkeypatch.setattr(inner_start, "PausePlan", functools.partial(PausePlan, clock=lambda: now))
    engine, ended = _run(_config(stop_after_minutes=10, max_seqs=1), seed=1, engine_class=SlowEval)
    out = capsys.readouterr().out
    assert ended == "stopped" and now == 1000.0, "after the first step of the evaluation"
    assert f"Stopping (stop_after_minutes) in epoch 1, after training step {engine._train_step}." in out


def test_cleanup_after_a_stop_in_the_last_evaluation(monkeypatch: pytest.MonkeyPatch) -> None:
    opts = {"cleanup_old_models": {"keep_last_n": 1, "keep_best_n": 0, "keep": []}, "max_seqs": 2}
    whole, _ = _run(_config_in("steps", opts), seed=1)
    assert "epoch.003.pt" in os.listdir("steps") and "epoch.002.pt" not in os.listdir("steps")
    whole_and_parts(opts, monkeypatch, stop_after=set(), stops_in_eval={whole._train_step: 1})


def test_failed_writing_ends_the_training(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Interrupted, "stop_after", frozenset({3}))
    _run(_config(), seed=1)
    before = {name: Path("models", name).read_bytes() for name in os.listdir("models")}

    def full(*args: Any) -> None:  # Any: not used
        raise CheckpointError("Cannot save: no space left.")

    monkeypatch.setattr(Interrupted, "stop_after", frozenset({5}))
    monkeypatch.setattr(inner_checkpoints_module, "save_file_atomic", full)
    with pytest.raises(CheckpointError, match="no space left"):
        _run(_config(), seed=1)
    assert before == {name: Path("models", name).read_bytes() for name in os.listdir("models")}


class StoppedWhileWaiting(Interrupted):
    """Is stopped before it gets the next batch, as if it waited for a worker."""

    waits: set[int] = set()

    def _even_batches(self, batches: Iterable[Any], name: str) -> Iterator[Any]:  # Any: as in the base
        source = iter(super()._even_batches(batches, name))
        while True:
            if name == "train" and self._train_step in self.waits:
                self.waits.remove(self._train_step)
                assert stop_request.request("test")
                stop_request.raise_if_requested()
            try:
                yield next(source)
            except StopIteration:
                return


@pytest.mark.parametrize("save_interval", [1, 2])
def test_stopped_while_waiting_for_data(save_interval: int, monkeypatch: pytest.MonkeyPatch) -> None:
    opts = {"max_seqs": 2, "batch_size": 1000, "save_interval": save_interval}  # 6 steps per epoch
    waits = {0, 2, 6, 17}
    in_whole = True

    def config(folder: str, opts: dict[str, Any]) -> Config:  # Any: options
        nonlocal in_whole
        if folder == "parts" and in_whole:
            in_whole = False
            monkeypatch.setattr(StoppedWhileWaiting, "waits", waits)
        return _config_in(folder, opts)

    ends = whole_and_parts(
        opts, monkeypatch, stop_after=set(), make_config=config, engine_class=StoppedWhileWaiting, num_more_stops=4
    )
    assert ends == ["stopped"] * 4 + ["done"] and not waits
