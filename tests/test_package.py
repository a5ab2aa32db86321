"""Version and place of the package."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import returnn
from returnn.__setup__ import VERSION, get_version_str, git_rev_version

ROOT = Path(__file__).resolve().parents[1]


def test_version() -> None:
    assert returnn.__version__ == VERSION == get_version_str()
    assert re.fullmatch(r"\d+\.\d+.*", returnn.__version__) and "1.0.0" not in returnn.__version__
    assert returnn.__long_version__ == returnn.__git_version__
    assert returnn.__long_version__.split("+")[0] == returnn.__version__
    assert "unknown" not in returnn.__long_version__


def test_root_dir() -> None:
    assert returnn.__root_dir__ == str(ROOT)


def test_version_outside_of_a_checkout(tmp_path: Path) -> None:
    assert git_rev_version(str(tmp_path)) is None


def test_runs_from_a_checkout_that_is_not_installed(tmp_path: Path) -> None:
    """Job systems call rnn.py by path, from any folder, also through a symlink."""
    (tmp_path / "rnn-link.py").symlink_to(ROOT / "rnn.py")
    env = {k: v for k, v in os.environ.items() if k != "PYTHONPATH"}
    for script in (str(ROOT / "rnn.py"), "rnn-link.py"):
        out = subprocess.run(
            [sys.executable, script, "--version"], cwd=tmp_path, env=env, capture_output=True, text=True
        )
        assert out.returncode == 0, out.stderr
        assert out.stdout.startswith("RETURNN version ")
