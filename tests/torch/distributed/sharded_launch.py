"""Starts several ranks as a user would, with torchrun, and leaves none of them behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.helpers import ROOT, program_env


def start_ranks(
    num: int, script: str | os.PathLike[str], *args: str, cwd: Path, env: Mapping[str, str] | None = None
) -> subprocess.Popen[str]:
    """:return: the running launcher of that many ranks of a Python script, leader of a process group of its own"""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(num)]
    return subprocess.Popen(
        [*launcher, str(script), *args],
        cwd=cwd,
        env=program_env({"PYTHONPATH": str(ROOT), **(env or {})}),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        start_new_session=True,
    )


def end_ranks(process: subprocess.Popen[str], *, timeout: float) -> str:
    """:return: all output, when all have ended; after the timeout in seconds they are killed"""
    try:
        output, _ = process.communicate(timeout=timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        output, _ = process.communicate()
        raise AssertionError(f"the ranks did not end within {timeout} s:\n{output}") from None
    return output


def run_ranks(
    num: int,
    script: str | os.PathLike[str],
    *args: str,
    cwd: Path,
    env: Mapping[str, str] | None = None,
    check: bool = True,
    timeout: float = 240,
) -> str:
    """:return: output of all ranks of a script"""
    process = start_ranks(num, script, *args, cwd=cwd, env=env)
    output = end_ranks(process, timeout=timeout)
    assert not check or process.returncode == 0, f"exit code {process.returncode}\n{output}"
    return output


def run_rnn_ranks(num: int, *args: str, cwd: Path, check: bool = True, env: Mapping[str, str] | None = None) -> str:
    """:return: output of ``rnn.py`` on that many ranks; 1: without torchrun"""
    if num > 1:
        return run_ranks(num, ROOT / "rnn.py", *args, cwd=cwd, check=check, env=env)
    process = subprocess.run(
        [sys.executable, str(ROOT / "rnn.py"), *args],
        cwd=cwd,
        env=program_env(env),
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        stdin=subprocess.DEVNULL,
        timeout=240,
    )
    assert not check or process.returncode == 0, f"exit code {process.returncode}\n{process.stdout}"
    return process.stdout
