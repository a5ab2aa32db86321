"""The fingerprint of the data, and what is said about changes."""

from __future__ import annotations

import copy
import functools
import io
import os
import shutil
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.fingerprint import data_fingerprint, fingerprint_changes
from returnn.datasets.map import MapDatasetBase
from returnn.datasets.meta import VariableDataset
from tests.datasets.combining_data import hdf
from tests.datasets.proc_functions import hdf_of_files
from tests.datasets.test_jump import JUMPING, NOT_JUMPING

GOLDEN = Path(__file__).parents[1] / "golden"
META_FILES = GOLDEN / "04-datasets-meta"


def _meta(folder: Path) -> dict[str, Any]:
    return {
        "class": "MetaDataset",
        "datasets": {
            "feat": {"class": "HDFDataset", "files": [str(folder / "feat.hdf")]},
            "lab": {"class": "HDFDataset", "files": [str(folder / "lab_perm.hdf")]},
        },
        "data_map": {"data": ("feat", "data"), "classes": ("lab", "data")},
        "seq_order_control_dataset": "feat",
    }


def _static(num: int, *, longer: int = 0, data: Any = None) -> dict[str, Any]:
    """:param data: Any: list of sequences"""
    data = data or [{"data": numpy.zeros((3 + i % 4 + (longer if i == 1 else 0), 2), "f")} for i in range(num)]
    return {"class": "StaticDataset", "data": data}


def _leaves(value: Any) -> list[Any]:
    """:param value: fingerprint. Any: all that is in it"""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in [key, *_leaves(item)]]
    return [leaf for item in value for leaf in _leaves(item)] if isinstance(value, list) else [value]


def test_plain_values_that_load_safely() -> None:
    fingerprint = data_fingerprint(init_dataset(_meta(META_FILES)))
    assert {type(leaf) for leaf in _leaves(fingerprint)} <= {str, int}
    file = io.BytesIO()
    torch.save(fingerprint, file)
    file.seek(0)
    loaded = torch.load(file, weights_only=True)
    assert loaded == fingerprint
    assert fingerprint_changes(loaded, fingerprint) == []
    # Each file once: with the child that reads it.
    assert "files" not in fingerprint
    feat, lab = fingerprint["children"]["feat"], fingerprint["children"]["lab"]
    assert feat["files"]["list"] == [["feat.hdf", os.path.getsize(META_FILES / "feat.hdf")]]
    assert fingerprint["num_seqs"] == feat["num_seqs"] == lab["num_seqs"] > 0
    assert feat["lens"]["data"]["num_frames"] > 0
    # It does not depend on the state.
    dataset = init_dataset(_meta(META_FILES))
    dataset.init_seq_order(epoch=3)
    dataset.load_seqs(0, 1)
    assert data_fingerprint(dataset) == fingerprint


def test_data_may_move_but_not_change(tmp_path: Path) -> None:
    before = data_fingerprint(init_dataset(_meta(META_FILES)))
    for name in ("feat.hdf", "lab_perm.hdf"):
        shutil.copy(META_FILES / name, tmp_path / name)
        os.utime(tmp_path / name, (1.0, 1.0))
    assert fingerprint_changes(before, data_fingerprint(init_dataset(_meta(tmp_path)))) == []
    with open(tmp_path / "lab_perm.hdf", "ab") as file:
        file.write(b"\0" * 100)
    size = os.path.getsize(META_FILES / "lab_perm.hdf")
    assert fingerprint_changes(before, data_fingerprint(init_dataset(_meta(tmp_path)))) == [
        "The data of child dataset 'lab': the files are others: of another size: "
        f"lab_perm.hdf ({size} bytes before, {size + 100} bytes now)."
    ]


def test_sentences() -> None:
    first = data_fingerprint(init_dataset(_static(10)))
    assert fingerprint_changes(first, data_fingerprint(init_dataset(_static(11)))) == [
        "The data: the number of sequences was 10, and now is 11.",
        "The data: the lengths (data) were 43 frames in sum, and now are 48.",
    ]
    longer = data_fingerprint(init_dataset(_static(10, longer=3)))
    assert fingerprint_changes(first, longer) == ["The data: the lengths (data) were 43 frames in sum, and now are 46."]
    swapped = _static(10)
    swapped["data"][0], swapped["data"][1] = swapped["data"][1], swapped["data"][0]
    assert fingerprint_changes(first, data_fingerprint(init_dataset(swapped))) == [
        "The data: the sequences have other lengths (data), or another order, with 43 frames as before."
    ]
    one, two = data_fingerprint(init_dataset(hdf("c_a"))), data_fingerprint(init_dataset(hdf("c_b")))
    files = [sentence for sentence in fingerprint_changes(one, two) if "files" in sentence]
    assert files == ["The data: the files are others: gone: c_a.hdf; new: c_b.hdf."]
    assert fingerprint_changes(first, one)[0] == (
        "The data: the dataset was of class StaticDataset, and now is of class HDFDataset."
    )
    concat = {"class": "ConcatDataset", "datasets": [hdf("c_a")]}
    more = {"class": "ConcatDataset", "datasets": [hdf("c_a"), hdf("c_a")]}
    sentences = fingerprint_changes(data_fingerprint(init_dataset(concat)), data_fingerprint(init_dataset(more)))
    assert sentences[-1] == "The data of child dataset '1': it was not there before."
    sentences = fingerprint_changes(data_fingerprint(init_dataset(more)), data_fingerprint(init_dataset(concat)))
    assert sentences[-1] == "The data of child dataset '1': it is gone."


@pytest.mark.parametrize("old", [None, 3, [], {}, {"version": 0, "class": "X"}, {"version": 1.5}])
def test_what_is_no_fingerprint_says_nothing(old: object) -> None:
    now = data_fingerprint(init_dataset(_static(3)))
    assert fingerprint_changes(old, now) == fingerprint_changes(now, old) == []


def test_broken_fingerprints_do_not_stop_a_start() -> None:
    now = data_fingerprint(init_dataset(_meta(META_FILES)))
    for key in ("num_seqs", "lens", "files", "children", "class"):
        for broken in (None, 5, "x", [1], {"data": 5}, {"feat": {"files": {"list": [1, [2]]}, "lens": [3]}}):
            fingerprint_changes({**copy.deepcopy(now), key: broken}, now)
            fingerprint_changes(now, {**copy.deepcopy(now), key: broken})


class UserDataset(Dataset):
    """As users write it: does not store its argument, and its number of sequences changes with the epoch."""

    def __init__(self, filename: str, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.num_outputs = {"data": (1, 2)}
        self._seqs = [filename] * 3

    @property
    def num_seqs(self) -> int:
        return self.epoch or 0


class UserMap(MapDatasetBase):
    """Without lengths."""

    def __len__(self) -> int:
        return 7


def test_classes_of_users() -> None:
    dataset = init_dataset({"class": UserDataset, "filename": "/dev/null"})
    first = data_fingerprint(dataset)
    dataset.init_seq_order(epoch=2)
    assert data_fingerprint(dataset) == first == {"version": 1, "class": "UserDataset"}
    wrapper = data_fingerprint(init_dataset({"class": "MapDatasetWrapper", "map_dataset": UserMap}))
    assert wrapper == {"version": 1, "class": "MapDatasetWrapper", "num_seqs": 7}


def test_files_are_found_in_options_but_names_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("default", "data", "corpus.txt", "vocab.txt", "filter.txt"):
        (tmp_path / name).write_text("a\nb\n")
    opts = {
        "class": "LmDataset",
        "corpus_file": lambda: "corpus.txt",
        "orth_vocab": {"class": "CharacterTargets", "vocab_file": "vocab.txt", "unknown_label": None},
        "seq_list_filter_file": str(tmp_path / "filter.txt"),
        "name": "data",
    }
    (tmp_path / "vocab.txt").write_text("{'a': 0, 'b': 1}")
    (tmp_path / "filter.txt").write_text("line-0\nline-1\n")
    dataset = init_dataset(opts)
    before = data_fingerprint(dataset)
    assert [name for name, _ in before["files"]["list"]] == ["filter.txt", "vocab.txt"]
    dataset.init_seq_order(epoch=1)
    after = data_fingerprint(dataset)
    assert [name for name, _ in after["files"]["list"]] == ["corpus.txt", "filter.txt", "vocab.txt"]
    assert after["num_seqs"] == 2


def test_children_of_a_variable_dataset_are_left_out() -> None:
    def get_dataset(*, epoch: int, **_: Any) -> dict[str, Any]:
        return hdf("c_a" if epoch % 2 else "c_b")

    dataset = init_dataset({"class": VariableDataset, "get_dataset": get_dataset})
    first = data_fingerprint(dataset)
    dataset.init_seq_order(epoch=2)
    assert fingerprint_changes(first, data_fingerprint(dataset)) == []


def test_many_files_are_kept_as_checksum(tmp_path: Path) -> None:
    names = [tmp_path / f"{i}.txt" for i in range(300)]
    for name in names:
        name.write_text("x")
    vocab = {"class": "CharacterTargets", "vocab_file": str(tmp_path / "v"), "unknown_label": None}
    opts = {"class": "LmDataset", "corpus_file": [str(name) for name in names], "orth_vocab": vocab}
    (tmp_path / "v").write_text("{'x': 0}")
    first = data_fingerprint(init_dataset(opts))
    assert first["files"].keys() == {"num", "size", "checksum"} and first["files"]["num"] == 301
    names[100].write_text("xx")
    assert fingerprint_changes(first, data_fingerprint(init_dataset(opts))) == [
        "The data: the files are others: 301 files with 308 bytes before, 301 files with 309 bytes now."
    ]


@pytest.mark.parametrize("name", sorted({**JUMPING, **NOT_JUMPING}))
def test_reading_is_no_change(name: str) -> None:
    opts = {**JUMPING, **NOT_JUMPING}[name]
    first = data_fingerprint(init_dataset(opts))
    assert {type(leaf) for leaf in _leaves(first)} <= {str, int}
    dataset = init_dataset(opts)
    assert data_fingerprint(dataset) == first
    for epoch in (1, 2):
        dataset.init_seq_order(epoch=epoch)
        dataset.load_seqs(0, 1)
        now = data_fingerprint(dataset)
        assert {type(leaf) for leaf in _leaves(now)} <= {str, int}
        assert fingerprint_changes(first, now) == fingerprint_changes(now, first) == []


def test_datasets_in_other_processes(tmp_path: Path, make: Any) -> None:
    """What is known of them are the files in their options."""
    shutil.copy(META_FILES / "feat.hdf", tmp_path / "feat.hdf")
    opts = {"class": "HDFDataset", "files": [str(tmp_path / "feat.hdf")]}
    multi = make({"class": "MultiProcDataset", "dataset": opts, "num_workers": 1, "buffer_size": 1})
    first = data_fingerprint(multi)
    assert first["num_seqs"] == 17 and first["files"]["list"][0][0] == "feat.hdf"
    files = make(
        {
            "class": "DistributeFilesDataset",
            "files": lambda: [str(tmp_path / "feat.hdf")],
            "get_sub_epoch_dataset": functools.partial(hdf_of_files, seq_ordering="default"),
        }
    )
    assert data_fingerprint(files)["files"] == first["files"]
