"""tools/hdf_merge.py and tools/hdf_subset.py: round trips of all file formats, wrong inputs."""

from __future__ import annotations

import importlib
import shutil
import tempfile
from pathlib import Path
from types import ModuleType

import h5py
import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets.hdf import HDFDataset, SimpleHDFWriter
from returnn.errors import DataFileError, DatasetError, UnknownSeqTagError
from tests.helpers import ROOT
from tests.tools.hdf_files import GOLDEN_FILES, read_hdf, write_hdf
from tests.tools.tool_program import imports_torch, last_error_line, run_tool


@pytest.fixture(scope="module")
def merge_tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("hdf_merge")


@pytest.fixture(scope="module")
def subset_tool() -> ModuleType:
    with pytest.MonkeyPatch.context() as monkeypatch:
        monkeypatch.syspath_prepend(str(ROOT / "tools"))
        return importlib.import_module("hdf_subset")


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_each_golden_file_through_merge_and_subset(
    path: Path, tmp_path: Path, merge_tool: ModuleType, subset_tool: ModuleType
) -> None:
    seqs = read_hdf(path)
    out = tmp_path / "out.hdf"
    merge_tool.main(["hdf_merge", str(path), "--output", str(out)])
    assert read_hdf(out) == seqs
    compressed = tmp_path / "compressed.hdf"
    subset_tool.main(["hdf_subset", str(path), "-o", str(compressed), "--indices", "0", "--compression", "gzip"])
    assert read_hdf(compressed) == seqs[:1]
    last = tmp_path / "last.hdf"
    tags = ",".join(tag for tag, _ in reversed(seqs))
    subset_tool.main(["hdf_subset", str(path), "-o", str(last), "--tags", tags, "--in_given_order"])
    assert read_hdf(last) == seqs[::-1]
    with h5py.File(path) as a, h5py.File(out) as b:
        assert {k: numpy.asarray(v).tolist() for k, v in a.attrs.items()} == {
            k: numpy.asarray(v).tolist() for k, v in b.attrs.items()
        }
        for name in ("labels", "targets/labels/classes", "targets/labels/data"):
            assert (name in a) == (name in b)
            if name in a and isinstance(a[name], h5py.Dataset):
                assert a[name][...].tolist() == b[name][...].tolist()
        if "targets/size" in a:
            assert {k: v.tolist() for k, v in a["targets/size"].attrs.items()} == {
                k: v.tolist() for k, v in b["targets/size"].attrs.items()
            }


@settings(max_examples=15, deadline=None)
@given(
    parts=st.lists(st.lists(st.integers(0, 6), min_size=1, max_size=5), min_size=1, max_size=3),
    data=st.data(),
)
def test_merge_then_cut_apart(
    merge_tool: ModuleType, subset_tool: ModuleType, parts: list[list[int]], data: st.DataObject
) -> None:
    with tempfile.TemporaryDirectory() as folder:
        paths = [write_hdf(Path(folder) / f"{i}.hdf", lens, prefix=f"p{i}", seed=i) for i, lens in enumerate(parts)]
        merged = Path(folder) / "merged.hdf"
        merge_tool.main(["hdf_merge", *map(str, paths), "-o", str(merged)])
        seqs = read_hdf(merged)
        assert seqs == [seq for path in paths for seq in read_hdf(path)]
        with h5py.File(merged) as f:
            assert (f.attrs["numSeqs"], f.attrs["numTimesteps"]) == (len(seqs), sum(map(sum, parts)))
        idxs = data.draw(st.lists(st.sampled_from(range(len(seqs))), min_size=1, unique=True))
        out = Path(folder) / "subset.hdf"
        args = [str(merged), "-o", str(out), "--overwrite"]
        text = ",".join(map(str, idxs))
        subset_tool.main(["hdf_subset", *args, "--indices", text])
        assert read_hdf(out) == [seqs[i] for i in sorted(idxs)]
        subset_tool.main(["hdf_subset", *args, "--indices", text, "--in_given_order"])
        assert read_hdf(out) == [seqs[i] for i in idxs]
        (Path(folder) / "list.txt").write_text("".join(f"{seqs[i][0]}\n" for i in idxs))
        subset_tool.main(["hdf_subset", *args, "--segment_file", f"{folder}/list.txt"])
        assert read_hdf(out) == [seqs[i] for i in sorted(idxs)]
        if len(idxs) < len(seqs):
            subset_tool.main(["hdf_subset", *args, "--segment_file", f"{folder}/list.txt", "--exclude"])
            assert read_hdf(out) == [seqs[i] for i in range(len(seqs)) if i not in idxs]


def test_random_subsets(tmp_path: Path, subset_tool: ModuleType) -> None:
    path = write_hdf(tmp_path / "a.hdf", list(range(1, 31)))
    chosen = []
    for i, (seed, extra) in enumerate([("1", []), ("1", []), ("2", []), ("1", ["--exclude"])]):
        out = tmp_path / f"{i}.hdf"
        subset_tool.main(["hdf_subset", str(path), "-o", str(out), "--random", "10", "--seed", seed, *extra])
        chosen.append([tag for tag, _ in read_hdf(out)])
    assert chosen[0] == chosen[1] != chosen[2]
    assert sorted(chosen[0] + chosen[3]) == sorted(tag for tag, _ in read_hdf(path))
    with pytest.raises(DatasetError, match="0 to 30"):
        subset_tool.main(["hdf_subset", str(path), "-o", str(tmp_path / "x.hdf"), "--random", "31"])


def test_duplicates(tmp_path: Path, merge_tool: ModuleType) -> None:
    a = write_hdf(tmp_path / "a.hdf", [3, 2], seed=1)
    b = write_hdf(tmp_path / "b.hdf", [4, 1, 5], seed=2)
    args = ["hdf_merge", str(a), str(b), "-o", str(tmp_path / "out.hdf"), "--overwrite"]
    with pytest.raises(DataFileError, match="2 sequence tags come more than once, first: 'seq-0', 'seq-1'"):
        merge_tool.main(args)
    assert not (tmp_path / "out.hdf").exists()
    merge_tool.main([*args, "--duplicates", "first"])
    assert read_hdf(tmp_path / "out.hdf") == read_hdf(a) + read_hdf(b)[2:]
    merge_tool.main([*args, "--duplicates", "keep"])
    assert read_hdf(tmp_path / "out.hdf") == read_hdf(a) + read_hdf(b)


def test_timestamps_and_foreign_objects(
    tmp_path: Path, subset_tool: ModuleType, capsys: pytest.CaptureFixture[str]
) -> None:
    path = write_hdf(tmp_path / "a.hdf", [2, 1, 3])
    with h5py.File(path, "r+") as f:
        f["times"] = numpy.arange(12.0).reshape(6, 2)
        f["mine"] = 1
    subset_tool.main(["hdf_subset", str(path), "-o", str(tmp_path / "out.hdf"), "--indices", "0,2"])
    dataset = HDFDataset([str(tmp_path / "out.hdf")])
    assert numpy.asarray(dataset.timestamps)[:, 0].tolist() == [0.0, 2.0, 6.0, 8.0, 10.0]
    assert "['mine'] are left out" in capsys.readouterr().out


def test_files_that_do_not_fit(tmp_path: Path, merge_tool: ModuleType) -> None:
    a = write_hdf(tmp_path / "a.hdf", [1])
    others: dict[str, Path] = {}
    for name, kwargs in {
        "dim": {"dim": 4, "ndim": 2},
        "targets": {"dim": 3, "ndim": 2},
    }.items():
        others[name] = tmp_path / f"{name}.hdf"
        with SimpleHDFWriter(others[name], **kwargs) as writer:  # type: ignore[arg-type]
            writer.insert_batch(numpy.zeros((1, 2, kwargs["dim"]), "float32"), [2], ["x"])
    others["more"] = tmp_path / "more.hdf"
    with SimpleHDFWriter(others["more"], 3, extra_type={"classes": (7, 1, "int32"), "z": (2, 1, "int32")}) as writer:
        extra = {"classes": numpy.zeros((1, 1), "int32"), "z": numpy.zeros((1, 1), "int32")}
        writer.insert_batch(numpy.zeros((1, 2, 3), "float32"), [2], ["x"], extra=extra)
    others["labels"] = write_hdf(tmp_path / "labels.hdf", [1], prefix="other")
    with h5py.File(others["labels"], "r+") as f:
        del f["targets/labels/classes"]
        f["targets/labels/classes"] = numpy.array([b"a", b"b", b"c", b"d", b"e", b"f", b"g"])
    others["stream"] = next(path for path in GOLDEN_FILES if path.stem == "n1_stream")
    for name, path in others.items():
        with pytest.raises(DataFileError, match=rf"{name}.*\.hdf|different formats"):
            merge_tool.main(["hdf_merge", str(a), str(path), "-o", str(tmp_path / "out.hdf")])
    assert not (tmp_path / "out.hdf").exists()


def test_programs(tmp_path: Path, subset_tool: ModuleType) -> None:
    write_hdf(tmp_path / "a.hdf", [2, 1])
    write_hdf(tmp_path / "b.hdf", [3], prefix="b")
    (tmp_path / "out.hdf").touch()  # as job systems do
    res = run_tool("hdf_merge", "a.hdf", "b.hdf", "--output", "out.hdf", cwd=tmp_path)
    assert res.stdout.splitlines()[-1] == "out.hdf: 3 sequences of 2 files."
    res = run_tool("hdf_subset", "a.hdf", "b.hdf", "-o", "few.hdf", "--tags", "b-0,seq-1", cwd=tmp_path)
    assert res.stdout.splitlines()[-1] == "few.hdf: 2 of 3 sequences."
    assert [tag for tag, _ in read_hdf(tmp_path / "few.hdf")] == ["seq-1", "b-0"]
    for args, words in [
        (["a.hdf", "b.hdf", "-o", "out.hdf"], ["exists already", "--overwrite"]),
        (["a.hdf", "b.hdf", "-o", "a.hdf", "--overwrite"], ["one of the inputs"]),
        (["a.hdf", "missing.hdf", "-o", "x.hdf"], ["missing.hdf"]),
    ]:
        line = last_error_line(run_tool("hdf_merge", *args, cwd=tmp_path, check=False))
        assert all(word in line for word in words), line
    with pytest.raises(UnknownSeqTagError, match="1 of 2 tags"):
        subset_tool.main(["", str(tmp_path / "a.hdf"), "-o", str(tmp_path / "x.hdf"), "--tags", "seq-0,nothing"])
    subset_tool.main(
        ["", str(tmp_path / "a.hdf"), "-o", str(tmp_path / "x.hdf"), "--tags", "seq-0,nothing", "--ignore_missing"]
    )
    for text in ("x", "1-", "3", "-1"):
        with pytest.raises(DatasetError):
            subset_tool.main(["", str(tmp_path / "a.hdf"), "-o", str(tmp_path / "y.hdf"), f"--indices={text}"])
    assert run_tool("hdf_subset", "a.hdf", "-o", "z.hdf", cwd=tmp_path, check=False).returncode == 2
    assert (
        run_tool(
            "hdf_subset", "a.hdf", "-o", "z.hdf", "--random", "1", "--in_given_order", cwd=tmp_path, check=False
        ).returncode
        == 2
    )
    assert {path.name for path in tmp_path.iterdir()} == {"a.hdf", "b.hdf", "out.hdf", "few.hdf", "x.hdf"}
    for tool in ("hdf_merge", "hdf_subset"):
        assert "examples" in run_tool(tool, "--help", cwd=tmp_path).stdout
    assert not imports_torch("hdf_merge", "a.hdf", "-o", "w.hdf", cwd=tmp_path)
    shutil.rmtree(tmp_path)


@pytest.mark.parametrize(("text", "words"), [("5-2", "ranges that go up"), ("0-99999999999", "0 to 1: there are 2")])
def test_indices_that_cannot_be(tmp_path: Path, subset_tool: ModuleType, text: str, words: str) -> None:
    write_hdf(tmp_path / "a.hdf", [2, 3])
    with pytest.raises(DatasetError, match=words):
        subset_tool.main(["", str(tmp_path / "a.hdf"), "-o", str(tmp_path / "y.hdf"), "--indices", text])
    assert not (tmp_path / "y.hdf").exists()
