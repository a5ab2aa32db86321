"""tools/hdf_verify.py: fine files, and files that are broken in each way."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import h5py
import numpy
import pytest

from returnn.cli._hdf_tools.verify import find_problems, find_problems_together
from tests.tools.hdf_files import GOLDEN_FILES, HDF_GOLDEN, write_hdf
from tests.tools.tool_program import imports_torch, run_tool


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_golden_files_are_fine(path: Path) -> None:
    assert find_problems(str(path)) == []


def _replace(f: h5py.File, name: str, value: object) -> None:
    attrs = dict(f[name].attrs)
    del f[name]
    f[name] = value
    f[name].attrs.update(attrs)


def _nan(f: h5py.File) -> None:
    f["inputs"][1, 1] = numpy.nan


def _class(f: h5py.File) -> None:
    f["targets/data/classes"][0] = 7


def _tags(f: h5py.File) -> None:
    f["seqTags"][2] = "seq-0"


def _empty_tag(f: h5py.File) -> None:
    f["seqTags"][2] = ""


def _negative(f: h5py.File) -> None:
    f["seqLengths"][1, 0] = -1


@pytest.mark.parametrize(
    ("damage", "words"),
    [
        (lambda f: _replace(f, "inputs", f["inputs"][:-1]), ["'data' sum up to 9 frames, but there are 8", "cut off"]),
        (lambda f: _replace(f, "targets/data/classes", [1] * 9), ["'classes' sum up to 5", "belongs to no sequence"]),
        (lambda f: _replace(f, "seqTags", f["seqTags"][:-1]), ["2 tags, but lengths of 3"]),
        (lambda f: f.__delitem__("seqTags"), ["no array 'seqTags'"]),
        (lambda f: f.__delitem__("seqLengths"), ["no 'seqLengths'"]),
        (lambda f: f.__delitem__("inputs"), ["does not fit to its data keys"]),
        (lambda f: f.__delitem__("targets/data/classes"), ["no data"]),
        (lambda f: _replace(f, "targets/labels/classes", [b"a", b"b"]), ["2 labels of 'classes'", "dimension is 7"]),
        (lambda f: f.attrs.__setitem__("numSeqs", 4), ["'numSeqs' is 4, but there are 3"]),
        (_nan, ["1 values of 'data' are inf or nan"]),
        (_class, ["1 class indices of 'classes' are not in 0..6, e.g. 7"]),
        (_tags, ["1 sequences whose tag came before, first: 'seq-0'"]),
        (_empty_tag, ["1 sequences have an empty tag"]),
        (_negative, ["negative length of 'data', first: sequence 1 has -1"]),
    ],
)
def test_each_kind_of_damage(tmp_path: Path, damage: Callable[[h5py.File], None], words: list[str]) -> None:
    path = write_hdf(tmp_path / "a.hdf", [4, 2, 3])
    with h5py.File(path, "r+") as f:
        damage(f)
    text = "\n".join(find_problems(str(path)))
    for word in words:
        assert word in text


def test_several_problems_at_once_and_quick(tmp_path: Path) -> None:
    path = write_hdf(tmp_path / "a.hdf", [4, 2, 3])
    with h5py.File(path, "r+") as f:
        _replace(f, "inputs", f["inputs"][:-1])
        _tags(f)
        _nan(f)
    assert len(find_problems(str(path))) == 4  # also numTimesteps
    assert len(find_problems(str(path), read_data=False)) == 3
    assert len(find_problems(str(path), allow_nonfinite=True)) == 3


def test_unreadable_block_and_wrong_sizes(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    with h5py.File(path, "w") as f:
        data = f.create_dataset("inputs", data=numpy.arange(4000.0), chunks=(1000,), compression="gzip")
        offset = data.id.get_chunk_info(2).byte_offset
        f["seqTags"] = [b"a"]
        f["seqLengths"] = numpy.array([[4000, 0]], dtype="int32")
        f.attrs["inputPattSize"] = 1
    assert not find_problems(str(path))
    content = bytearray(path.read_bytes())
    content[offset : offset + 20] = b"\xff" * 20
    path.write_bytes(content)
    assert "The data of 'data' cannot be read" in find_problems(str(path))[0]
    assert not find_problems(str(path), read_data=False)
    path.write_bytes((HDF_GOLDEN / "s8_2d_sizes.hdf").read_bytes())
    with h5py.File(path, "r+") as f:
        f["targets/data/sizes"][0] = 5
    assert "product 10, length 6" in find_problems(str(path))[0]


def test_stream_files(tmp_path: Path) -> None:
    path = tmp_path / "a.hdf"
    path.write_bytes((HDF_GOLDEN / "n1_stream.hdf").read_bytes())
    with h5py.File(path, "r+") as f:
        data = f["streams/features/data"]
        del data["corpus\\rec1\\2"]
        data["more"] = numpy.zeros((1, 2))
    text = "\n".join(find_problems(str(path)))
    for word in (
        "has no data of 1 sequences",
        "'corpus\\\\rec1\\\\2'",
        "unknown 1 sequences",
        "1 sequences cannot be read",
    ):
        assert word in text
    with h5py.File(path, "r+") as f:
        f["streams/features"].attrs["parser"] = "other"
    assert "unknown parser" in find_problems(str(path))[0]


def test_files_together(tmp_path: Path) -> None:
    a = write_hdf(tmp_path / "a.hdf", [1, 2])
    b = write_hdf(tmp_path / "b.hdf", [1], prefix="b")
    assert find_problems_together([str(a), str(b)]) == []
    assert "2 sequences whose tag came before" in find_problems_together([str(a), str(b), str(a)])[0]
    assert "s1_dense" in find_problems_together([str(a), str(HDF_GOLDEN / "s1_dense.hdf")])[0]


def test_program(tmp_path: Path) -> None:
    write_hdf(tmp_path / "good.hdf", [1, 2])
    content = (tmp_path / "good.hdf").read_bytes()
    (tmp_path / "cut.hdf").write_bytes(content[: len(content) // 2])
    (tmp_path / "text.hdf").write_text("no HDF")
    res = run_tool("hdf_verify", "good.hdf", cwd=tmp_path)
    assert res.stdout == "good.hdf: ok\n1 files checked, all ok.\n"
    res = run_tool("hdf_verify", "good.hdf", "cut.hdf", "text.hdf", "missing.hdf", cwd=tmp_path, check=False)
    assert res.returncode == 1 and not res.stderr
    lines = res.stdout.splitlines()
    assert lines[0] == "good.hdf: ok"
    assert lines[1].startswith("cut.hdf: ") and "truncated" in lines[1]
    assert lines[2].startswith("text.hdf: ")
    assert lines[3].startswith("missing.hdf: ") and "does not exist" in lines[3]
    assert lines[4] == "4 files checked, 3 with problems."
    res = run_tool("hdf_verify", "--together", "--quick", "good.hdf", "good.hdf", cwd=tmp_path, check=False)
    assert res.returncode == 1 and "together: " in res.stdout
    assert "Exit code" in run_tool("hdf_verify", "--help", cwd=tmp_path).stdout
    assert not imports_torch("hdf_verify", "good.hdf", cwd=tmp_path)
