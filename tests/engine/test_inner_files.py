"""returnn.engine.inner_files: names, which exist, deletion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from returnn.engine.inner_files import delete_inner, inner_checkpoints, inner_filename, is_inner_name
from returnn.engine.model_files import epoch_of_filename, existing_models
from tests.engine.checkpoint_files import write, write_epochs


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_names() -> None:
    assert inner_filename("m/ep", 2, 15) == "m/ep.002.step15"
    assert inner_filename("ep", 1234, 0) == "ep.1234.step0"
    for name in ("m/ep.002.step15", "m/ep.002.step15.pt", "ep.1234.step0.opt.pt"):
        assert is_inner_name(name)
    for name in ("m/ep.002", "m/ep.002.pt", "m/ep.step15.pt", "m/ep.002.step15.bak", "m/ep.002.stepx.pt"):
        assert not is_inner_name(name)


def test_found_in_order_and_apart_from_those_of_epochs() -> None:
    write_epochs(1)
    for key in ((2, 9), (2, 10), (1, 3), (12, 100)):
        write(f"m/ep.{key[0]:03d}.step{key[1]}.pt", f"m/ep.{key[0]:03d}.step{key[1]}.opt.pt")
    write("m/ep.003.step20.opt.pt", "m/ep.0004.step1.pt", "m/other.001.step1.pt", "m/ep.001.step5.pt.tmp_write")
    assert list(inner_checkpoints("m/ep")) == [(1, 3), (2, 9), (2, 10), (12, 100)]
    assert inner_checkpoints("m/ep", 2)[2, 10] == "m/ep.002.step10"
    assert list(inner_checkpoints("m/ep", 2)) == [(1, 3), (2, 9), (2, 10)]
    assert inner_checkpoints(None) == inner_checkpoints("no/folder") == {}
    assert list(existing_models("m/ep")) == [1]
    assert epoch_of_filename("m/ep.002.step9.pt") is None  # the file says it


def test_deleted_up_to_an_epoch_with_leftovers() -> None:
    write_epochs(1, 2)
    write("m/ep.001.step3.pt", "m/ep.001.step3.opt.pt", "m/ep.002.step9.pt", "m/ep.002.step9.opt.pt")
    write("m/ep.002.step12.opt.pt.tmp_write", "m/ep.002.step9.pt.tmp_write", "m/ep.003.step20.pt", "m/ep.0002.step1.pt")
    os.makedirs("m/ep.002.step9.dcp")
    os.makedirs("m/ep.001.step3.dcp.old_write")
    kept = ["ep.0002.step1.pt", "ep.001.opt.pt", "ep.001.pt", "ep.002.opt.pt", "ep.002.pt"]
    delete_inner("m/ep", last_epoch=2, keep="m/ep.002.step9")
    of_step_9 = ["ep.002.step9.dcp", "ep.002.step9.opt.pt", "ep.002.step9.pt"]
    assert sorted(os.listdir("m")) == [*kept, *of_step_9, "ep.003.step20.pt"]
    assert len(delete_inner("m/ep", last_epoch=2)) == 3
    assert sorted(os.listdir("m")) == [*kept, "ep.003.step20.pt"]
    assert delete_inner("no/folder", last_epoch=2) == []
