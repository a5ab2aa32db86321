"""returnn.datasets.hdf: reading."""

from __future__ import annotations

import concurrent.futures
import json
import os
import pickle
import shutil
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets import hdf as hdf_module
from returnn.datasets._hdf import reader as reader_module
from returnn.datasets._hdf import seq_block as seq_block_module
from returnn.datasets._hdf.reader import CorpusReader
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.hdf import HDFDataset, SimpleHDFWriter
from returnn.errors import DataFileError, DatasetError
from tests.datasets.hdf_golden import GOLDEN, check_readback, iterate, load_golden, sha

REPO = Path(__file__).parents[2]
READBACK_NAMES = sorted(
    p.stem for p in GOLDEN.glob("*.json") if p.stem not in ("multi_file", "s14_dtypes", "n1_stream")
)


@pytest.mark.parametrize("name", READBACK_NAMES)
def test_golden_readback(name: str) -> None:
    golden = load_golden(name)
    dataset = HDFDataset([str(GOLDEN / f) for f in golden["files"]])
    dataset.initialize()
    expected = golden["readback"]
    check_readback(dataset, expected)
    assert dataset.get_all_tags() == expected["all_tags"]
    assert dataset.len_info() == expected["len_info"]
    assert dataset.get_num_timesteps() == expected["num_timesteps"]


@pytest.mark.parametrize("name", READBACK_NAMES)
@pytest.mark.parametrize("max_memory_bytes", [0, 1 << 30])
def test_bulk_equals_per_seq(name: str, max_memory_bytes: int) -> None:
    dataset = HDFDataset([str(GOLDEN / f) for f in load_golden(name)["files"]] * 2, seq_ordering="random")
    dataset._reader._max_memory_bytes = max_memory_bytes
    dataset.init_seq_order(epoch=1)
    assert dataset.supports_bulk()
    check_bulk(dataset)


def check_bulk(dataset: HDFDataset) -> None:
    keys = dataset.get_data_keys()
    seqs = iterate(dataset)
    idxs = np.random.RandomState(1).permutation(np.concatenate([np.arange(len(seqs))] * 2))
    bulk = dataset.read_seqs(idxs, keys)
    assert bulk is not None
    tags = dataset.get_seq_tags(idxs)
    for key in keys:
        lens = dataset.get_epoch_seq_lens(key)
        assert lens is not None and lens.dtype == np.int64
        assert lens.tolist() == [seq["len"][key] for seq in seqs]
        for i, idx in enumerate(idxs.tolist()):
            np.testing.assert_array_equal(bulk[key][i], seqs[idx]["data"][key])
    assert tags == [seqs[idx]["tag"] for idx in idxs.tolist()]


def test_golden_orders() -> None:
    golden = load_golden("o1_order")
    for options_text, epochs in golden["orders"].items():
        options = json.loads(options_text)
        for key in ("seq_list_filter_file", "seq_order_seq_lens_file"):
            if key in options:
                options[key] = str(GOLDEN / options[key])
        if any(isinstance(order, str) for order in epochs.values()):
            with pytest.raises((ValueError, AssertionError)):
                HDFDataset([str(GOLDEN / "o1_order.hdf")], **options).init_seq_order(epoch=1)
            continue
        dataset = HDFDataset([str(GOLDEN / "o1_order.hdf")], **options)
        for epoch, order in epochs.items():
            dataset.init_seq_order(epoch=int(epoch))
            assert list(dataset.get_current_seq_order()) == order, (options, epoch)
            assert [dataset.get_tag(i) for i in range(dataset.num_seqs)] == [f"o/{i:02d}" for i in order]


def _check_multi(dataset: HDFDataset, expected: dict[str, Any]) -> None:
    dataset.initialize()
    seqs = iterate(dataset)
    assert dataset.num_seqs == expected["num_seqs"]
    assert [seq["tag"] for seq in seqs] == expected["tags"]
    assert dataset.get_data_keys() == expected["data_keys"]
    assert {key: list(dims) for key, dims in (dataset.num_outputs or {}).items()} == expected["num_outputs"]
    assert [seq["len"] for seq in seqs] == expected["lens"]
    assert dataset.get_num_timesteps() == expected["num_timesteps"]
    assert dataset.labels == expected["labels"]
    assert [{key: sha(data) for key, data in seq["data"].items()} for seq in seqs] == expected["sha"]


def test_golden_multi_file() -> None:
    golden = load_golden("multi_file")

    def _files(*names: str) -> list[str]:
        return [str(GOLDEN / name) + ".hdf" for name in names]

    w1 = _files("w1_dense_sparse")
    _check_multi(HDFDataset(_files("s1_dense", "s11_extended")), golden["s1 + s11 (no targets)"])
    _check_multi(
        HDFDataset(_files("m1_classes_only", "w2_multi_targets")),
        golden["m1 + w2 (first has a subset of the target keys)"],
    )
    _check_multi(HDFDataset(w1 * 2), golden["same file twice"])
    for size in (-1, 100, 10**9):
        name = f"cache_byte_size={size if size != 10**9 else '10**9'}"
        _check_multi(HDFDataset(w1, cache_byte_size=size), golden[name])
    with pytest.raises(AssertionError, match="w2_multi_targets|m1_classes_only"):
        HDFDataset(_files("w2_multi_targets", "m1_classes_only"))
    with pytest.raises(
        AssertionError, match=r"wrong input dimension in file .*w2_multi_targets.hdf \(expected 3 got 2\)"
    ):
        HDFDataset(_files("w1_dense_sparse", "w2_multi_targets"))
    with pytest.raises(TypeError, match="HDFDataset 'files' have to be defined as a list"):
        HDFDataset(w1[0])
    with pytest.raises(AssertionError):
        HDFDataset([]).initialize()
    with pytest.raises(AssertionError, match="To use partition_epoch in HDFDatasets, disable caching"):
        HDFDataset(w1, cache_byte_size=100, partition_epoch=2)
    with pytest.raises(TypeError, match="unexpected keyword argument 'foo'"):
        HDFDataset(w1, foo=1)


def test_golden_dtypes(tmp_path: Path) -> None:
    for dtype, expected in load_golden("s14_dtypes").items():
        path = tmp_path / f"{dtype}.hdf"
        with SimpleHDFWriter(path, dim=10, ndim=1) as writer:
            writer.insert_batch(np.array([[1, 0, 1]]).astype(dtype), [3], ["a"])
        dataset = HDFDataset([str(path)])
        dataset.init_seq_order(epoch=1)
        assert dataset.get_data_dtype("data") == expected["get_data_dtype"]
        assert dataset.is_data_sparse("data") == expected["sparse"]
        assert dataset.get_data_dim("data") == expected["dim"]
        assert dataset.get_data(0, "data").dtype.name == expected["dtype"]
        assert dataset.get_data_shape("data") == expected["shape"]


def test_seq_list_and_random_access() -> None:
    dataset = HDFDataset([str(GOLDEN / "o1_order.hdf")])
    assert dataset.num_seqs == 0
    assert dataset.get_total_num_seqs() == 16
    assert dataset.init_seq_order(epoch=1, seq_list=["o/05", "o/02", "o/05"])
    assert [dataset.get_tag(i) for i in range(3)] == ["o/05", "o/02", "o/05"]
    assert list(dataset.get_current_seq_order()) == [5, 2, 5]
    seq = dataset.get_corpus_seq(7)
    assert (seq.seq_tag, seq.seq_idx, seq.features["data"].tolist()) == ("o/07", 7, list(range(7, 15)))
    assert dataset.get_data_by_seq_tag("o/05", "data").tolist() == [5, 6, 7]
    with pytest.raises(KeyError, match=r"o/99.*16 sequences"):
        dataset.init_seq_order(epoch=1, seq_list=["o/05", "o/99"])
    assert dataset.init_seq_order(epoch=2, seq_order=[3, 3])
    assert not dataset.init_seq_order(epoch=3, seq_order=[3, 3])
    assert dataset.epoch == 3
    # Data is the caller's own.
    dataset.get_data(0, "data")[:] = 77
    assert dataset.get_data(0, "data").tolist() == [3]


def test_pickle_and_late_add_file() -> None:
    dataset = HDFDataset(name="x", seq_ordering="reverse")
    assert (dataset.files, dataset.file_start, list(dataset.file_seq_start)) == ([], [0], [])
    dataset.add_file(str(GOLDEN / "o1_order.hdf"))
    assert dataset.file_seq_start[0][:3].tolist() == [[0, 0], [5, 0], [8, 0]]
    assert dataset.h5_files[0]["inputs"].shape == (83,)
    assert set(dataset.cached_h5_datasets[0]) == {"data"}
    dataset.init_seq_order(epoch=4)
    copy = pickle.loads(pickle.dumps(dataset))
    assert (copy.epoch, copy.num_seqs, copy.name, copy.files) == (4, 0, "x", dataset.files)
    copy.init_seq_order(epoch=4)
    assert [seq["tag"] for seq in iterate(copy)] == [seq["tag"] for seq in iterate(dataset)]


def test_many_files_keep_few_handles_open(tmp_path: Path) -> None:
    files = []
    for i in range(9):
        files.append(str(tmp_path / f"{i}.hdf"))
        shutil.copy(GOLDEN / "s1_dense.hdf", files[-1])
    dataset = HDFDataset(files, seq_ordering="random")
    dataset._reader.handles._max_open = 3
    dataset._reader._max_memory_bytes = 0
    dataset.close()
    dataset.init_seq_order(epoch=1)
    check_bulk(dataset)
    assert len(dataset._reader.handles._handles) <= 3
    dataset.finish_epoch(free_resources=True)
    assert not dataset._reader.handles._handles
    dataset.init_seq_order(epoch=2)
    assert dataset.get_data(0, "data").shape[1] == 3


def test_1d_seq_lengths_and_high_dim_inputs_and_missing_size_group(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    with h5py.File(path, "w") as f:
        f["inputs"] = np.arange(60, dtype="float32").reshape(5, 4, 3)
        f["targets/data/classes"] = np.arange(5, dtype="int32")
        f["seqTags"] = [b"a", b"b"]
        f["seqLengths"] = np.array([2, 3])
    dataset = HDFDataset([str(path)])
    dataset.init_seq_order(epoch=1)
    assert dataset.num_outputs == {"data": [3, 3], "classes": (1, 1)}
    assert dataset.get_data_shape("data") == [4, 3]
    assert dataset.get_data(1, "data").shape == (3, 4, 3)
    assert dataset.get_data(1, "classes").tolist() == [2, 3, 4]


def _write(path: Path, *, lens: Any = ((2, 2), (3, 1)), tags: Any = (b"a", b"b"), **changes: Any) -> str:
    data = {
        "inputs": np.arange(10, dtype="float32").reshape(5, 2),
        "targets/data/classes": np.arange(3, dtype="int32"),
        "seqLengths": np.array(lens, dtype="int32"),
        "seqTags": np.array(tags, dtype="S"),
        **changes,
    }
    with h5py.File(path, "w") as f:
        for name, value in data.items():
            if value is not None:
                f[name] = value
        f.require_group("targets/size").attrs["classes"] = [5, 1]
    return str(path)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"lens": [[2, 2], [4, 1]]}, ["'data'", "6 frames", "got 5"]),
        ({"lens": [[2, 2], [3, 4]]}, ["'classes'", "6 frames", "got 3"]),
        ({"lens": [[2, 2], [3, -1]]}, ["negative", "[3, -1]"]),
        ({"lens": [[2], [3]]}, ["seqLengths", "['data', 'classes']", "[2, 1]"]),
        ({"tags": [b"a"]}, ["seqTags", "2 tags", "[1]"]),
        ({"seqTags": None}, ["seqTags", "2 tags"]),
        ({"seqLengths": None}, ["seqLengths"]),
        ({"inputs": None}, ["seqLengths", "['classes']"]),
        ({"inputs": None, "targets/data/data": np.arange(3)}, ["'data'"]),
        ({"targets/data/data": np.arange(3)}, ["Cannot use 'data' key for both"]),
        ({"targets/data/extra": np.arange(3), "lens": [[2, 2, 2], [3, 1, 1]]}, ["no size of the target 'extra'"]),
        ({"inputs": np.arange(5)}, ["inputPattSize"]),
        ({"inputs": np.float32(3)}, ["scalar"]),
        ({"targets/data/classes": h5py.SoftLink("/nowhere")}, ["'classes'", "3 frames", "got 0"]),
        ({"inputs": h5py.SoftLink("/nowhere")}, ["inputs", "nowhere"]),
        ({"seqLengths": np.array([[2, 2], [2**40, 1]])}, ["'data'", "at most 5 frames", "got 1099511627776"]),
        ({"seqLengths": np.array([[2**64 - 1, 2], [6, 1]], dtype="uint64")}, ["'data'", "sequence 0"]),  # sum wraps
        ({"seqLengths": np.array([[2.0, 2.0], [3.0, 1.0]])}, ["seqLengths", "float64"]),
        ({"seqTags": np.array([1.0, np.nan])}, ["seqTags", "no texts", "float64"]),
        ({"seqTags": np.array([[b"a"], [b"b"]])}, ["seqTags", "[2, 1]"]),
        ({"targets/labels/classes": np.array([b"\xe4", b"b"])}, ["targets/labels/classes", "UTF-8"]),
    ],
)
def test_inconsistent_file_names_file_and_key(tmp_path: Path, changes: dict[str, Any], words: list[str]) -> None:
    path = _write(tmp_path / "bad.hdf", **changes)
    with pytest.raises(DataFileError) as info:
        HDFDataset([path])
    for word in [*words, path]:
        assert word in str(info.value)


@pytest.mark.parametrize(
    "name", ["inputs", "seqLengths", "seqTags", "targets/data/classes", "labels", "times", "targets/labels/x"]
)
def test_group_in_place_of_array(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / "bad.hdf")
    with h5py.File(path, "r+") as f:
        if name in f:
            del f[name]
        f.create_group(name)
    with pytest.raises(DataFileError, match=rf"'{name}' of HDF file .*bad.hdf.* expected HDF5 array, got 'group'"):
        HDFDataset([path])


@pytest.mark.parametrize("name", ["targets", "targets/data", "targets/size"])
def test_array_in_place_of_group(tmp_path: Path, name: str) -> None:
    path = _write(tmp_path / "bad.hdf")
    with h5py.File(path, "r+") as f:
        del f[name]
        f[name] = 3
    with pytest.raises(DataFileError, match=rf"'{name}' of HDF file .*bad.hdf.* expected HDF5 group, got 'array'"):
        HDFDataset([path])


def test_tags_must_be_utf8(tmp_path: Path) -> None:
    fixed = _write(tmp_path / "fixed.hdf", tags=[b"a", b"\xe4x"])
    variable = _write(tmp_path / "var.hdf", seqTags=None)
    with h5py.File(variable, "r+") as f:
        f.create_dataset("seqTags", data=np.array([b"\xc3\xa4", b"\xe4x"], dtype=object), dtype=h5py.string_dtype())
    for path in (fixed, variable):
        dataset = HDFDataset([path])
        with pytest.raises(DataFileError, match=rf"Tag 1 in 'seqTags' of HDF file '{path}' is no UTF-8 text"):
            dataset.get_all_tags()


def test_attributes_as_arrays_of_one_number(tmp_path: Path) -> None:
    path = _write(tmp_path / "a.hdf", inputs=np.arange(5, dtype="uint8"))
    with h5py.File(path, "r+") as f:
        f.attrs["inputPattSize"] = np.array([7])
        f["targets/size"].attrs["classes"] = np.array([5])
    assert HDFDataset([path]).num_outputs == {"data": [7, 1], "classes": (5, 1)}
    for value in ("seven", [1, 2]):
        with h5py.File(path, "r+") as f:
            f.attrs["inputPattSize"] = value
        with pytest.raises(DataFileError, match=r"inputPattSize.*a.hdf"):
            HDFDataset([path])


def test_file_of_writer_without_sequences_is_named(tmp_path: Path) -> None:
    path = tmp_path / "nothing.hdf"
    SimpleHDFWriter(path, dim=3).close()
    with pytest.raises(DataFileError, match=r"nothing.hdf' holds no sequences"):
        HDFDataset([str(path)])


def test_files_option() -> None:
    for files in ("a.hdf", {"a.hdf"}, [None], ["a.hdf", 3]):
        with pytest.raises(TypeError, match="'files'") as info:
            HDFDataset(files, name="train")  # type: ignore[arg-type]
        assert isinstance(info.value, DatasetError) and "'train'" in str(info.value)


def test_unknown_key() -> None:
    dataset = HDFDataset([str(GOLDEN / "s6_extra.hdf")])
    for method in (dataset.get_data_dim, dataset.get_data_dtype, dataset.get_data_shape):
        with pytest.raises(DatasetError, match="nokey"):
            method("nokey")


def test_not_readable_files(tmp_path: Path) -> None:
    good = _write(tmp_path / "good.hdf")
    cases = {
        "missing.hdf": None,
        "empty.hdf": b"",
        "text.hdf": b"no HDF file\n" * 100,
        "cut.hdf": Path(good).read_bytes()[:-500],
    }
    for name, content in cases.items():
        path = tmp_path / name
        if content is not None:
            path.write_bytes(content)
        with pytest.raises(DataFileError, match=name):
            HDFDataset([str(path)])
    with pytest.raises(DataFileError, match="directory"):
        HDFDataset([str(tmp_path)])
    with h5py.File(tmp_path / "nothing.hdf", "w"):
        pass
    with pytest.raises(DataFileError, match=r"nothing.hdf.*neither 'inputs' nor 'targets'"):
        HDFDataset([str(tmp_path / "nothing.hdf")])
    with pytest.raises(DataFileError, match="StreamHDFDataset"):
        HDFDataset([str(GOLDEN / "n1_stream.hdf")])


def test_dtype_and_dims_must_agree_between_files(tmp_path: Path) -> None:
    first = _write(tmp_path / "1.hdf")
    other = _write(tmp_path / "2.hdf", **{"targets/data/classes": np.arange(3, dtype="int64")})
    with pytest.raises(DataFileError, match=r"2.hdf.*dtype .* of 'classes'.*1.hdf.*expected int32 .*got 'int64"):
        HDFDataset([first, other])
    with h5py.File(other, "r+") as f:
        f["targets/size"].attrs["classes"] = [6, 1]
    with pytest.raises(DataFileError, match="wrong dimensions in file .*2.hdf"):
        HDFDataset([first, other])


def test_targets_only_files_with_more_keys_later(tmp_path: Path) -> None:
    paths = []
    for i, keys in enumerate([["b"], ["a", "b"]]):
        paths.append(str(tmp_path / f"{i}.hdf"))
        with h5py.File(paths[-1], "w") as f:
            for k, key in enumerate(keys):
                f[f"targets/data/{key}"] = np.arange(3 + k, dtype="int32")
                f.require_group("targets/size").attrs[key] = [9, 1]
            f.require_group("targets/labels")
            f["seqLengths"] = [[3 + k for k in range(len(keys))]]
            f["seqTags"] = [f"seq{i}".encode()]
    dataset = HDFDataset(paths)
    dataset.init_seq_order(epoch=1)
    assert dataset.get_data_keys() == ["b"]
    assert [dataset.get_data(i, "b").tolist() for i in range(2)] == [[0, 1, 2], [0, 1, 2, 3]]


def test_empty_and_filtered_datasets(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "empty.hdf",
        lens=np.zeros((0, 2)),
        tags=np.zeros(0, dtype="S1"),
        **{"inputs": np.zeros((0, 2)), "targets/data/classes": np.zeros(0, dtype="int32")},
    )
    with pytest.raises(DatasetError, match=r"no sequences.*empty.hdf"):
        HDFDataset([path]).init_seq_order(epoch=1)
    filter_file = tmp_path / "filter.txt"
    filter_file.write_text("nothing\n")
    dataset = HDFDataset([_write(tmp_path / "good.hdf")], seq_list_filter_file=str(filter_file))
    with pytest.raises(DatasetError, match="empty after applying seq_list_filter_file"):
        dataset.init_seq_order(epoch=1)


def test_bad_access_has_clear_errors(tmp_path: Path) -> None:
    dataset = HDFDataset([_write(tmp_path / "good.hdf")])
    with pytest.raises(DatasetError, match="init_seq_order"):
        dataset.get_data(0, "data")
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match="'nokey'"):
        dataset.get_data(0, "nokey")
    with pytest.raises(DatasetError, match="sequence 2 does not exist"):
        dataset.get_data(2, "data")
    dataset.load_seqs(1, 30)
    for start, end in [(1, 0), (-1, 2), (3, 4)]:
        with pytest.raises(AssertionError, match="load_seqs"):
            dataset.load_seqs(start, end)
    with pytest.raises(DatasetError, match="corpus"):
        dataset.init_seq_order(epoch=1, seq_order=[5])


def test_duplicate_tags_warn_once_and_last_wins(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    dataset = HDFDataset([_write(tmp_path / "dup.hdf", tags=(b"a", b"a"))])
    dataset.init_seq_order(epoch=1, seq_list=["a"])
    dataset.init_seq_order(epoch=2, seq_list=["a", "a"])
    assert list(dataset.get_current_seq_order()) == [1, 1]
    assert capsys.readouterr().out.count("1 sequence tags occur again") == 1


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_characters="\0", exclude_categories=["Cs"]), max_size=6), max_size=30
    ),
    st.lists(st.text(max_size=3, alphabet="ab"), max_size=5),
)
def test_tag_table_property(tags: list[str], others: list[str]) -> None:
    table = TagTable.from_tags(tags)
    assert table.to_list() == tags
    assert [table[i] for i in range(len(tags))] == tags
    last = {tag: i for i, tag in enumerate(tags)}
    assert table.find(tags + others).tolist() == [last.get(tag, -1) for tag in tags + others]
    assert table.num_duplicates() == len(tags) - len(last)
    assert table.find_table(TagTable.from_tags(others)).tolist() == [last.get(tag, -1) for tag in others]
    assert table.contained_in(others).tolist() == [tag in others for tag in tags]
    assert table.same_tags(TagTable.from_tags(tags))
    assert not table.same_tags(TagTable.from_tags([*tags, "x"]))


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_reader_ranges_property(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Any order, any lengths, several files: block reads give the same as slices."""
    lens = [data.draw(st.lists(st.integers(0, 4), min_size=1, max_size=6)) for _ in range(data.draw(st.integers(1, 3)))]
    directory = tmp_path_factory.mktemp("reader")
    expected = []
    reader = CorpusReader(max_memory_bytes=data.draw(st.sampled_from([0, 1 << 20])), max_open_files=1)
    value = 0
    for i, file_lens in enumerate(lens):
        path = directory / f"{i}.hdf"
        total = sum(file_lens)
        frames = np.arange(value, value + total)
        value += total
        bounds = np.cumsum([0, *file_lens])
        expected += [frames[a:b] for a, b in zip(bounds[:-1], bounds[1:], strict=True)]
        with h5py.File(path, "w") as f:
            f["inputs"] = frames
            f.attrs["inputPattSize"] = 1
            f["seqLengths"] = np.stack([file_lens, np.zeros_like(file_lens)], axis=1)
            f["seqTags"] = np.array([b"x"] * len(file_lens))
        reader.add(reader.inspect(str(path)))
    order = np.array(data.draw(st.lists(st.integers(0, len(expected) - 1), max_size=12)), dtype=np.int64)
    gap, min_copy = data.draw(st.sampled_from([0, 8, 1 << 16])), data.draw(st.sampled_from([0, 1 << 16]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reader_module, "_MAX_GAP_BYTES", gap)
        patch.setattr(reader_module, "_MIN_BYTES_FOR_COPY", min_copy)
        flat, got_lens = reader.read("data", order)
    assert got_lens.tolist() == [len(expected[i]) for i in order.tolist()]
    assert flat.tolist() == [x for i in order.tolist() for x in expected[i].tolist()]


def test_damaged_data_names_file_and_stream(tmp_path: Path) -> None:
    """Metadata is whole, but a compressed block is not."""
    path = tmp_path / "damaged.hdf"
    with h5py.File(path, "w") as f:
        data = f.create_dataset(
            "inputs", data=np.random.RandomState(1).rand(5000, 2), compression="gzip", chunks=(5000, 2)
        )
        f["seqLengths"] = [[5000, 0]]
        f["seqTags"] = [b"a"]
        info = data.id.get_chunk_info(0)
    with open(path, "r+b") as raw:
        raw.seek(info.byte_offset + 100)
        raw.write(b"\xff" * 2000)
    dataset = HDFDataset([str(path)])
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DataFileError, match=r"'inputs'.*damaged.hdf"):
        dataset.get_data(0, "data")


def test_file_that_disappears_is_named(tmp_path: Path) -> None:
    path = tmp_path / "gone.hdf"
    shutil.copy(GOLDEN / "s1_dense.hdf", path)
    dataset = HDFDataset([str(path)])
    dataset.init_seq_order(epoch=1)
    dataset.close()
    path.unlink()
    with pytest.raises(DataFileError, match="gone.hdf.*does not exist"):
        dataset.get_data(0, "data")


def _constant(path: Path, num_seqs: int, value: int, *, num_frames: int = 3) -> None:
    path.unlink(missing_ok=True)
    with SimpleHDFWriter(path, dim=2) as writer:
        for i in range(num_seqs):
            data = np.full((1, num_frames, 2), value + i, dtype="float32")
            writer.insert_batch(data, [num_frames], [f"{value}-{i}"])


@pytest.mark.parametrize("max_memory_bytes", [0, 1 << 20])
def test_file_may_grow_while_in_use(tmp_path: Path, max_memory_bytes: int) -> None:
    paths = [tmp_path / "a.hdf", tmp_path / "b.hdf"]
    for i, path in enumerate(paths):
        _constant(path, 3, 10 * i)
    dataset = HDFDataset([str(path) for path in paths])
    dataset._reader._max_memory_bytes = max_memory_bytes
    dataset.init_seq_order(epoch=1)
    dataset.close()
    with SimpleHDFWriter(paths[0], dim=2, extend_existing_file=True) as writer:
        writer.insert_batch(np.zeros((1, 1, 2), dtype="float32"), [1], ["new"])
    assert dataset.get_all_tags() == ["0-0", "0-1", "0-2", "10-0", "10-1", "10-2"]
    assert [dataset.get_data(i, "data")[0, 0] for i in range(6)] == [0, 1, 2, 10, 11, 12]


@pytest.mark.parametrize("max_memory_bytes", [0, 1 << 20])
@pytest.mark.parametrize(("num_seqs", "num_frames"), [(1, 3), (3, 4), (8, 2)])
def test_file_that_is_replaced_while_in_use(
    tmp_path: Path, max_memory_bytes: int, num_seqs: int, num_frames: int
) -> None:
    path = tmp_path / "a.hdf"
    _constant(path, 3, 0)
    dataset = HDFDataset([str(path)])
    dataset._reader._max_memory_bytes = max_memory_bytes
    dataset.init_seq_order(epoch=1)
    dataset.close()
    _constant(path, num_seqs, 0, num_frames=num_frames)
    for read in (lambda: dataset.get_data(0, "data"), dataset.get_all_tags):
        with pytest.raises(DataFileError, match=r"a.hdf' was replaced by another one while it was in use"):
            read()


def test_file_that_another_process_writes(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    _constant(path, 3, 0)
    code = "import h5py, sys; f = h5py.File(sys.argv[1], 'a'); print('open', flush=True); sys.stdin.readline()"
    with subprocess.Popen(
        [sys.executable, "-c", code, str(path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None and process.stdout.readline() == "open\n"
        with pytest.raises(DataFileError, match=r"a.hdf': another process has it open for writing"):
            HDFDataset([str(path)])
        process.communicate("\n")
    HDFDataset([str(path)])


def test_low_limit_of_open_files(tmp_path: Path) -> None:
    for i in range(30):
        _constant(tmp_path / f"{i}.hdf", 2, i)
    code = textwrap.dedent(
        """
        import resource, sys
        from returnn.datasets.hdf import HDFDataset
        resource.setrlimit(resource.RLIMIT_NOFILE, (20, 20))
        dataset = HDFDataset([f"{sys.argv[1]}/{i}.hdf" for i in range(30)])
        dataset._reader._max_memory_bytes = 0
        dataset.init_seq_order(epoch=1)
        print([int(dataset.get_data(i, "data")[0, 0]) for i in range(60)] == [i // 2 + i % 2 for i in range(60)])
        """
    )
    res = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, cwd=REPO)
    assert res.stdout.endswith("True\n"), res.stderr


def test_forked_process_opens_its_own_files() -> None:
    dataset = HDFDataset([str(GOLDEN / "o1_order.hdf")])
    dataset._reader._max_memory_bytes = 0
    dataset.init_seq_order(epoch=1)
    assert dataset.get_data(0, "data").tolist() == [0, 1, 2, 3, 4]
    handles = dataset._reader.handles
    (own,) = handles._handles.values()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:  # the child must not run the rest of the test session
        try:
            data = dataset.get_data(7, "data").tolist()
            (other,) = handles._handles.values()
            os.write(write_end, repr((data, other is own)).encode())
        finally:
            os._exit(0)
    os.close(write_end)
    with os.fdopen(read_end, "rb") as pipe:
        assert pipe.read() == repr((list(range(7, 15)), False)).encode()
    os.waitpid(pid, 0)
    assert dataset.get_data(3, "data").tolist() == [3]


def test_threads_share_a_dataset(tmp_path: Path) -> None:
    """Bulk reads from several threads, with fewer handles than files."""
    files = []
    for i in range(4):
        files.append(str(tmp_path / f"{i}.hdf"))
        shutil.copy(GOLDEN / "o1_order.hdf", files[-1])
    dataset = HDFDataset(files, seq_ordering="random")
    dataset._reader._max_memory_bytes = 0
    dataset._reader.handles._max_open = 2
    dataset.close()
    dataset.init_seq_order(epoch=1)
    expected = [seq["data"]["data"].tolist() for seq in iterate(dataset)]

    def _read(seed: int) -> bool:
        idxs = np.random.RandomState(seed).permutation(dataset.num_seqs)
        data = dataset.read_seqs(idxs, ["data"])
        assert data is not None
        return [x.tolist() for x in data["data"]] == [expected[i] for i in idxs]

    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        assert all(pool.map(_read, range(40)))


def test_cache_byte_size_keeps_larger_files_in_memory() -> None:
    for size, in_memory in [(0, False), (100, False), (10**6, True), (-1, True)]:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(hdf_module, "_MAX_MEMORY_BYTES", 10)
            dataset = HDFDataset([str(GOLDEN / "o1_order.hdf")], cache_byte_size=size)
        dataset.init_seq_order(epoch=1)
        check_bulk(dataset)
        assert bool(dataset._reader._in_memory) == in_memory


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(0, 15), max_size=40), st.integers(1, 5), st.sampled_from([1, 40, 1 << 20]))
def test_any_access_pattern(jumps: list[int], stride: int, max_bytes: int) -> None:
    """In order, in steps of loader workers, jumping: always the sequence that was asked for."""
    dataset = HDFDataset([str(GOLDEN / "o1_order.hdf")], seq_ordering="random")
    dataset.init_seq_order(epoch=1)
    order = list(dataset.get_current_seq_order())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq_block_module, "_MAX_BYTES", max_bytes)
        for i in [*range(0, 16, stride), *jumps, *range(3, 16, stride)]:
            assert dataset.get_tag(i) == f"o/{order[i]:02d}"
            data = dataset.get_data(i, "data")
            assert data[0] == order[i] and len(data) == dataset.get_seq_length(i)["data"]


def test_steps_of_workers_read_only_their_sequences(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = HDFDataset([str(GOLDEN / "o1_order.hdf")])
    dataset.init_seq_order(epoch=1)
    read: list[int] = []
    original = CorpusReader.read
    monkeypatch.setattr(
        CorpusReader, "read", lambda self, key, idxs: (read.extend(idxs.tolist()), original(self, key, idxs))[1]
    )
    for i in range(1, 16, 4):
        dataset.get_data(i, "data")
    assert read == [1, 5, 9, 13]


def test_different_labels_of_files_are_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    paths = []
    for i, labels in enumerate([["a", "b"], ["a", "c"]]):
        paths.append(str(tmp_path / f"{i}.hdf"))
        with SimpleHDFWriter(paths[-1], dim=2, ndim=1, labels=labels) as writer:
            writer.insert_batch(np.zeros((1, 1), dtype="int32"), [1], ["x"])
    dataset = HDFDataset(paths)
    assert dataset.labels["data"] == ["a", "c"]
    assert "1.hdf has other labels of 'data'" in capsys.readouterr().out
    HDFDataset(paths[:1] * 2)
    assert "other labels" not in capsys.readouterr().out
