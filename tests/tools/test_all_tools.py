"""Every tool: listed in the docs, has a help text, starts without torch unless it needs it."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, run_program
from tests.tools.tool_program import last_error_line, run_tool

TOOLS = sorted(p.name for p in (ROOT / "tools").glob("*.py") if not p.name.startswith("_"))


def test_docs_list_all() -> None:
    docs = (ROOT / "docs" / "tools.md").read_text()
    assert [name for name in TOOLS if f"`{name}`" not in docs] == []


@pytest.mark.parametrize("name", TOOLS)
def test_help_without_torch(name: str, tmp_path: Path) -> None:
    """A fresh process, by a symbolic link, in another folder."""
    link = tmp_path / "link.py"
    link.symlink_to(ROOT / "tools" / name)
    (tmp_path / "cwd").mkdir()
    args = [sys.executable, "-X", "importtime", str(link), "--help"]
    res = run_program(args, cwd=tmp_path / "cwd")
    assert res.stdout.startswith("usage: ") and len(res.stdout.splitlines()) > 5
    assert not list((tmp_path / "cwd").iterdir())
    imported = {line.rpartition("|")[2].strip() for line in res.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported and "torch" not in imported


@pytest.mark.parametrize("name", TOOLS)
def test_wrong_argument_is_exit_code_2(name: str, tmp_path: Path) -> None:
    res = run_tool(name.removesuffix(".py"), "--no-such-option", cwd=tmp_path, check=False)
    assert res.returncode == 2
    assert "usage: " in res.stderr and "Traceback" not in res.stderr


@pytest.mark.parametrize("name", TOOLS)
def test_can_be_executed(name: str) -> None:
    assert os.access(ROOT / "tools" / name, os.X_OK)
    assert (ROOT / "tools" / name).read_text(encoding="utf8").startswith("#!/usr/bin/env python3\n")


@pytest.mark.parametrize(
    ("name", "args"),
    [
        ("calculate-word-error-rate", ["--refs", "x", "--hyps", "x", "--out", "missing/wer"]),
        ("calculate-word-error-rate", ["--refs", "x", "--hyps", "x", "--per_seq", "folder"]),
        ("dump-dataset-raw-strings", ["--dataset", "x.hdf", "--out", "missing/refs"]),
        ("collect-orth-symbols", ["x", "--output", "missing/symbols"]),
        ("collect-words", ["x", "--output", "missing/words"]),
        ("extract_state_tying_from_dataset", ["x.hdf", "--output", "missing/tying"]),
        (
            "torch_scale_tuning",
            ["--names", "a", "--scores", "x", "--ref", "x", "--output-real-scales", "missing/s.json"],
        ),
        ("plot-scores", ["x", "--png", "missing/a.png"]),
        ("hdf_dump", ["{'class': 'Task12AXDataset', 'num_seqs': 1}", "missing/a.hdf"]),
        ("torch_export_to_onnx", ["x.config", "x.pt", "missing/model.onnx"]),
        ("dump-forward-stats", ["x.config", "--layer", "x", "--dump_stats", "missing/stats"]),
    ],
)
def test_output_is_checked_before_the_work(name: str, args: list[str], tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "x").write_text("{'a': 'x'}\n")
    line = last_error_line(run_tool(name, *args, cwd=tmp_path, check=False))
    assert "cannot write" in line and ("missing" in line or "it is a folder" in line)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "x"]
