"""Checkpoints whose optimizer state is a folder with the parts of several ranks: restart, deletion."""

from __future__ import annotations

import json
import zipfile
from pathlib import Path
from typing import Any

import pytest

from returnn.engine.model_files import delete_model, has_optimizer, is_whole_folder, prune_optimizer_files
from returnn.engine.start_point import choose_start, newest_whole
from returnn.errors import CheckpointError
from returnn.options.checkpoint import CheckpointOptions


def _write_zip(path: Path) -> None:
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"x")


def _write_folder(path: Path) -> None:
    path.mkdir()
    for name in ("__0_0.distcp", "__1_0.distcp", ".metadata", "optimizer.pt"):
        (path / name).write_bytes(b"12345")
    sizes = {child.name: child.stat().st_size for child in path.iterdir()}
    (path / "files.json").write_text(json.dumps(sizes))


def _checkpoint(folder: Path, epoch: int, *, opt: bool = False, sharded: bool = True) -> None:
    _write_zip(folder / f"epoch.{epoch:03d}.pt")
    if opt:
        _write_zip(folder / f"epoch.{epoch:03d}.opt.pt")
    if sharded:
        _write_folder(folder / f"epoch.{epoch:03d}.dcp")


def _start(folder: Path, **config: Any) -> Any:  # Any: option values; a StartPoint
    return choose_start(
        CheckpointOptions.from_config({"task": "train", "model": str(folder / "epoch"), "num_epochs": 9, **config})
    )


def test_restart_counts_it_as_whole(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 1, opt=True, sharded=False)
    _checkpoint(tmp_path, 2)
    assert _start(tmp_path).epoch == 2
    assert has_optimizer(str(tmp_path / "epoch.002.pt"))


@pytest.mark.parametrize("name", ["__1_0.distcp", ".metadata", "files.json"])
@pytest.mark.parametrize("how", ["missing", "truncated"])
def test_restart_goes_back_if_it_is_broken(tmp_path: Path, name: str, how: str) -> None:
    for epoch in (1, 2):
        _checkpoint(tmp_path, epoch)
    path = tmp_path / "epoch.002.dcp" / name
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:3])
    start = _start(tmp_path)
    assert start.epoch == 1
    assert "epoch.002.dcp is broken or only half written; that checkpoint is not used" in "\n".join(start.notes)


def test_restart_ignores_the_folder_of_a_save_that_was_interrupted(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 1)
    _checkpoint(tmp_path, 2, sharded=False)
    _write_folder(tmp_path / "epoch.002.dcp.tmp_write")
    models = {epoch: str(tmp_path / f"epoch.{epoch:03d}") for epoch in (1, 2)}
    epoch, problems = newest_whole(models, need_optimizer=True)
    assert epoch == 1 and "epoch.002.opt.pt does not exist" in problems[0]


def test_only_broken_ones_are_an_error(tmp_path: Path) -> None:
    _checkpoint(tmp_path, 1)
    (tmp_path / "epoch.001.dcp" / ".metadata").unlink()
    with pytest.raises(CheckpointError, match="epoch.001.dcp is broken"):
        _start(tmp_path)


def test_prune_keeps_the_newest_two_of_both_forms(tmp_path: Path) -> None:
    for epoch, opt in ((1, False), (2, True), (3, False), (4, True), (7, False)):
        _checkpoint(tmp_path, epoch, opt=opt, sharded=not opt or epoch == 2)
    deleted = prune_optimizer_files(str(tmp_path / "epoch"), 4)
    assert [Path(name).name for name in deleted] == ["epoch.001.dcp", "epoch.002.opt.pt", "epoch.002.dcp"]
    left = {path.name for path in tmp_path.iterdir() if not path.name[-4].isdigit() and path.name[9:] != ".pt"}
    assert left == {"epoch.003.dcp", "epoch.004.opt.pt", "epoch.007.dcp"}


def test_deleted_with_the_model_if_wanted(tmp_path: Path) -> None:
    for epoch in (1, 2):
        _checkpoint(tmp_path, epoch, opt=True)
    size = (tmp_path / "epoch.001.pt").stat().st_size
    assert delete_model(str(tmp_path / "epoch.001")) == size
    assert is_whole_folder(str(tmp_path / "epoch.001.dcp"))
    listed = (tmp_path / "epoch.002.dcp" / "files.json").stat().st_size
    assert delete_model(str(tmp_path / "epoch.002"), with_optimizer=True) == 2 * size + 4 * 5 + listed
    assert {path.name for path in tmp_path.iterdir()} == {"epoch.001.opt.pt", "epoch.001.dcp"}
