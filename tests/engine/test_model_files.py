"""Names of checkpoints, which exist, deletion."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from returnn.engine import model_files
from returnn.errors import CheckpointError
from tests.engine.checkpoint_files import WHOLE, write, write_epochs


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


# --- names


def test_names() -> None:
    assert model_files.epoch_model_filename("m/ep", 7) == "m/ep.007"
    assert model_files.epoch_model_filename("m/ep", 1234) == "m/ep.1234"
    assert model_files.optimizer_filename("m/ep.007") == "m/ep.007.opt.pt"
    assert model_files.optimizer_filename("m/ep.007.pt") == "m/ep.007.opt.pt"
    assert model_files.strip_suffix("a.index") == model_files.strip_suffix("a.meta") == "a"
    assert model_files.strip_suffix(Path("a.pt")) == "a"


def test_existing_models() -> None:
    write_epochs(1, 3, 12, 1000)
    write(
        "m/ep.000.pt", "m/ep.005", "m/ep.007.opt.pt", "m/other.002.pt", "m/ep.0004.pt", "m/ep.04.pt", "m/ep.006.pt.tmp"
    )
    os.mkdir("m/ep.008")
    os.symlink("nothere", "m/ep.009.pt")
    assert model_files.existing_models("m/ep", 999) == {n: f"m/ep.{n:03d}" for n in (1, 3, 5, 12)}
    assert list(model_files.existing_models("m/ep")) == [1, 3, 5, 12, 1000]
    assert list(model_files.existing_models("m/ep", 3)) == [1, 3]
    assert model_files.existing_models(None, 5) == model_files.existing_models("", 5) == {}
    assert model_files.existing_models("no/folder", 5) == {}


def test_name_with_special_characters_and_without_folder() -> None:
    write("a+b.(1).001.pt", "aab.(1).002.pt")
    assert model_files.existing_models("a+b.(1)") == {1: "a+b.(1).001"}


def test_model_file() -> None:
    write("a.pt", "b.ckpt", "c.safetensors")
    assert model_files.model_file("a") == model_files.model_file("a.pt") == model_files.model_file("a.index") == "a.pt"
    assert model_files.model_file("b.ckpt") == "b.ckpt"
    assert model_files.model_file(Path("c.safetensors")) == "c.safetensors"
    with pytest.raises(CheckpointError, match="'x.pt' does not exist"):
        model_files.model_file("x")


# --- deletion


def test_delete_model() -> None:
    write_epochs(1)
    assert model_files.delete_model("m/ep.001") == len(WHOLE)
    assert os.listdir("m") == ["ep.001.opt.pt"]
    write_epochs(1)
    assert model_files.delete_model("m/ep.001", with_optimizer=True) == 2 * len(WHOLE)
    with pytest.raises(CheckpointError, match="does not exist"):
        model_files.delete_model("m/ep.001")


def test_prune_optimizer_files_keeps_the_newest_two() -> None:
    write_epochs(4, 8, 12, 16, 40)
    assert model_files.prune_optimizer_files("m/ep", 16) == ["m/ep.004.opt.pt", "m/ep.008.opt.pt"]
    assert sorted(n for n in os.listdir("m") if "opt" in n) == ["ep.012.opt.pt", "ep.016.opt.pt", "ep.040.opt.pt"]
    assert len([n for n in os.listdir("m") if "opt" not in n]) == 5
    assert model_files.prune_optimizer_files("m/ep", 16) == []
    assert model_files.prune_optimizer_files("m/nothing", 16) == []
