"""
Starts several ranks as a user would, and leaves none of them behind: with torchrun, or in the environment that torchrun gives them
as forks of a process that has imported torch, which takes a tenth of the time.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.forked import Program, run_all_forked
from tests.helpers import ROOT, program_env


def free_port() -> int:
    """:return: one that nobody uses"""
    with socket.socket() as sock:
        sock.bind(("127.0.0.1", 0))
        port: int = sock.getsockname()[1]
        return port


def rank_env(rank: int, size: int, port: int) -> dict[str, str]:
    """:return: environment of a rank, as torchrun sets it"""
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(size),
        "LOCAL_RANK": str(rank),
        "LOCAL_WORLD_SIZE": str(size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
    }


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
    torchrun: bool = False,
) -> str:
    """
    :param torchrun: start them with it; always if they may fail, since it ends the others then
    :return: output of all ranks of a script
    """
    if torchrun or not check:
        process = start_ranks(num, script, *args, cwd=cwd, env=env)
        output = end_ranks(process, timeout=timeout)
        assert not check or process.returncode == 0, f"exit code {process.returncode}\n{output}"
        return output
    port = free_port()
    programs = [
        Program([str(script), *args], cwd, {"PYTHONPATH": str(ROOT), **(env or {}), **rank_env(rank, num, port)})
        for rank in range(num)
    ]
    results = run_all_forked(programs, one_output=True, timeout=timeout)
    output = "".join(result.stdout for result in results)
    assert not any(result.returncode for result in results), f"{[res.returncode for res in results]}\n{output}"
    return output


def run_rnn_ranks(
    num: int, *args: str, cwd: Path, check: bool = True, env: Mapping[str, str] | None = None, torchrun: bool = False
) -> str:
    """:return: output of ``rnn.py`` on that many ranks; 1: alone, without their environment"""
    if num > 1:
        return run_ranks(num, ROOT / "rnn.py", *args, cwd=cwd, check=check, env=env, torchrun=torchrun)
    (result,) = run_all_forked([Program([str(ROOT / "rnn.py"), *args], cwd, env or {})], one_output=True)
    assert not check or result.returncode == 0, f"exit code {result.returncode}\n{result.stdout}"
    return result.stdout
