"""Datasets that combine, inside of each other."""

from __future__ import annotations

import pickle
from typing import Any

import numpy as np
import pytest

from returnn.datasets._meta.seq_rows import get_tag_table
from returnn.datasets.basic import init_dataset
from returnn.datasets.hdf import HDFDataset
from returnn.datasets.meta import MetaDataset
from tests.datasets.combining import check_bulk, tags_of
from tests.datasets.combining_data import GOLDEN, a_or_b, hdf
from tests.datasets.everyday_use import check_everyday_use, read_epoch

TWO = {"datasets": {"a": hdf("c_a"), "b": hdf("c_b")}, "data_map": {("a", "data"): "data", ("b", "data"): "data"}}
CONCAT = {"class": "ConcatDataset", "datasets": [hdf("c_a", seq_ordering="random"), hdf("c_b")]}
CONTROLS: dict[str, dict[str, Any]] = {
    "combined": {"class": "CombinedDataset", **TWO, "seq_ordering": "laplace:.3", "partition_epoch": 2},
    "interleave": {"class": "CombinedDataset", **TWO, "seq_ordering": "interleave"},
    "concat": CONCAT,
    "multi_epoch": {"class": "MultiEpochDataset", "dataset": hdf("c_a", seq_ordering="random"), "multi_epoch": 2},
    "multi_epoch_of_concat": {"class": "MultiEpochDataset", "dataset": CONCAT, "multi_epoch": 2},
}


def meta_over(control: dict[str, Any]) -> dict[str, Any]:
    """:return: options; the streams x and y are the same data, z is a filler"""
    filler = {"class": "AnythingDataset", "data_keys": {"data": {"dim": 2, "shape": (None, 2)}}}
    other = {"class": "ConcatDataset", "datasets": [hdf("c_b"), hdf("c_a")]}
    return {
        "class": "MetaDataset",
        "datasets": {"control": control, "filler": filler, "other": other},
        "data_map": {"x": ("control", "data"), "y": ("other", "data"), "z": ("filler", "data")},
        "seq_order_control_dataset": "control",
    }


@pytest.mark.parametrize("name", sorted(CONTROLS))
def test_meta_dataset_controlled_by(name: str) -> None:
    dataset = init_dataset(meta_over(CONTROLS[name]))
    for epoch in (1, 2, 1):
        seqs = read_epoch(dataset, epoch)
        assert [tag for tag, _ in seqs] == tags_of(CONTROLS[name], epoch)
        for _, data in seqs:
            np.testing.assert_array_equal(data["x"], data["y"])
            assert data["z"].tolist() == [[0.0, 0.0]]
        check_bulk(dataset, seqs)
    copy = pickle.loads(pickle.dumps(dataset))
    assert [tag for tag, _ in read_epoch(copy, 1)] == [tag for tag, _ in seqs]


def test_variable_in_combined() -> None:
    opts = {
        "class": "CombinedDataset",
        "datasets": {"v": {"class": "VariableDataset", "get_dataset": a_or_b}, "c": hdf("c_c")},
        "data_map": {("v", "data"): "data", ("c", "data"): "classes"},
        "seq_ordering": "random",
    }
    dataset = init_dataset(opts)
    for epoch, of_v in ((1, [f"a-{i}" for i in range(7)]), (2, [f"b-{i}" for i in range(5)])):
        seqs = read_epoch(dataset, epoch)
        assert sorted(tag for tag, _ in seqs) == of_v + ["c-0", "c-1", "c-2"]
        check_bulk(dataset, seqs)
        dataset.finish_epoch(free_resources=True)
        assert [tag for tag, _ in read_epoch(dataset, epoch)] == [tag for tag, _ in seqs]


@pytest.mark.slow
def test_everyday_use() -> None:
    check_everyday_use(meta_over(CONTROLS["combined"]))


def test_tags_of_a_child_are_kept_once() -> None:
    """Not once more in the MetaDataset: texts of tags are most of the memory of large corpora."""
    zip_file = GOLDEN.parent / "05-audio-text" / "oggzip" / "demo_noaudio.zip"
    children: list[dict[str, Any]] = [
        {"class": "OggZipDataset", "path": str(zip_file), "audio": None, "targets": None},
        hdf("c_a"),
        {
            "class": "TextDictDataset",
            "filename": str(GOLDEN.parent / "05-audio-text" / "lm" / "dict_nbest.txt"),
            "vocab": {"class": "Utf8ByteTargets"},
        },
    ]
    for opts in children:
        child = init_dataset(opts)
        stream = child.get_data_keys()[0]
        nested = {"class": "MetaDataset", "datasets": {"x": child}, "data_map": {"x": ("x", stream)}}
        dataset = init_dataset({**nested, "seq_order_control_dataset": "x"})
        assert isinstance(dataset, MetaDataset)
        assert dataset.tag_table is child.tag_table  # type: ignore[attr-defined]
        assert get_tag_table(dataset) is dataset.tag_table


class OtherTags(HDFDataset):
    """A class of a user with its own tags."""

    def get_all_tags(self) -> list[str]:
        """:return: not those of the file"""
        return [f"my-{tag}" for tag in super().get_all_tags()]


def test_tags_of_a_user_class_count() -> None:
    table = get_tag_table(init_dataset({**hdf("c_c"), "class": OtherTags}))
    assert table is not None and table.to_list() == ["my-c-0", "my-c-1", "my-c-2"]
