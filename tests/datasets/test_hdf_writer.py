"""SimpleHDFWriter and HDFDatasetWriter."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import returnn.datasets.hdf
import returnn.datasets.util.hdf
from returnn.datasets._hdf import dataset_writer as dataset_writer_module
from returnn.datasets._hdf import simple_writer as simple_writer_module
from returnn.datasets.generating import DummyDataset, StaticDataset
from returnn.datasets.hdf import HDFDataset
from returnn.datasets.util.hdf import HDFDatasetWriter, SimpleHDFWriter
from returnn.errors import ConfigError, DataFileError, DatasetError
from tests.datasets.hdf_golden import GOLDEN, check_readback, check_structure, iterate, load_golden

REPO = Path(__file__).resolve().parent.parent.parent


def _golden_values(name: str) -> list[dict[str, Any]]:
    """:return: per sequence its tag and data as arrays"""
    res = []
    for seq in load_golden(name)["readback"]["seqs"]:
        data = {
            key: np.array(info["value"], dtype=info["dtype"]).reshape(info["shape"])
            for key, info in seq["data"].items()
        }
        res.append({"tag": seq["tag"], **data})
    return res


def _pad(arrays: list[np.ndarray]) -> np.ndarray:
    out = np.full((len(arrays), max(map(len, arrays)), *arrays[0].shape[1:]), 99, dtype=arrays[0].dtype)
    for i, array in enumerate(arrays):
        out[i, : len(array)] = array
    return out


def _write_like_golden(path: Path, name: str) -> None:
    """The calls that made the golden files, see the notes there."""
    seqs = _golden_values(name)
    tags = [seq["tag"] for seq in seqs]
    lens = [len(seq["data"]) for seq in seqs]
    if name == "s1_dense":
        writer = SimpleHDFWriter(str(path), dim=3)
        writer.insert_batch(_pad([s["data"] for s in seqs[:2]]), lens[:2], tags[:2])
        writer.insert_batch(_pad([seqs[2]["data"]]), np.array(lens[2:]), [b"seq-2"])
    elif name == "s2_sparse":
        writer = SimpleHDFWriter(path, dim=10, ndim=1)
        writer.insert_batch(_pad([s["data"] for s in seqs[:2]]), lens[:2], tags[:2])
        writer.insert_batch(seqs[2]["data"][None], np.array([1]), tags[2:])
    elif name == "s3_durations_dimNone":
        writer = SimpleHDFWriter(path, dim=None, ndim=1)
        writer.insert_batch(_pad([s["data"] for s in seqs]), lens, tags)
    elif name in ("s4_labels", "s5_labels_unicode"):
        labels = load_golden(name)["readback"]["labels"]["classes"]
        writer = SimpleHDFWriter(path, dim=3, ndim=1, labels=labels)
        writer.insert_batch(_pad([s["data"] for s in seqs]), lens, tags)
    elif name == "s6_extra":
        writer = SimpleHDFWriter(path, dim=2)
        for part in (slice(0, 2), slice(2, 3), slice(3, 4)):
            batch = seqs[part]
            extra: dict[str, Any] = {"score": np.concatenate([s["score"] for s in batch])}
            if part.start < 3:
                extra.update(classes=np.stack([s["classes"] for s in batch]), emb=np.stack([s["emb"] for s in batch]))
            writer.insert_batch(_pad([s["data"] for s in batch]), lens[part], tags[part], extra=extra)
    elif name == "s7_extra_type":
        writer = SimpleHDFWriter(
            path, dim=2, extra_type={"classes": (6, 1, "int32"), "emb": (4, 2, "float32"), "txt": (None, 0, "string")}
        )
        extra = {key: np.stack([s[key] for s in seqs]) for key in ("classes", "emb")}
        extra["txt"] = np.array([["hällo"], ["b"]], dtype=object)
        writer.insert_batch(_pad([s["data"] for s in seqs]), lens, tags, extra=extra)
    elif name == "s8_2d_sizes":
        writer = SimpleHDFWriter(path, dim=None, ndim=2)
        for part in (slice(0, 2), slice(2, 3)):
            sizes = np.array([s["sizes"] for s in seqs[part]])
            batch_data = np.zeros((len(sizes), *sizes.max(axis=0)), dtype="float32")
            for i, s in enumerate(seqs[part]):
                batch_data[i, : sizes[i, 0], : sizes[i, 1]] = s["data"].reshape(sizes[i])
            writer.insert_batch(batch_data, {0: list(sizes[:, 0]), 1: sizes[:, 1]}, tags[part])
    elif name == "s9_2d_sizes_dim":
        writer = SimpleHDFWriter(path, dim=2, ndim=3)
        for s in seqs:
            data = s["data"].reshape(1, *s["sizes"], 2)
            sizes_arg = {0: [s["sizes"][0]], 1: [s["sizes"][1]]}
            writer.insert_batch(data, sizes_arg, [s["tag"]], extra={"classes": s["classes"][None]})
    elif name == "s10_zero_len":
        writer = SimpleHDFWriter(path, dim=2)
        writer.insert_batch(_pad([s["data"] for s in seqs]), lens, tags)
    elif name == "s11_extended":
        shutil.copy(GOLDEN / "s1_dense.hdf", path)
        writer = SimpleHDFWriter(path, dim=3, extend_existing_file=True)
        writer.insert_batch(seqs[3]["data"][None], lens[3:], tags[3:])
    else:
        assert name == "s12_extend_extra"
        for i, s in enumerate(seqs):
            writer = SimpleHDFWriter(path, dim=2, extend_existing_file=i > 0)
            writer.insert_batch(s["data"][None], [lens[i]], [tags[i]], extra={"classes": s["classes"][None]})
            if i == 0:
                writer.close()
    writer.close()


S_NAMES = sorted(p.stem for p in GOLDEN.glob("s*.json") if p.stem != "s14_dtypes")


@pytest.mark.parametrize("name", S_NAMES)
def test_simple_writer_golden(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.hdf"
    _write_like_golden(path, name)
    dataset = HDFDataset([str(path)])
    dataset.initialize()
    check_readback(dataset, load_golden(name)["readback"])
    dataset.close()
    if name == "s12_extend_extra":
        # The peers rewrite the label of the extra stream as variable-length string; ours stays as it was.
        with h5py.File(path, "r+") as f:
            del f["targets/labels/classes"]
            f["targets/labels"].create_dataset("classes", data=["dummy-label"], dtype=h5py.string_dtype("utf-8"))
    check_structure(path, name)


@pytest.mark.parametrize("name", S_NAMES)
def test_simple_writer_golden_with_many_flushes(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(simple_writer_module, "_MAX_PENDING_BYTES", 1)
    test_simple_writer_golden(tmp_path, name, monkeypatch)


def _static(name: str, *, num_outputs: dict[str, Any], **kwargs: Any) -> StaticDataset:
    data = [{key: value for key, value in seq.items() if key != "tag"} for seq in _golden_values(name)]
    return StaticDataset(data=data, output_dim=num_outputs, **kwargs)


def _dump(dataset: Any, path: Path, **kwargs: Any) -> None:
    writer = HDFDatasetWriter(str(path))
    existed = path.exists()
    writer.dump_from_dataset(dataset, use_progress_bar=False, **kwargs)
    assert path.exists() == existed
    writer.close()
    writer.close()


@pytest.mark.parametrize("spool", [True, False])
@pytest.mark.parametrize("bulk", [True, False])
@pytest.mark.parametrize("name", sorted(p.stem for p in GOLDEN.glob("w*.json")))
def test_dataset_writer_golden(
    tmp_path: Path, name: str, bulk: bool, spool: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spool:
        monkeypatch.setattr(dataset_writer_module, "_SPOOL_BYTES", 1)
        monkeypatch.setattr(dataset_writer_module, "_COPY_BYTES", 8)
        monkeypatch.setattr(dataset_writer_module, "_BLOCK_SEQS", 2)
    golden = load_golden(name)
    path = tmp_path / "x.hdf"
    options: dict[str, Any] = {}
    if name == "w5_dummy":
        dataset: Any = DummyDataset(input_dim=2, output_dim=3, num_seqs=4)
    else:
        num_outputs = {key: tuple(dims) for key, dims in golden["readback"]["num_outputs"].items()}
        dataset = _static(name, num_outputs=num_outputs)
        if name == "w3_sparse_unicode_labels":
            dataset.labels = {"classes": ["’", "ä", "x"], "data": list("abcd")}
        if name == "w4_start1_end3":
            seqs = dataset.data
            dataset = StaticDataset(data=[seqs[0], *seqs, seqs[0], seqs[0]], output_dim=num_outputs)
            options = {"start_seq": 1, "end_seq": 3}
    if not bulk:
        monkeypatch.setattr(type(dataset), "supports_bulk", lambda self: False)
    _dump(dataset, path, **options)
    dataset = HDFDataset([str(path)])
    dataset.initialize()
    check_readback(dataset, golden["readback"])
    check_structure(path, name)


def test_both_import_paths() -> None:
    assert returnn.datasets.hdf.SimpleHDFWriter is returnn.datasets.util.hdf.SimpleHDFWriter
    assert returnn.datasets.hdf.HDFDatasetWriter is returnn.datasets.util.hdf.HDFDatasetWriter
    assert returnn.datasets.util.hdf.HDF_SEQ_LENGTHS_KEY == returnn.datasets.hdf.attr_seqLengths == "seqLengths"
    assert (
        returnn.datasets.util.hdf.HDF_INPUT_PATT_SIZE_KEY == returnn.datasets.hdf.attr_inputPattSize == "inputPattSize"
    )
    assert returnn.datasets.util.hdf.HDF_TIMES_KEY == returnn.datasets.hdf.attr_times == "times"


def test_client_patterns(tmp_path: Path) -> None:
    """Calls that client code makes, with their odd types."""
    zero_d = np.array(3)

    def _read(**kwargs: Any) -> list[dict[str, Any]]:
        path = tmp_path / f"{len(list(tmp_path.iterdir()))}.hdf"
        batch = kwargs.pop("batch")
        writer = SimpleHDFWriter(filename=path, **kwargs)
        writer.insert_batch(*batch)
        writer.close()
        dataset = HDFDataset([str(path)])
        dataset.init_seq_order(epoch=1)
        return iterate(dataset)

    f32 = np.arange(12, dtype="float32")
    assert _read(dim=None, ndim=1, batch=(f32[None, :3], [zero_d], ["a"]))[0]["data"]["data"].tolist() == [0, 1, 2]
    assert _read(dim=80, ndim=1, batch=(f32[None, :3], np.array([3]), ["a"]))[0]["data"]["data"].shape == (3,)
    assert _read(dim=9, ndim=1, batch=(np.asarray([[5]], dtype="int32"), [1], ["a"]))[0]["data"]["data"].tolist() == [5]
    assert _read(dim=12, ndim=2, batch=(f32[None, None], [1], ["a"]))[0]["data"]["data"].shape == (1, 12)
    assert _read(dim=1, batch=(f32.reshape(1, -1, 1), [12], ["a"]))[0]["data"]["data"].shape == (12, 1)
    assert _read(dim=12, ndim=1, batch=(f32[None], {}, ["a"]))[0]["data"]["data"].shape == (1, 12)
    # A batch that is padded beyond its longest sequence; tuples.
    assert _read(dim=None, batch=(f32.reshape(2, 6), (2, 1), ("a", "b")))[1]["data"]["data"].tolist() == [6]
    seq = _read(dim=None, ndim=1, batch=(f32[None], [12], ["a"], {"x": np.arange(2)[None], "n": np.array([7])}))[0]
    assert (seq["data"]["x"].tolist(), seq["data"]["n"].tolist()) == ([0, 1], [7])
    seq = _read(dim=None, ndim=1, batch=(f32[None], [12], ["a"], {"n": [np.int64(7)], "s": ["txt"], "v": [1.5]}))[0]
    assert (seq["data"]["n"].tolist(), seq["data"]["s"].tolist(), seq["data"]["v"].tolist()) == ([7], [b"txt"], [1.5])


def test_integer_values_as_floats(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    with SimpleHDFWriter(path, dim=None) as writer:
        writer.insert_batch(np.array([[1, 2]]), [2.0], ["a"])
        writer.insert_batch(np.array([[3.0, 4.0]]), np.array([1.0]), [np.array("b")])
        with pytest.raises(DatasetError, match="do not fit into the dtype"):
            writer.insert_batch(np.array([[3.5]]), [1], ["c"])
    dataset = HDFDataset([str(path)])
    dataset.init_seq_order(epoch=1)
    assert [(seq["tag"], seq["data"]["data"].tolist()) for seq in iterate(dataset)] == [("a", [1, 2]), ("b", [3])]


def test_extra_seq_len_cuts_padding(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    with SimpleHDFWriter(path, dim=None) as writer:
        extra = {"x": np.array([[1, 2, 3], [4, 5, 6]]), "y": [np.array([1]), np.array([2, 3])]}
        writer.insert_batch(np.zeros((2, 1)), [1, 1], ["a", "b"], extra=extra, extra_seq_len={"x": [2, 0]})
    dataset = HDFDataset([str(path)])
    dataset.init_seq_order(epoch=1)
    seqs = iterate(dataset)
    assert [seq["data"]["x"].tolist() for seq in seqs] == [[1, 2], []]
    assert [seq["data"]["y"].tolist() for seq in seqs] == [[1], [2, 3]]


def test_extend_with_several_extras_and_labels(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    for i in range(3):
        with SimpleHDFWriter(
            path, dim=None, extend_existing_file=path.exists(), extra_labels={"b": ["x", "y"]} if i == 0 else None
        ) as writer:
            writer.insert_batch(
                np.zeros((1, 1)), [1], [f"s{i}"], extra={"c": np.arange(3)[None], "b": np.arange(1 + i)[None]}
            )
    with h5py.File(path) as f:
        assert f["seqLengths"][...].tolist() == [[1, 1, 3], [1, 2, 3], [1, 3, 3]]
        assert (f.attrs["numSeqs"], f.attrs["numTimesteps"]) == (3, 3)
    dataset = HDFDataset([str(path)])
    assert dataset.labels["b"] == ["x", "y"]


@pytest.mark.parametrize(
    ("args", "words"),
    [
        ((np.zeros((1, 2)), [2], ["a"]), ["number of axes", "[1, 2]"]),
        ((np.zeros((1, 2, 4)), [2], ["a"]), ["last axis", "expected 3", "4"]),
        ((np.zeros((1, 2, 3)), [3], ["a"]), ["longer than inputs", "3"]),
        ((np.zeros((1, 2, 3)), [2, 2], ["a"]), ["seq_len", "1 ints"]),
        ((np.zeros((1, 2, 3)), [-1], ["a"]), ["seq_len"]),
        ((np.zeros((1, 2, 3)), {1: [2]}, ["a"]), ["wrong axes"]),
        ((np.zeros((1, 2, 3)), [2], ["a", "b"]), ["seq_tag"]),
        ((np.zeros((1, 2, 3)), [2], "a"), ["seq_tag"]),
        ((np.zeros((1, 2, 3)), [2], ["a\0b"]), ["NUL"]),
        ((np.zeros((1, 2, 3)), [2], [7]), ["seq_tag", "7"]),
        ((np.zeros((1, 2, 3)), [2], None), ["seq_tag"]),
        ((np.zeros((1, 2, 3)), [2], [b"\xe4"]), ["seq_tag", "UTF-8"]),
        ((np.zeros((1, 2, 3)), [2], ["a\udce4"]), ["seq_tag", "UTF-8"]),
        ((np.zeros((1, 2, 3)), [1.5], ["a"]), ["seq_len", "1.5"]),
        ((np.zeros((1, 2, 3)), [float("nan")], ["a"]), ["seq_len", "nan"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"data": np.zeros((1, 2))}), ["'data'", "main"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x/y": np.zeros((1, 2))}), ["'x/y'"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"": np.zeros((1, 2))}), ["''"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.array([[1.5]])}), ["'x'", "do not fit", "int32"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"late": np.zeros((1, 2))}), ["'late'", "too late"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"inputs": np.zeros((1, 2))}), ["'inputs'"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.zeros((2, 2))}), ["'x'", "1 entries"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.zeros((1, 2, 5))}), ["'x'", "another form"]),
        (
            (np.zeros((1, 2, 3)), [2], ["a"], {"x": np.zeros((1, 2, 5, 2))}),
            ["'x'", "dynamic dim in first axis|first axis"],
        ),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": [["text"]]}), ["'x'", "another type"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.array([[2**40]])}), ["'x'", "do not fit", "int32"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], None, {"x": [1]}), ["extra_seq_len", "'x'"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.zeros((1, 2), int)}, {"x": [3]}), ["extra_seq_len", "'x'"]),
        # What numpy or Python would refuse in their own words.
        (([[[1, 2, 3]], [[1, 2, 3], [4, 5, 6]]], [1, 2], ["a", "b"]), ["numpy cannot make an array", "Pad"]),
        ((np.zeros((1, 2, 3)), [[1], [1, 2]], ["a"]), ["numpy cannot make an array"]),
        ((np.zeros((1, 2, 3)), [[1, 2]], ["a"]), ["seq_len"]),
        ((np.zeros((1, 2, 3)), [2], np.array("a")), ["seq_tag", "1 tags"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.array(3)}), ["'x'", "1 entries"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": "t"}), ["'x'", "1 entries"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": {0: 1}}), ["'x'", "1 entries"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": [[1, [2]]]}), ["numpy cannot make an array"]),
        ((np.zeros((1, 2, 3)), [2], ["a"], np.ones((1, 2), int)), ["bad extra", "dict"]),
        (
            (np.zeros((1, 2, 3)), [2], ["a"], {"x": np.zeros((1, 2), int)}, np.array([1, 2])),
            ["bad extra_seq_len", "dict"],
        ),
        ((np.zeros((1, 2, 3)), [2], ["a"], {"x": np.zeros((1, 2), int)}, 2), ["bad extra_seq_len", "dict"]),
    ],
)
def test_failed_insert_changes_nothing(tmp_path: Path, args: tuple[Any, ...], words: list[str]) -> None:
    path = tmp_path / "a.hdf"
    writer = SimpleHDFWriter(path, dim=3)
    writer.insert_batch(np.ones((1, 2, 3)), [2], ["good"], extra={"x": np.ones((1, 4), dtype="int32")})
    with pytest.raises(DatasetError) as info:
        writer.insert_batch(*args)
    for word in words:
        assert any(part in str(info.value) for part in word.split("|"))
    assert str(path) in str(info.value)
    writer.insert_batch(np.ones((1, 1, 3)), [1], ["good2"], extra={"x": np.ones((1, 1), dtype="int32")})
    writer.close()
    dataset = HDFDataset([str(path)])
    dataset.init_seq_order(epoch=1)
    assert [(seq["tag"], seq["len"]) for seq in iterate(dataset)] == [
        ("good", {"data": 2, "x": 4}),
        ("good2", {"data": 1, "x": 1}),
    ]


def test_constructor_errors(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    with pytest.raises(NotImplementedError, match="swmr"):
        SimpleHDFWriter(path, dim=3, swmr=True)
    with pytest.raises(AssertionError, match="expected 3 labels"):
        SimpleHDFWriter(path, dim=3, labels=["a"])
    with pytest.raises(AssertionError, match="'inputs'"):
        SimpleHDFWriter(path, dim=3, extra_type={"inputs": (1, 1, "int32")})
    for key in ("data", "x/y", "", "."):
        with pytest.raises(ConfigError, match=f"'{key}' cannot be"):
            SimpleHDFWriter(path, dim=3, extra_type={key: (1, 1, "int32")})
    for entry in [(1, 1), (1, 1, "intxx"), ("3", 1, "int32"), (1, None, "int32"), 7]:
        with pytest.raises(ConfigError, match=r"extra_type\['x'\] is invalid"):
            SimpleHDFWriter(path, dim=3, extra_type={"x": entry})  # type: ignore[dict-item]
    with pytest.raises(ConfigError, match="bad label"):
        SimpleHDFWriter(path, dim=2, labels=["a", "b\udce4"])
    with pytest.raises(AssertionError, match="does not exist"):
        SimpleHDFWriter(path, dim=3, extend_existing_file=True)
    with pytest.raises(DataFileError, match="Create the directory"):
        SimpleHDFWriter(tmp_path / "no" / "a.hdf", dim=3)
    path.write_bytes(b"x")
    with pytest.raises(AssertionError, match="exists already"):
        SimpleHDFWriter(path, dim=3)
    with pytest.raises(DataFileError, match="Cannot write"):
        SimpleHDFWriter(path, dim=3, extend_existing_file=True)
    shutil.copy(GOLDEN / "w1_dense_sparse.hdf", path)
    with pytest.raises(DataFileError, match="fixed size"):
        SimpleHDFWriter(path, dim=3, extend_existing_file=True)
    assert os.listdir(tmp_path) == ["a.hdf"]


def test_life_cycle(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    writer = SimpleHDFWriter(path, dim=2)
    assert repr(writer) == f"<SimpleHDFWriter {str(path)!r} dim=2 ndim=2>"
    assert (writer.filename, writer.dim, writer.ndim, writer.labels) == (str(path), 2, 2, None)
    assert Path(writer.tmp_filename).parent == tmp_path and os.path.exists(writer.tmp_filename)
    writer.insert_batch(np.zeros((1, 1, 2)), [1], ["a"])
    assert not path.exists()
    writer.close()
    writer.close()
    assert os.listdir(tmp_path) == ["a.hdf"]
    with pytest.raises(DatasetError, match="closed"):
        writer.insert_batch(np.zeros((1, 1, 2)), [1], ["a"])
    # Forgotten: nothing stays.
    other = SimpleHDFWriter(tmp_path / "b.hdf", dim=2)
    other.insert_batch(np.zeros((1, 1, 2)), [1], ["a"])
    del other
    assert os.listdir(tmp_path) == ["a.hdf"]
    # Somebody else was faster.
    third = SimpleHDFWriter(tmp_path / "c.hdf", dim=2)
    third.insert_batch(np.zeros((1, 1, 2)), [1], ["a"])
    (tmp_path / "c.hdf").write_bytes(b"x")
    with pytest.raises(DataFileError, match="somebody else"):
        third.close()
    (tmp_path / "c.hdf").unlink()
    third.close()
    assert HDFDataset([str(tmp_path / "c.hdf")]).get_total_num_seqs() == 1


def test_with_closes_also_after_an_error(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), SimpleHDFWriter(tmp_path / "a.hdf", dim=1) as writer:
        writer.insert_batch(np.zeros((1, 1, 1)), [1], ["a"])
        raise ZeroDivisionError
    assert HDFDataset([str(tmp_path / "a.hdf")]).get_all_tags() == ["a"]


def test_forgotten_close_is_said(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    writer = SimpleHDFWriter(tmp_path / "a.hdf", dim=1)
    writer.insert_batch(np.zeros((2, 1, 1)), [1, 1], ["a", "b"])
    del writer
    assert "a.hdf' was not closed, its 2 sequences are lost" in capsys.readouterr().err


def test_failed_write_leaves_no_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As when the disk is full; also with the close of a "with" block afterwards."""

    def _fail(*_args: Any) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(DataFileError, match=r"a.hdf.*No space left.*free space"):
        with SimpleHDFWriter(tmp_path / "a.hdf", dim=1) as writer:
            writer.insert_batch(np.zeros((2, 1, 1)), [1, 1], ["a", "b"])
            monkeypatch.setattr("returnn.datasets._hdf.growing.GrowingDataset.flush", _fail)
    assert not os.listdir(tmp_path)


def test_interrupt_within_insert_batch_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def _interrupt(*_args: Any) -> None:
        raise KeyboardInterrupt

    with pytest.raises(DataFileError, match=r"a.hdf.*inconsistent"):
        with SimpleHDFWriter(tmp_path / "a.hdf", dim=1) as writer:
            writer.insert_batch(np.zeros((2, 1, 1)), [1, 1], ["a", "b"])
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(writer, "_rows", type("Rows", (list,), {"append": _interrupt})(writer._rows))
                try:
                    writer.insert_batch(np.zeros((2, 1, 1)), [1, 1], ["c", "d"])
                except KeyboardInterrupt:
                    pass
    assert not os.listdir(tmp_path)


def test_torch_tensors(tmp_path: Path) -> None:
    torch = pytest.importorskip("torch")
    with SimpleHDFWriter(tmp_path / "a.hdf", dim=2) as writer:
        inputs = torch.arange(8.0, requires_grad=True).reshape(2, 2, 2).to(torch.bfloat16)
        writer.insert_batch(inputs, torch.tensor([2, 1]), ["a", "b"], extra={"x": torch.tensor([[1], [2]])})
    dataset = HDFDataset([str(tmp_path / "a.hdf")])
    dataset.init_seq_order(epoch=1)
    seqs = iterate(dataset)
    assert [seq["data"]["data"].tolist() for seq in seqs] == [[[0, 1], [2, 3]], [[4, 5]]]
    assert [seq["data"]["x"].tolist() for seq in seqs] == [[1], [2]]


def test_caller_may_reuse_the_array(tmp_path: Path) -> None:
    array = np.zeros((1, 2), dtype="int32")
    with SimpleHDFWriter(tmp_path / "a.hdf", dim=None) as writer:
        for i in range(3):
            array[:] = i
            writer.insert_batch(array, [2], [f"s{i}"], extra={"x": array})
    dataset = HDFDataset([str(tmp_path / "a.hdf")])
    dataset.init_seq_order(epoch=1)
    assert [seq["data"]["x"].tolist() for seq in iterate(dataset)] == [[i, i] for i in range(3)]


_KILL_SCRIPT = """
import sys, time, numpy as np
from returnn.datasets.hdf import SimpleHDFWriter
from returnn.datasets._hdf import simple_writer
simple_writer._MAX_PENDING_BYTES = 3000
writer = SimpleHDFWriter(sys.argv[1], dim=None, ndim=1, extend_existing_file=len(sys.argv) > 2)
i = 0
while True:
    writer.insert_batch(np.zeros((1, 5)), [5], [f"k{i}"])
    i += 1
    if i == 200:
        print("ready", flush=True)
"""


@pytest.mark.parametrize("extend", [False, True])
def test_kill_while_writing(tmp_path: Path, extend: bool) -> None:
    path = tmp_path / "a.hdf"
    if extend:
        shutil.copy(GOLDEN / "s3_durations_dimNone.hdf", path)
        before = path.read_bytes()
    args = [sys.executable, "-c", _KILL_SCRIPT, str(path), *(["extend"] if extend else [])]
    with subprocess.Popen(
        args,
        stdout=subprocess.PIPE,
        cwd=REPO,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(REPO), os.environ.get("PYTHONPATH", "")])},
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        process.send_signal(signal.SIGKILL)
    if extend:
        assert path.read_bytes() == before
    else:
        assert not path.exists()
    with SimpleHDFWriter(path, dim=None, ndim=1, extend_existing_file=extend) as writer:
        writer.insert_batch(np.zeros((1, 5), dtype="float32"), [5], ["new"])
    assert HDFDataset([str(path)]).get_all_tags()[-1] == "new"


def _arrays(dtype: str, dim: int | None) -> st.SearchStrategy[list[np.ndarray]]:
    def _make(lens: list[int]) -> list[np.ndarray]:
        rnd = np.random.RandomState(sum(lens))
        return [rnd.randint(0, 100, size=(n,) if dim is None else (n, dim)).astype(dtype) for n in lens]

    return st.lists(st.integers(0, 5), min_size=1, max_size=7).map(_make)


@settings(max_examples=40, deadline=None)
@given(st.data())
def test_write_then_read_identity(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    """Both writers, any lengths, batches, flushes."""
    directory = tmp_path_factory.mktemp("identity")
    dim = data.draw(st.sampled_from([None, 1, 3]))
    main = data.draw(_arrays(data.draw(st.sampled_from(["float32", "int16", "uint8", "float64"])), dim))
    tags = data.draw(st.lists(st.text(alphabet="aä/’", max_size=4), min_size=len(main), max_size=len(main)))
    extras = {
        key: [np.random.RandomState(i).randint(0, 9, size=data.draw(st.integers(0, 3))) for i in range(len(main))]
        for key in data.draw(st.sampled_from([[], ["z"], ["b", "a"]]))
    }
    batch_size = data.draw(st.integers(1, 4))
    path = directory / "simple.hdf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(simple_writer_module, "_MAX_PENDING_BYTES", data.draw(st.sampled_from([1, 1000, 1 << 20])))
        with SimpleHDFWriter(path, dim=dim, ndim=1 if dim is None else 2) as writer:
            for start in range(0, len(main), batch_size):
                part = slice(start, start + batch_size)
                writer.insert_batch(
                    _pad(main[part]),
                    [len(x) for x in main[part]],
                    tags[part],
                    extra={k: v[part] for k, v in extras.items()},
                )
    dataset = HDFDataset([str(path)], seq_ordering=data.draw(st.sampled_from(["default", "reverse"])))
    _check_identity(dataset, main, extras, tags)
    copy = directory / "copy.hdf"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset_writer_module, "_SPOOL_BYTES", data.draw(st.sampled_from([1, 1 << 20])))
        patch.setattr(dataset_writer_module, "_BLOCK_SEQS", 3)
        _dump(dataset, copy)
    order = list(dataset.get_current_seq_order())
    _check_identity(
        HDFDataset([str(copy)]),
        [main[i] for i in order],
        {k: [v[i] for i in order] for k, v in extras.items()},
        [tags[i] for i in order],
    )


def _check_identity(
    dataset: HDFDataset, main: list[np.ndarray], extras: dict[str, list[np.ndarray]], tags: list[str]
) -> None:
    dataset.init_seq_order(epoch=1)
    assert dataset.get_data_keys() == ["data", *sorted(extras)]
    seqs = iterate(dataset)
    assert len(seqs) == len(main)
    for seq, i in zip(seqs, list(dataset.get_current_seq_order()), strict=True):
        assert seq["tag"] == tags[i]
        for key, expected in [("data", main[i]), *((key, values[i]) for key, values in extras.items())]:
            assert seq["data"][key].dtype == expected.dtype
            np.testing.assert_array_equal(seq["data"][key], expected)


def test_dataset_writer_renamed_key_keeps_its_data(tmp_path: Path) -> None:
    """A target "data" becomes "classes", which sorts before "cz"."""

    class _Targets(StaticDataset):
        def get_data_keys(self) -> list[str]:
            return ["data", "cz"]

        def get_target_list(self) -> list[str]:
            return ["data", "cz"]

    dataset = _Targets(
        data=[{"data": np.array([5]), "cz": np.array([7, 8, 9])}], output_dim={"data": (9, 1), "cz": (10, 1)}
    )
    _dump(dataset, tmp_path / "a.hdf")
    got = HDFDataset([str(tmp_path / "a.hdf")])
    got.init_seq_order(epoch=1)
    assert {key: value.tolist() for key, value in iterate(got)[0]["data"].items()} == {"classes": [5], "cz": [7, 8, 9]}


def test_dataset_writer_options_and_errors(tmp_path: Path) -> None:
    seqs = [{"data": np.full((2, 1), i, dtype="float32"), "classes": np.array([i])} for i in range(3)]
    dims = {"data": (1, 2), "classes": (3, 1)}
    dataset = StaticDataset(data=seqs, output_dim=dims)
    path = tmp_path / "a.hdf"
    path.write_bytes(b"")  # job systems create it before
    _dump(dataset, path, start_seq=1, end_seq=1, generate_labels=False)
    got = HDFDataset([str(path)])
    assert (got.get_all_tags(), got.labels) == (["seq-1"], {})
    before = path.read_bytes()
    with pytest.raises(DatasetError, match=r"No sequences.*start_seq 7.*inclusive"), HDFDatasetWriter(path) as writer:
        writer.dump_from_dataset(dataset, start_seq=7, use_progress_bar=False)
    assert path.read_bytes() == before
    bad = {"data": np.zeros((2, 1), "float32"), "classes": np.array([0.5])}
    dataset = StaticDataset(data=[*seqs, bad], output_dim=dims)
    with pytest.raises(DatasetError, match="'classes'"), HDFDatasetWriter(path) as writer:
        writer.dump_from_dataset(dataset, use_progress_bar=False)
    dataset = StaticDataset(data=seqs, output_dim=dims)
    dataset.labels = {"classes": ["a"]}
    with pytest.raises(DatasetError, match="expected 3 labels"), HDFDatasetWriter(path) as writer:
        writer.dump_from_dataset(dataset, use_progress_bar=False)
    assert path.read_bytes() == before and os.listdir(tmp_path) == ["a.hdf"]


def test_single_sequences_are_stored_as_batches_are(tmp_path: Path) -> None:
    """The short way for one sequence per call gives the file that the long way gives."""
    contents = []
    for form in (list, tuple):  # tuples go the long way
        path = tmp_path / f"{form.__name__}.hdf"
        with SimpleHDFWriter(str(path), dim=3) as writer:
            data = np.arange(12, dtype="float32").reshape(1, 4, 3)
            for i, length in enumerate([4, 0, 2, 3]):
                data += 1
                writer.insert_batch(data, form([length]), form([f"seq-{i}"]))
            bad: list[tuple[Any, Any]] = [
                ([5], ["x"]),
                ([-1], ["x"]),
                ([1], ["a\0b"]),
                ([1], [3]),
            ]  # Any: of wrong types
            for bad_len, bad_tag in bad:
                with pytest.raises(DatasetError):
                    writer.insert_batch(data, bad_len, bad_tag)
        with h5py.File(path, "r") as file:
            contents.append({name: file[name][...].tolist() for name in ("inputs", "seqLengths", "seqTags")})
            assert dict(file.attrs)["numTimesteps"] == 9
    assert contents[0] == contents[1]
    assert [lens[0] for lens in contents[0]["seqLengths"]] == [4, 0, 2, 3]
