"""Running whole command lines."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from tests.forked import run_forked

ROOT = Path(__file__).resolve().parents[2]
RNN = str(ROOT / "rnn.py")


@dataclasses.dataclass(frozen=True)
class Result:
    """Of a process."""

    code: int
    out: str
    err: str

    @property
    def last_error_line(self) -> str:
        """:return: the last line on stderr"""
        lines = self.err.rstrip("\n").splitlines()
        return lines[-1] if lines else ""


def command(args: Sequence[str]) -> list[str]:
    """:return: command line of rnn.py"""
    return [sys.executable, RNN, *args]


def environment(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """:return: environment for a child"""
    return {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(extra or {})}


def rnn(args: Sequence[str], cwd: Path, env: Mapping[str, str] | None = None, *, with_torch: bool = False) -> Result:
    """
    Run ``python rnn.py ARGS`` to its end.

    :param with_torch: it will import torch: so do it in a fork of a process that has, see tests.forked
    """
    if with_torch:
        res = run_forked([RNN, *args], cwd=cwd, env=environment(env), check=False, timeout=120)
        return Result(res.returncode, res.stdout, res.stderr)
    proc = subprocess.run(command(args), cwd=cwd, capture_output=True, text=True, env=environment(env), timeout=120)
    return Result(proc.returncode, proc.stdout, proc.stderr)


def write_config(folder: Path, text: str, name: str = "my.config") -> str:
    """:return: the file name, relative to the folder"""
    (folder / name).write_text("#!rnn.py\n" + text, encoding="utf8")
    return name
