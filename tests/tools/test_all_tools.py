"""Every tool: listed in the docs, has a help text, starts without torch unless it needs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers import ROOT, program_env, run_program

TOOLS = sorted(p.name for p in (ROOT / "tools").glob("*.py") if not p.name.startswith("_"))
#: those that work on models
NEED_TORCH = {"torch_avg_checkpoints.py"}


def test_docs_list_all() -> None:
    docs = (ROOT / "docs" / "tools.md").read_text()
    assert [name for name in TOOLS if f"`{name}`" not in docs] == []


@pytest.mark.parametrize("name", TOOLS)
def test_help(name: str, tmp_path: Path) -> None:
    res = run_program([sys.executable, str(ROOT / "tools" / name), "--help"], cwd=tmp_path)
    assert res.stdout.startswith("usage: ") and len(res.stdout.splitlines()) > 5
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("name", TOOLS)
def test_wrong_argument_is_exit_code_2(name: str, tmp_path: Path) -> None:
    res = run_program([sys.executable, str(ROOT / "tools" / name), "--no-such-option"], cwd=tmp_path, check=False)
    assert res.returncode == 2
    assert "usage: " in res.stderr and "Traceback" not in res.stderr


@pytest.mark.parametrize("name", [name for name in TOOLS if name not in NEED_TORCH])
def test_help_imports_no_torch(name: str) -> None:
    args = [sys.executable, "-X", "importtime", str(ROOT / "tools" / name), "--help"]
    res = subprocess.run(args, env=program_env(), text=True, capture_output=True, stdin=subprocess.DEVNULL, check=True)
    imported = {line.rpartition("|")[2].strip() for line in res.stderr.splitlines() if line.startswith("import time:")}
    assert "argparse" in imported and "torch" not in imported
