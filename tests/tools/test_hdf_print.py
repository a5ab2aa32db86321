"""tools/hdf_print.py as a program."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from returnn.cli._hdf_tools.show import describe_file, iter_description
from tests.tools.hdf_files import GOLDEN_FILES, HDF_GOLDEN, read_hdf, write_hdf
from tests.tools.tool_program import imports_torch, last_error_line, run_tool


def test_description_and_sequences(tmp_path: Path) -> None:
    write_hdf(tmp_path / "a.hdf", [4, 2, 3])
    lines = run_tool("hdf_print", "a.hdf", "--seqs", "2", cwd=tmp_path).stdout.splitlines()
    assert lines[0].startswith("a.hdf: 3 sequences, ")
    assert "  attributes: inputPattSize=3, numDims=1, numLabels=3, numSeqs=3, numTimesteps=9" in lines
    assert "  'data' (inputs): float32 [9, 3], dim 3, ndim 2, 108B" in lines
    assert "    lengths: min 2, mean 3.00, max 4, sum 9" in lines
    assert lines[-2:] == ["seq 0 'seq-0': data 4, classes 2", "seq 1 'seq-1': data 2, classes 1"]
    args = ["--tags", "seq-2", "--data", "--keys", "classes"]
    out = run_tool("hdf_print", str(tmp_path / "a.hdf"), *args, cwd=Path("/")).stdout
    assert "seq 0 'seq-2': classes 2\n  classes: array([" in out


@pytest.mark.parametrize("path", GOLDEN_FILES, ids=lambda path: path.stem)
def test_all_formats_are_described(path: Path) -> None:
    info = describe_file(str(path))
    assert info["num_seqs"] == len(read_hdf(path))
    json.dumps(info, allow_nan=False)
    assert len(list(iter_description(info))) > 1


def test_json(tmp_path: Path) -> None:
    path = HDF_GOLDEN / "s7_extra_type.hdf"
    res = run_tool(
        "hdf_print", str(path), str(HDF_GOLDEN / "n1_stream.hdf"), "--json", "--data", "--seqs", "1", cwd=tmp_path
    )
    entries = [json.loads(line) for line in res.stdout.splitlines()]
    assert [next(iter(entry)) for entry in entries] == ["file", "seq", "file", "seq"]
    assert entries[0]["file"]["keys"]["classes"]["dim"] == 6
    assert entries[1]["seq"]["data"]["txt"] == ["h\u00e4llo"]
    assert entries[3]["seq"]["lens"] == {"align": 6, "classes": 1, "features": 4}


def test_mistakes_help_and_imports(tmp_path: Path) -> None:
    path = str(HDF_GOLDEN / "s1_dense.hdf")
    for args, word in [
        (["missing.hdf"], "missing.hdf"),
        ([path, "--tags", "nothing"], "nothing"),
        ([path, "--keys", "nothing"], "'nothing'"),
    ]:
        assert word in last_error_line(run_tool("hdf_print", *args, cwd=tmp_path, check=False))
    assert "examples" in run_tool("hdf_print", "--help", cwd=tmp_path).stdout
    assert not imports_torch("hdf_print", path, cwd=tmp_path)
