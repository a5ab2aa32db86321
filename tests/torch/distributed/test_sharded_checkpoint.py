"""returnn.torch.distributed.sharded_checkpoint: reading, and what must not run or be read."""

from __future__ import annotations

import json
import os
import pickle
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.metadata import BytesStorageMetadata, Metadata

from returnn.engine.model_files import is_whole_folder
from returnn.errors import CheckpointError
from returnn.torch.distributed.sharded_checkpoint import load_sharded_optimizer, read_metadata


class _Evil:
    """Its pickle makes a file."""

    def __init__(self, path: Path):
        self._path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._path),)


@pytest.fixture()
def folder(tmp_path: Path) -> Path:
    """:return: a folder as several ranks write it, of one momentum and one counter"""
    path = tmp_path / "epoch.001.dcp"
    tensors = {"optimizer.weight.exp_avg": torch.arange(6.0).reshape(3, 2)}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(tensors, storage_writer=dcp.FileSystemWriter(path))
    placeholder = {"sharded_tensor": "optimizer.weight.exp_avg", "parameter": "weight"}
    content = {
        "state": {0: {"step": torch.tensor(4.0), "exp_avg": placeholder}},
        "param_groups": [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}],
        "returnn": {"param_names": ["weight"], "step": 7, "epoch": 1},
    }
    torch.save(content, path / "optimizer.pt")
    _list_files(path)
    return path


def _list_files(folder: Path) -> None:
    sizes = {path.name: path.stat().st_size for path in folder.iterdir() if path.name != "files.json"}
    (folder / "files.json").write_text(json.dumps(sizes))


def _metadata(folder: Path) -> Metadata:
    metadata: Metadata = pickle.loads((folder / ".metadata").read_bytes())
    return metadata


def _write_metadata(folder: Path, metadata: object) -> None:
    (folder / ".metadata").write_bytes(pickle.dumps(metadata))
    _list_files(folder)


def test_one_process_reads_all(folder: Path) -> None:
    state = load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=7)
    assert state["state"][0]["step"] == 4
    assert state["state"][0]["exp_avg"].tolist() == [[0.0, 1.0], [2.0, 3.0], [4.0, 5.0]]
    assert state["param_groups"] == [{"lr": 0.1, "betas": (0.9, 0.99), "params": [0]}]


def test_other_step_is_an_error(folder: Path) -> None:
    with pytest.raises(CheckpointError, match="of training step 7, but the model file beside it is of step 8"):
        load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=8)


def test_metadata_of_torch_is_read(folder: Path) -> None:
    assert set(read_metadata(str(folder)).state_dict_metadata) == {"optimizer.weight.exp_avg"}


@pytest.mark.parametrize("place", ["instead", "inside"])
def test_metadata_cannot_run_code(folder: Path, tmp_path: Path, place: str) -> None:
    evil: Any = _Evil(tmp_path / "made")
    if place == "inside":
        metadata = _metadata(folder)
        metadata.planner_data = {"x": evil}
        evil = metadata
    _write_metadata(folder, evil)
    with pytest.raises(CheckpointError, match=r"contains \w+\.mkdir, which torch does not write there"):
        load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=None)
    assert not (tmp_path / "made").exists()


def test_entries_that_torch_would_unpickle_are_refused(folder: Path) -> None:
    metadata = _metadata(folder)
    metadata.state_dict_metadata["optimizer.weight.exp_avg"] = BytesStorageMetadata()
    _write_metadata(folder, metadata)
    with pytest.raises(CheckpointError, match="has no tensor 'optimizer.weight.exp_avg'"):
        load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=None)


def test_optimizer_file_is_read_safely(folder: Path, tmp_path: Path) -> None:
    torch.save({"state": _Evil(tmp_path / "made")}, folder / "optimizer.pt")
    _list_files(folder)
    with pytest.raises(CheckpointError, match="can run any code, so it is refused"):
        load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=None)
    assert not (tmp_path / "made").exists()


@pytest.mark.parametrize("name", ["../secret", "/etc/passwd", "..", "sub/x.distcp"])
def test_files_outside_of_the_folder_are_not_read(folder: Path, name: str) -> None:
    metadata = _metadata(folder)
    assert metadata.storage_data is not None
    for info in metadata.storage_data.values():
        info.relative_path = name
    _write_metadata(folder, metadata)
    with pytest.raises(CheckpointError, match="outside of its folder"):
        load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=None)


@pytest.mark.parametrize("name", [".metadata", "optimizer.pt", "__0_0.distcp"])
@pytest.mark.parametrize("how", ["missing", "truncated", "empty"])
def test_broken_files(folder: Path, name: str, how: str) -> None:
    assert is_whole_folder(str(folder))
    path = folder / name
    content = path.read_bytes()
    if how == "missing":
        path.unlink()
    else:
        path.write_bytes(content[: len(content) // 2 if how == "truncated" else 0])
    assert not is_whole_folder(str(folder))
    for listed in (False, True):  # the latter: it was so when the list was made
        if listed:
            _list_files(folder)
        with pytest.raises(CheckpointError) as info:
            load_sharded_optimizer(str(folder), model=torch.nn.Linear(2, 3), step=None)
        assert str(folder) in str(info.value)


def test_folder_without_list_of_files_is_not_whole(folder: Path) -> None:
    (folder / "files.json").unlink()
    assert not is_whole_folder(str(folder))
    assert not is_whole_folder(str(folder / "none"))
