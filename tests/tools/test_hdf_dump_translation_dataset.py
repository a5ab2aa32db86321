"""tools/hdf_dump_translation_dataset.py."""

from __future__ import annotations

import gzip
import pickle
import subprocess
from pathlib import Path
from typing import Any

import h5py
import pytest

from returnn.datasets.hdf import HDFDataset
from tests.datasets.hdf_golden import GOLDEN, check_readback, check_structure, load_golden
from tests.helpers import ROOT
from tests.tools.tool_program import run_tool

TOOL = str(ROOT / "tools" / "hdf_dump_translation_dataset.py")


@pytest.fixture
def vocabularies(tmp_path: Path) -> dict[str, str]:
    """:return: name -> file"""
    res = {}
    for name, vocabulary in load_golden("t2_translation_factors")["vocabularies (pickled dict word -> id)"].items():
        path = tmp_path / f"{name.replace(' ', '_')}.pkl"
        path.write_bytes(pickle.dumps(vocabulary))
        res[name.split()[-1]] = str(path)
    return res


def _run(tmp_path: Path, options: dict[str, str], check: bool = True) -> subprocess.CompletedProcess[str]:
    args = [part for item in options.items() for part in item]
    return run_tool("hdf_dump_translation_dataset", *args, cwd=tmp_path, check=check)


def _options(vocabularies: dict[str, str], **changes: str) -> dict[str, str]:
    options = {
        "-s": str(GOLDEN / "t_src.txt"),
        "-t": str(GOLDEN / "t_tgt.txt"),
        "-v": vocabularies["source"],
        "-w": vocabularies["target"],
        "-o": "out.hdf",
        "-n": "3",
    }
    return {**options, **{f"-{name}" if len(name) == 1 else f"--{name}": value for name, value in changes.items()}}


def _check(path: Path, name: str) -> None:
    dataset = HDFDataset([str(path)])
    dataset.initialize()
    check_readback(dataset, load_golden(name)["readback"])
    dataset.close()
    check_structure(path, name)


def test_golden(tmp_path: Path, vocabularies: dict[str, str]) -> None:
    _run(tmp_path, _options(vocabularies))
    _check(tmp_path / "out.hdf", "t1_translation")


def test_golden_factors_compressed_and_gz(tmp_path: Path, vocabularies: dict[str, str]) -> None:
    source = tmp_path / "src.gz"
    source.write_bytes(gzip.compress((GOLDEN / "t_src_factors.txt").read_bytes()))
    options = _options(
        vocabularies, s=str(source), v=f"{vocabularies['source']},{vocabularies['pos']}", c="gzip", d="4", l="2"
    )
    _run(tmp_path, {**options, "--source_factors": "pos"})
    _check(tmp_path / "out.hdf", "t2_translation_factors")
    with h5py.File(tmp_path / "out.hdf") as f:
        assert (f["inputs"].compression, f["inputs"].chunks) == ("gzip", (4,))


class _Evil:
    def __reduce__(self) -> Any:
        return print, ("evil code runs",)


def test_errors(tmp_path: Path, vocabularies: dict[str, str]) -> None:
    (tmp_path / "evil.pkl").write_bytes(pickle.dumps({"x": _Evil()}))
    (tmp_path / "two.txt").write_text("a\nb\n")
    (tmp_path / "no_unk.pkl").write_bytes(pickle.dumps({"</S>": 0}))
    (tmp_path / "no_end.pkl").write_bytes(pickle.dumps({"a": 0}))
    (tmp_path / "far.pkl").write_bytes(pickle.dumps({"</S>": 7}))
    (tmp_path / "out.hdf").write_bytes(b"old")
    cases: list[tuple[dict[str, str], str]] = [
        ({"n": "4"}, "Fewer lines (3) in the corpus files than specified (4)."),
        ({"n": "2"}, "More lines in the corpus files than specified."),
        ({"n": "0"}, "number_of_lines"),
        ({"t": "two.txt"}, "Number of source and target lines differ."),
        ({"t": "two.txt", "n": "2"}, "Number of source and target lines differ."),
        ({"s": "missing.txt"}, "missing.txt"),
        ({"v": "missing.pkl"}, "missing.pkl"),
        ({"v": "evil.pkl"}, "evil.pkl"),
        ({"v": "no_unk.pkl"}, "'<UNK>'"),
        ({"v": "no_end.pkl"}, "'</S>'"),
        ({"v": "far.pkl"}, "indices"),
        ({"source_factors": "pos"}, "2 vocabularies"),
        ({"source_factors": "classes", "v": f"{vocabularies['source']},{vocabularies['pos']}"}, "different"),
        ({"source_factors": "pos", "v": f"{vocabularies['source']},{vocabularies['pos']}"}, "'the'"),
    ]
    for changes, words in cases:
        res = _run(tmp_path, _options(vocabularies, **changes), check=False)
        assert res.returncode == 1, changes
        assert words in res.stderr.strip().splitlines()[-1]
        assert "evil code runs" not in res.stdout
        assert (tmp_path / "out.hdf").read_bytes() == b"old"
    assert not list(tmp_path.glob(".*.tmp"))
    assert _run(tmp_path, {}, check=False).returncode == 2
