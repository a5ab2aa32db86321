"""tools/hdf_dump.py as program and as module."""

from __future__ import annotations

import argparse
import importlib
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import h5py
import pytest

import returnn.__main__ as rnn
from returnn._state import state
from returnn.datasets.hdf import HDFDataset
from returnn.errors import ConfigError
from tests.datasets.hdf_golden import GOLDEN as HDF_GOLDEN
from tests.datasets.hdf_golden import check_structure, iterate
from tests.helpers import ROOT, run_program
from tests.tools.tool_program import run_tool


def _run(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool("hdf_dump", *args, cwd=cwd, check=check)


@pytest.fixture
def hdf_dump(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    # The tool sets these, for the process that it usually is; they must not stay for other tests.
    monkeypatch.setattr(rnn, "config", None)
    monkeypatch.setattr(state, "global_config", None)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    return importlib.import_module("hdf_dump")


def test_program_with_config_file(tmp_path: Path) -> None:
    """As job systems call it: any file name, the output exists as empty file, any working directory."""
    (tmp_path / "dataset.config").write_text(
        '#!rnn.py\ntrain = {"class": "DummyDataset", "input_dim": 3, "output_dim": 4, "num_seqs": 5}\n'
    )
    out = tmp_path / "tmp.hdf"
    out.touch()
    res = _run("dataset.config", "tmp.hdf", cwd=tmp_path)
    lines = res.stdout.splitlines()
    for line in [
        "Returnn hdf_dump starting up.",
        "Collect stats, iterate through all data...",
        "Total len of 'data' is 10, shape [10, 3], dtype float32",
        "Set seq tags...",
        "Set seq len info...",
        "Create arrays in HDF...",
        "Write data...",
        "All done.",
        "Quitting",
    ]:
        assert line in lines
    assert any(line.startswith("Source dataset: ") for line in lines)
    with h5py.File(out) as f:
        assert f["inputs"].shape == (10, 3)
        assert f["seqLengths"].shape == (5, 2)
        assert dict(f.attrs) == {"inputPattSize": 3}
    _run("dataset.config", "part.hdf", "--start_seq", "1", "--end_seq", "2", "--epoch", "3", cwd=tmp_path)
    with h5py.File(tmp_path / "part.hdf") as f:
        assert f["inputs"].shape == (4, 3)
        assert f["seqTags"][...].tolist() == [b"seq-1", b"seq-2"]


def test_program_with_literal_and_str_in_config(tmp_path: Path) -> None:
    literal = "{'class': 'DummyDataset', 'input_dim': 2, 'output_dim': 3, 'num_seqs': 4}"
    _run(literal, "a.hdf", cwd=tmp_path)
    check_structure(tmp_path / "a.hdf", "w5_dummy")
    (tmp_path / "x.py").write_text(f'train = "{literal}"\n')
    _run("x.py", str(tmp_path / "b.hdf"), cwd=Path("/"), check=False)
    _run(str(tmp_path / "x.py"), str(tmp_path / "b.hdf"), cwd=Path("/"))
    assert (tmp_path / "b.hdf").stat().st_size == (tmp_path / "a.hdf").stat().st_size


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("missing.config", ["missing.config"]),
        ("empty.py", ['"train"', "empty.py"]),
        ("{'class': __import__('os')}", ["literal"]),
        ("{'class': 'HDFDataset', 'files': ['missing.hdf']}", ["missing.hdf"]),
        ("broken.py", ["ZeroDivisionError"]),
    ],
)
def test_program_errors_end_with_a_sentence(tmp_path: Path, source: str, words: list[str]) -> None:
    (tmp_path / "empty.py").write_text("x = 1\n")
    (tmp_path / "broken.py").write_text("x = 1 / 0\n")
    res = _run(source, "out.hdf", cwd=tmp_path, check=False)
    assert res.returncode == 1
    last_line = res.stderr.strip().splitlines()[-1]
    for word in words:
        assert word in last_line
    assert not (tmp_path / "out.hdf").exists()


def test_program_help_and_start_up_without_torch(tmp_path: Path) -> None:
    assert "inclusive" in _run("--help", cwd=tmp_path).stdout
    code = f"import sys; sys.path.insert(0, {str(ROOT / 'tools')!r}); import hdf_dump; print('torch' in sys.modules)"
    assert run_program([sys.executable, "-c", code], cwd=tmp_path).stdout.strip() == "False"
    assert _run("only_one_argument", cwd=tmp_path, check=False).returncode == 2


def test_as_module(hdf_dump: ModuleType, tmp_path: Path) -> None:
    config = tmp_path / "my.config"
    config.write_text(f'#!rnn.py\ntrain = {{"class": "HDFDataset", "files": [{str(HDF_GOLDEN / "s6_extra.hdf")!r}]}}\n')
    dataset = hdf_dump.init(config_filename=str(config), cmd_line_opts=[])
    writer = hdf_dump.hdf_dataset_init(str(tmp_path / "out.hdf"))
    args = argparse.Namespace(epoch=1, start_seq=0, end_seq=float("inf"))
    hdf_dump.hdf_dump_from_dataset(dataset, writer, args)
    hdf_dump.hdf_close(writer)
    got = HDFDataset([str(tmp_path / "out.hdf")])
    got.init_seq_order(epoch=1)
    dataset.init_seq_order(epoch=1)
    for a, b in zip(iterate(got), iterate(dataset), strict=True):
        assert (a["tag"], a["len"]) == (b["tag"], b["len"])
        assert {key: value.tolist() for key, value in a["data"].items()} == {
            key: value.tolist() for key, value in b["data"].items()
        }
    with pytest.raises(ConfigError, match="literal"):
        hdf_dump.init(None, [], "{nonsense")
    hdf_dump.main(["hdf_dump.py", str(config), str(tmp_path / "main.hdf"), "--end_seq", "0"])
    assert HDFDataset([str(tmp_path / "main.hdf")]).get_all_tags() == ["a"]


def test_program_with_hdf_file_and_other_dataset(tmp_path: Path) -> None:
    (tmp_path / "x.config").write_text('#!rnn.py\ndev = {"class": "Task12AXDataset", "num_seqs": 2}\n')
    _run("x.config", "a.hdf", "--dataset", "dev", cwd=tmp_path)
    _run("a.hdf", "b.hdf", cwd=tmp_path)
    for name in ("a.hdf", "b.hdf"):
        assert HDFDataset([str(tmp_path / name)]).get_all_tags() == ["seq-0", "seq-1"]
