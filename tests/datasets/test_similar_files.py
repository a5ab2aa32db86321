"""Many HDF files of one form: the quick way gives what the general way gives, or leaves the file to it."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest

from returnn.datasets._hdf import handles, reader
from returnn.datasets._hdf.file_index import FileIndex, read_file_index
from returnn.datasets._hdf.similar_files import FileForm
from returnn.datasets.hdf import HDFDataset, SimpleHDFWriter
from returnn.errors import DataFileError


def _write_plain(path: str, num_seqs: int = 3, seed: int = 0) -> str:
    """Classes as inputs, one target, arrays without chunks."""
    lens = numpy.random.RandomState(seed).randint(1, 5, (num_seqs, 2)).astype("int32")
    with h5py.File(path, "w") as file:
        file["inputs"] = numpy.arange(lens[:, 0].sum(), dtype="int32")
        file["targets/data/classes"] = numpy.arange(lens[:, 1].sum(), dtype="int32")
        file.require_group("targets/size").attrs["classes"] = [50, 1]
        file.require_group("targets/labels")
        file["seqLengths"] = lens
        file["seqTags"] = numpy.array([f"seq-{seed}-{i}" for i in range(num_seqs)], dtype="S")
        file.attrs["inputPattSize"] = 1000
    return path


def _write_with_writer(path: str, num_seqs: int = 3, seed: int = 0) -> str:
    """Features, an extra stream with labels, growing arrays, texts of any length as tags."""
    labels = [f"label {i}" for i in range(7)]
    writer = SimpleHDFWriter(path, dim=5, extra_type={"align": (7, 1, "int32")}, extra_labels={"align": labels})
    data = numpy.random.RandomState(seed).rand(num_seqs, 4, 5).astype("float32")
    tags = [f"seq-{seed}-{i}" for i in range(num_seqs)]
    writer.insert_batch(data, [4] * num_seqs, tags, extra={"align": numpy.zeros((num_seqs, 2), "int32")})
    writer.close()
    return path


WRITERS = {"plain": _write_plain, "writer": _write_with_writer}


def _form(path: str) -> FileForm:
    with h5py.File(path, "r") as file:
        form = FileForm.of(file, read_file_index(file, path))
    assert form is not None
    return form


def _same(first: FileIndex, second: FileIndex) -> bool:
    values = [dataclasses.asdict(index) for index in (first, second)]
    lens = [value.pop("lens") for value in values]
    return values[0] == values[1] and lens[0].dtype == lens[1].dtype and numpy.array_equal(lens[0], lens[1])


@pytest.mark.parametrize("kind", WRITERS)
def test_quick_way_gives_the_same(tmp_path: Path, kind: str) -> None:
    """Other numbers of sequences, other lengths."""
    form = _form(WRITERS[kind](str(tmp_path / "first.hdf")))
    for num_seqs in (1, 3, 2000):
        path = WRITERS[kind](str(tmp_path / f"{num_seqs}.hdf"), num_seqs, seed=num_seqs)
        index = form.read(path)
        with h5py.File(path, "r") as file:
            assert index is not None and _same(index, read_file_index(file, path))


def _set(name: str, value: object) -> Callable[[h5py.File], None]:
    def _replace(file: h5py.File) -> None:
        if name in file:
            del file[name]
        file[name] = value

    return _replace


def _link_outside(file: h5py.File) -> None:
    del file["inputs"]
    file["inputs"] = h5py.ExternalLink("other.hdf", "/inputs")


def _external_storage(file: h5py.File) -> None:
    shape = file["inputs"].shape
    del file["inputs"]
    file.create_dataset("inputs", shape, "int32", external=[(os.path.abspath(__file__), 0, h5py.h5f.UNLIMITED)])


def _virtual(file: h5py.File) -> None:
    shape = file["inputs"].shape
    del file["inputs"]
    layout = h5py.VirtualLayout(shape, "int32")
    layout[:] = h5py.VirtualSource("other.hdf", "inputs", shape)
    file.create_virtual_dataset("inputs", layout)


OTHER_FORMS: dict[str, Callable[[h5py.File], None]] = {
    "other dtype": _set("targets/data/classes", numpy.zeros(7, "int64")),
    "other frame shape": _set("inputs", numpy.zeros((9, 1), "int32")),
    "inputs are a group": lambda file: (file.pop("inputs"), file.create_group("inputs"))[0],
    "one more target": _set("targets/data/more", numpy.zeros(0, "int32")),
    "one target less": lambda file: file.pop("targets/data/classes"),
    "other number of classes": lambda file: file["targets/size"].attrs.modify("classes", [51, 1]),
    "size is one number": lambda file: file["targets/size"].attrs.create("classes", 50),
    "one more size": lambda file: file["targets/size"].attrs.create("more", [3, 1]),
    "other input dimension": lambda file: file.attrs.modify("inputPattSize", 999),
    "no input dimension": lambda file: file.attrs.pop("inputPattSize"),
    "labels": _set("targets/labels/classes", numpy.array([b"a", b"b"])),
    "root labels": _set("labels", numpy.array([b"a", b"b"])),
    "labels are an array": _set("targets/labels", numpy.zeros(3)),
    "times": _set("times", numpy.zeros((3, 2))),
    "lengths of 64 bits": lambda file: _set("seqLengths", file["seqLengths"][...].astype("int64"))(file),
    "one column of lengths": lambda file: _set("seqLengths", file["seqLengths"][:, 0])(file),
    "negative length": lambda file: file["seqLengths"].write_direct(numpy.full((3, 2), -1, "int32")),
    "frames missing": lambda file: _set("inputs", file["inputs"][1:])(file),
    "tag missing": lambda file: _set("seqTags", file["seqTags"][1:])(file),
    "tags are numbers": _set("seqTags", numpy.zeros(3)),
    "link to another file": _link_outside,
    "soft link": lambda file: (file.move("inputs", "moved"), file.__setitem__("inputs", h5py.SoftLink("/moved")))[0],
    "external storage": _external_storage,
    "virtual array": _virtual,
}


@pytest.mark.parametrize("case", OTHER_FORMS)
def test_other_forms_are_left_to_the_general_way(tmp_path: Path, case: str) -> None:
    """Each difference, so that its error or warning is as for a single file."""
    form = _form(_write_plain(str(tmp_path / "first.hdf")))
    path = _write_plain(str(tmp_path / "second.hdf"), seed=1)
    assert form.read(path) is not None
    with h5py.File(path, "r+") as file:
        OTHER_FORMS[case](file)
    assert form.read(path) is None


@pytest.mark.parametrize(
    "size", [numpy.array([50, 2], "int32"), numpy.array([[50], [1]], "int32"), numpy.array([50, 0, 0, 0], "int16")]
)
@pytest.mark.parametrize("first_size", [50, [50]])
def test_size_of_as_many_bytes_in_another_form(tmp_path: Path, first_size: object, size: numpy.ndarray) -> None:
    """It is not read into the memory for a single number: it would be taken for this one, and is longer when converted."""
    first = _write_plain(str(tmp_path / "first.hdf"))
    second = _write_plain(str(tmp_path / "second.hdf"), seed=1)
    for path, value in [(first, first_size), (second, size)]:
        with h5py.File(path, "r+") as file:
            file["targets/size"].attrs.create("classes", value)
    assert _form(first).read(second) is None


@pytest.mark.parametrize("content", [b"", b"\x89HDF\r\n\x1a\n", b"no HDF"], ids=["empty", "truncated", "other"])
def test_broken_files_are_left_to_the_general_way(tmp_path: Path, content: bytes) -> None:
    """So the error has all it has for a single file."""
    paths = [_write_plain(str(tmp_path / f"{i}.hdf")) for i in range(3)]
    Path(paths[2]).write_bytes(content)
    assert _form(paths[0]).read(paths[2]) is None
    with pytest.raises(DataFileError, match=r"2\.hdf"):
        HDFDataset(paths)
    os.remove(paths[2])
    with pytest.raises(DataFileError, match="does not exist"):
        HDFDataset(paths)


def test_forms_that_cannot_be_compared(tmp_path: Path) -> None:
    """Texts as data."""
    path = str(tmp_path / "texts.hdf")
    writer = SimpleHDFWriter(path, dim=None, ndim=1, extra_type={"text": (None, 1, "string")})
    writer.insert_batch(numpy.zeros((1, 2), "int32"), [2], ["seq"], extra={"text": numpy.array(["some text"])})
    writer.close()
    with h5py.File(path, "r") as file:
        assert FileForm.of(file, read_file_index(file, path)) is None


@pytest.mark.parametrize("kind", WRITERS)
def test_dataset_reads_only_the_first_file_in_the_general_way(
    tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And files in between that differ; the data is that of all files."""
    seen: list[str] = []

    def _read(h5_file: h5py.File, filename: str) -> FileIndex:
        seen.append(os.path.basename(filename))
        return read_file_index(h5_file, filename)

    monkeypatch.setattr(reader, "read_file_index", _read)
    paths = [WRITERS[kind](str(tmp_path / f"{i}.hdf"), 2 + i % 3, seed=i) for i in range(12)]
    with h5py.File(paths[6], "r+") as file:
        file["more"] = numpy.zeros(3)
    dataset = HDFDataset(paths)
    assert seen == ["0.hdf", "6.hdf"], (
        "the form of the file 6 has a member that nobody knows, so the file 5 is taken again"
    )
    dataset.init_seq_order(epoch=1)
    assert dataset.get_all_tags() == [f"seq-{i}-{j}" for i in range(12) for j in range(2 + i % 3)]
    for i, path in enumerate(paths):
        single = HDFDataset([path])
        single.init_seq_order(epoch=1)
        for j in range(single.num_seqs):
            for key in single.get_data_keys():
                data = dataset.get_data(dataset.file_start[i] + j, key)
                numpy.testing.assert_array_equal(data, single.get_data(j, key))


def test_files_of_a_batch_are_opened_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """More files than can be open: those that are open are read first, for each stream and for the tags."""
    opened: list[str] = []

    open_file = handles._open

    def _open(filename: str, *args: Any) -> h5py.File:  # Any: of h5py
        opened.append(filename)
        return open_file(filename, *args)

    monkeypatch.setattr(handles, "_open", _open)
    monkeypatch.setattr(reader, "_SMALL_BYTES", 0)
    monkeypatch.setattr(reader, "_MAX_FIRST_PART", 1)
    paths = [_write_plain(str(tmp_path / f"{i}.hdf"), 10, seed=i) for i in range(12)]
    dataset = HDFDataset(paths, seq_ordering="random")
    dataset._reader.handles._max_open = 8
    dataset.init_seq_order(epoch=1)
    opened.clear()
    seqs = numpy.arange(dataset.num_seqs)
    data = dataset.read_seqs(seqs, ["data", "classes"])
    assert data is not None
    assert len(opened) <= 12 + 4, "those of the first stream that were closed again are opened for the second"
    order = dataset.get_current_seq_order()
    for i in range(0, 120, 7):
        single = HDFDataset([paths[int(order[i]) // 10]])
        single.init_seq_order(epoch=1)
        for key in ("data", "classes"):
            numpy.testing.assert_array_equal(data[key][i], single.get_data(int(order[i]) % 10, key))


@pytest.mark.parametrize("change", ["removed", "replaced"])
def test_next_file_when_the_one_before_has_changed(tmp_path: Path, change: str) -> None:
    """Nothing is to be read from that one, so the error would name the wrong file."""
    first, second = (_write_plain(str(tmp_path / f"{i}.hdf"), seed=i) for i in range(2))
    dataset = HDFDataset([first])
    dataset.close()
    os.remove(first)
    if change == "replaced":
        _write_with_writer(first)
    dataset.add_file(second)
    assert dataset.get_total_num_seqs() == 6
