"""Helpers that several tests use: running programs as a user would, small configs and data."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.forked import program_env, run_forked

__all__ = ["GOLDEN", "ROOT", "program_env", "run_program", "run_rnn", "write_config"]

ROOT = Path(__file__).resolve().parent.parent
GOLDEN = ROOT / "tests" / "golden"


def run_rnn(
    *args: str,
    cwd: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 300,
    fresh: bool = False,
) -> subprocess.CompletedProcess[str]:
    """
    Run ``rnn.py`` as a user would, in a process of its own.

    :param args: command line
    :param cwd: working directory
    :param env: added to the environment
    :param check: assert exit code 0
    :param timeout: seconds
    :param fresh: start Python anew; else the process is a fork of one that has done the imports
    """
    argv = [str(ROOT / "rnn.py"), *args]
    if fresh:
        return run_program([sys.executable, *argv], cwd=cwd, env=env, check=check, timeout=timeout)
    return run_forked(argv, cwd=Path(cwd), env=env, check=check, timeout=timeout)


def run_program(
    args: Sequence[str],
    *,
    cwd: str | os.PathLike[str],
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """Run any program; see run_rnn."""
    res = subprocess.run(
        list(args),
        cwd=cwd,
        env=program_env(env),
        text=True,
        capture_output=True,
        timeout=timeout,
        stdin=subprocess.DEVNULL,
    )
    if check:
        assert res.returncode == 0, f"exit code {res.returncode}\n--- stdout\n{res.stdout}\n--- stderr\n{res.stderr}"
    return res


def write_config(path: Path, text: str) -> Path:
    """Write a config with the usual first line. :return: path"""
    path.write_text("#!rnn.py\n" + textwrap.dedent(text))
    return path
