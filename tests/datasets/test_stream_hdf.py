"""returnn.datasets.stream_hdf."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest

import returnn.datasets.hdf
import returnn.datasets.stream_hdf
from returnn.datasets.basic import init_dataset
from returnn.datasets.stream_hdf import NextGenHDFDataset, StreamHDFDataset
from returnn.errors import DataFileError, DatasetError
from tests.datasets.everyday_use import check_jump
from tests.datasets.hdf_golden import GOLDEN, iterate, load_golden

FILE = str(GOLDEN / "n1_stream.hdf")


@pytest.mark.parametrize("class_name", ["StreamHDFDataset", "NextGenHDFDataset"])
def test_golden(class_name: str) -> None:
    options = {"class": class_name, "input_stream_name": "features", "files": [FILE], "use_cache_manager": False}
    dataset = init_dataset(options)
    dataset.init_seq_order(epoch=1)
    assert dataset.num_seqs == 3  # known at once
    expected = load_golden("n1_stream")["readback"]
    assert dataset.get_data_keys() == expected["data_keys"]
    assert dataset.get_target_list() == expected["target_list"]
    seqs = iterate(dataset)
    for seq, expected_seq in zip(seqs, expected["seqs"], strict=True):
        assert (seq["tag"], seq["len"]) == (expected_seq["tag"], expected_seq["len"])
        for key, info in expected_seq["data"].items():
            assert seq["data"][key].dtype.name == info["dtype"]
            assert seq["data"][key].tolist() == info["value"]
    for key, info in expected["keys"].items():
        assert dataset.get_data_dim(key) == info["dim"]
        assert dataset.get_data_dtype(key) == info["dtype"]
        assert dataset.is_data_sparse(key) == info["sparse"]
        assert dataset.get_data_shape(key) == info["shape"]
    assert dataset.num_outputs == expected["num_outputs"]
    assert dataset.num_inputs == expected["num_inputs"]
    assert dataset.get_all_tags() == [seq["tag"] for seq in seqs]


def test_import_places() -> None:
    for name in returnn.datasets.stream_hdf.__all__:
        assert getattr(returnn.datasets.hdf, name) is getattr(returnn.datasets.stream_hdf, name)
    assert issubclass(NextGenHDFDataset, StreamHDFDataset)
    assert set(StreamHDFDataset.parsers) == {"feature_sequence", "sparse", "segment_alignment"}


def test_orders_pickle_and_several_files(tmp_path: Path) -> None:
    other = tmp_path / "other.hdf"
    shutil.copy(FILE, other)
    with h5py.File(other, "r+") as f:
        del f["seq_names"]
        f["seq_names"] = ["x/1", "x/2", "ä"]
        for stream in f["streams"].values():
            for old, new in zip(list(stream["data"]), ["x\\1", "x\\2", "ä"], strict=True):
                stream["data"].move(old, new)
    dataset = StreamHDFDataset("features", [FILE, str(other)], seq_ordering="sorted")
    dataset.init_seq_order(epoch=1)
    lens = [seq["len"]["data"] for seq in iterate(dataset)]
    assert lens == sorted(lens) and len(lens) == 6
    dataset.init_seq_order(epoch=2, seq_list=["x/2", "b"])
    assert [seq["tag"] for seq in iterate(dataset)] == ["x/2", "b"]
    assert list(dataset.get_current_seq_order()) == [4, 2]
    assert dataset.get_corpus_seq(5).seq_tag == "ä"
    with pytest.raises(KeyError, match="nope"):
        dataset.init_seq_order(epoch=2, seq_list=["nope"])
    copy = pickle.loads(pickle.dumps(dataset))
    copy.init_seq_order(epoch=1)
    assert [seq["len"]["data"] for seq in iterate(copy)] == lens
    copy.finish_epoch(free_resources=True)
    copy.init_seq_order(epoch=1, seq_order=[5])
    assert [seq["tag"] for seq in iterate(copy)] == ["ä"]


def _changed(tmp_path: Path, change: Any) -> str:
    path = tmp_path / f"changed{len(list(tmp_path.iterdir()))}.hdf"
    shutil.copy(FILE, path)
    with h5py.File(path, "r+") as f:
        change(f)
    return str(path)


def test_jump() -> None:
    opts = {"class": "StreamHDFDataset", "input_stream_name": "features", "files": [FILE], "seq_ordering": "random"}
    check_jump(opts)


def test_errors_name_the_file(tmp_path: Path) -> None:
    def _set_parser(f: h5py.File) -> None:
        f["streams/align"].attrs["parser"] = "nope"

    def _set_wide(f: h5py.File) -> None:
        for name in list(f["streams/features/data"]):
            del f["streams/features/data"][name]
            f["streams/features/data"][name] = np.zeros((2, 5), dtype="float32")

    def _set_dtype(f: h5py.File) -> None:
        for name in list(f["streams/classes/data"]):
            del f["streams/classes/data"][name]
            f["streams/classes/data"][name] = np.zeros((2,), dtype="int64")

    def _delete(name: str) -> Any:
        return lambda f: f.__delitem__(name)

    for change, words in [
        (_delete("seq_names"), "does not contain all required datasets/groups"),
        (_delete("streams/features"), "does not contain the input stream features"),
        (_set_parser, "unknown parser.*'nope'"),
        (_delete("streams/classes/feature_names"), "stream 'classes'"),
        (_delete("streams/classes/data/corpus\\rec1\\1"), "stream 'classes'"),
    ]:
        path = _changed(tmp_path, change)
        with pytest.raises(DataFileError, match=f"(?i){words}") as info:
            StreamHDFDataset("features", [path])
        assert path in str(info.value)
    for change, words in [
        (_set_wide, r"Number of features does not match for parser features: 2 \(config\) vs. 5 \(hdf-file\)"),
        (_set_dtype, "another dtype"),
        (_delete("streams/classes"), "does not contain the streams"),
    ]:
        path = _changed(tmp_path, change)
        with pytest.raises(DataFileError, match=words) as info:
            StreamHDFDataset("features", [FILE, path])
        assert path in str(info.value)
    # A sequence that is missing in the middle is found when it is read.
    dataset = StreamHDFDataset("features", [_changed(tmp_path, _delete("streams/classes/data/b"))])
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DataFileError, match=r"'b'.*'classes'"):
        iterate(dataset)
    with pytest.raises(TypeError, match="list"):
        StreamHDFDataset("features", FILE)
    with pytest.raises(DatasetError, match="no data"):
        StreamHDFDataset("features", []).initialize()
    with pytest.raises(DataFileError, match="missing.hdf"):
        StreamHDFDataset("features", ["missing.hdf"])


@pytest.mark.parametrize("name", ["seq_names", "streams", "streams/features/data", "streams/features/data/b"])
def test_objects_of_the_wrong_kind_are_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / "bad.hdf"
    shutil.copy(GOLDEN / "n1_stream.hdf", path)
    with h5py.File(path, "r+") as f:
        is_group = isinstance(f[name], h5py.Group)
        del f[name]
        if is_group:
            f[name] = 3
        else:
            f.create_group(name)
    with pytest.raises(DataFileError, match="bad.hdf"):
        dataset = StreamHDFDataset("features", [str(path)])
        dataset.init_seq_order(epoch=1)
        dataset.load_seqs(0, 3)
    if name.endswith("/b"):
        with pytest.raises(DataFileError, match="length of sequence 'b' of stream 'features' .*bad.hdf"):
            StreamHDFDataset("features", [str(path)], seq_ordering="sorted").init_seq_order(epoch=1)
