"""Running the programs of tools/ as a user would, and comparing their output with golden files."""

from __future__ import annotations

import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

from tests.forked import run_forked
from tests.helpers import GOLDEN, ROOT, run_program

__all__ = ["TOOLS_GOLDEN", "run_tool", "last_error_line", "imports_torch", "golden_lines"]

TOOLS_GOLDEN = GOLDEN / "07-tools-demos"

#: Tools that import torch when they run, by the start of the name.
_WITH_TORCH = ("torch_avg", "torch_count", "torch_export", "torch_inspect", "dump-forward")


def run_tool(
    name: str,
    *args: str,
    cwd: Path,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """
    Run a tool as a process: a fork of one that has done the imports; with `env`, which can change how Python starts, a fresh one.

    :param name: of the tool, without ".py"
    :param args: of its command line
    :param cwd: working directory
    :param check: assert exit code 0
    :param env: added to the environment
    :param timeout: seconds
    """
    argv = [str(ROOT / "tools" / f"{name}.py"), *args]
    if env is not None:
        return run_program([sys.executable, *argv], cwd=cwd, check=check, env=env, timeout=timeout)
    with_torch = name.startswith(_WITH_TORCH)
    return run_forked(argv, cwd=cwd, check=check, timeout=timeout, with_torch=with_torch)


def last_error_line(res: subprocess.CompletedProcess[str]) -> str:
    """:return: last line of stderr of a program that ended with exit code 1"""
    assert res.returncode == 1, (res.returncode, res.stdout, res.stderr)
    return res.stderr.strip().splitlines()[-1]


def imports_torch(name: str, *args: str, cwd: Path) -> bool:
    """:return: whether running the tool imports torch"""
    code = (
        "import runpy, sys\n"
        f"sys.argv = {[name, *args]!r}\n"
        f"sys.path.insert(0, {str(ROOT / 'tools')!r})\n"
        "try:\n"
        f"    runpy.run_path({str(ROOT / 'tools' / (name + '.py'))!r}, run_name='__main__')\n"
        "except SystemExit as exc:\n"
        "    assert not exc.code, exc.code\n"
        "print('TORCH' if 'torch' in sys.modules else 'NUMPY-ONLY')\n"
    )
    return run_program([sys.executable, "-c", code], cwd=cwd).stdout.strip().splitlines()[-1] == "TORCH"


def golden_lines(text: str) -> list[str]:
    """:return: lines with changing parts replaced as in the golden files"""
    text = re.sub(
        r"date/time \S+ \S+, pid \d+, cwd .*, Python .*", "date/time <T>, pid <P>, cwd <CWD>, Python <EXE>", text
    )
    text = re.sub(r"Hostname: .*", "Hostname: <H>", text)
    text = re.sub(r"Total time [0-9:.]+\.", "Total time <T>.", text)
    text = re.sub(r"(\d%\)) \(\d+:\d\d:\d\d\)", r"\1 (<ETA>)", text)
    return text.splitlines()
