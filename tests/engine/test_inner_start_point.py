"""Which checkpoint a run starts from, if there are some inside epochs."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from returnn.engine.inner_files import inner_checkpoints
from returnn.engine.model_files import StartPoint
from returnn.engine.start_point import choose_start
from returnn.options.checkpoint import CheckpointOptions
from tests.engine.checkpoint_files import WHOLE, write, write_epochs


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _start(*, inner: bool = True, **config: Any) -> StartPoint:
    options = CheckpointOptions.from_config({"task": "train", "model": "m/ep", "num_epochs": 20, **config})
    found = inner_checkpoints(options.model, options.final_epoch)
    return choose_start(options, inner=found if inner else None)


def _write_inner(epoch: int, step: int) -> str:
    path = f"m/ep.{epoch:03d}.step{step}"
    write(path + ".pt", path + ".opt.pt")
    return path


def test_inside_the_first_epoch() -> None:
    path = _write_inner(1, 15)
    start = _start()
    assert (start.kind, start.epoch, start.start_epoch, start.step, start.filename) == ("resume", 0, 1, 15, path)
    assert start.is_own_model and not start.notes and start.log_line == f"Using existing model {path}"
    assert _start(inner=False).kind == "fresh", "the engine does not know them"
    assert _start(num_epochs=0, task="nop_init_net_train").kind == "fresh"


def test_newest_by_epoch_then_step() -> None:
    write_epochs(1, 2)
    _write_inner(2, 90)  # killed before it was deleted
    assert (_start().epoch, _start().step) == (2, None)
    _write_inner(3, 99)
    path = _write_inner(3, 100)
    assert (_start().start_epoch, _start().step, _start().filename) == (3, 100, path)
    write_epochs(3)
    assert (_start().epoch, _start().step) == (3, None)
    assert _start(inner=False).epoch == 3
    assert (_start(num_epochs=2).epoch, _start(num_epochs=2).step) == (2, None)


def test_broken_ones_are_left_with_a_note() -> None:
    write_epochs(1)
    _write_inner(2, 15)
    write("m/ep.002.step20.pt", "m/ep.002.step20.opt.pt", content=WHOLE[:100])
    write("m/ep.002.step25.pt")
    start = _start()
    assert start.step == 15 and len(start.notes) == 2
    assert start.notes[0] == (
        "warning: optimizer file m/ep.002.step25.opt.pt does not exist; that checkpoint is not used."
    )
    assert start.notes[1].startswith("warning: m/ep.002.step20.pt is broken or only half written")
    os.remove("m/ep.002.step15.opt.pt")
    start = _start()
    assert (start.epoch, start.step) == (1, None) and len(start.notes) == 3
    # A broken file inside an epoch says nothing about the checkpoint of the epoch itself.
    write("m/ep.001.step3.opt.pt", content=WHOLE[:100])
    assert _start(inner=False).notes == []


def test_behind_a_broken_one_of_the_epoch() -> None:
    write_epochs(1)
    write("m/ep.002.pt", "m/ep.002.opt.pt", content=WHOLE[:100])
    _write_inner(2, 15)
    start = _start()
    assert start.step == 15 and start.notes == [
        "warning: m/ep.002.pt is broken or only half written; that checkpoint is not used."
    ]


def test_other_options_that_say_where_to_start() -> None:
    write_epochs(1, 2)
    path = _write_inner(3, 15)
    start = _start(start_epoch=2)
    assert (start.epoch, start.step) == (1, None)
    assert f"start_epoch = 2: 1 checkpoint(s) inside an epoch are ignored, e.g. {path}." in start.notes[0]
    write("other.pt", "other.opt.pt")
    start = _start(load="other", import_model_train_epoch1="other")
    assert start.step == 15 and start.notes == [
        "load is ignored, since there are checkpoints of this training.",
        "import_model_train_epoch1 is ignored, since there are checkpoints of this training.",
    ]
    assert _start(load_epoch=1, extern_data={}).epoch == 1
    assert _start(task="forward").filename == "m/ep.002"
    assert _start(task="forward", load=path + ".pt").filename == path
