"""Running the programs of tools/ as a user would, and comparing their output with golden files."""

from __future__ import annotations

import functools
import json
import os
import re
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

from tests.helpers import GOLDEN, ROOT, program_env, run_program

__all__ = ["TOOLS_GOLDEN", "run_forked", "run_tool", "last_error_line", "imports_torch", "golden_lines"]

TOOLS_GOLDEN = GOLDEN / "07-tools-demos"

#: Tools that import torch when they run, by the start of the name.
_WITH_TORCH = ("torch_avg", "torch_count", "torch_export", "torch_inspect", "dump-forward")
_MODULES = ["h5py", "numpy.random", "returnn.__main__", "returnn.cli.dataset_source", "returnn.datasets.hdf"]
_TORCH_MODULES = ["torch.onnx", "returnn.__main__", "returnn.torch.engine", "returnn.torch.inspection"]


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


def run_forked(
    argv: Sequence[str],
    *,
    cwd: Path,
    with_torch: bool,
    check: bool = True,
    env: Mapping[str, str] | None = None,
    timeout: float = 300,
) -> subprocess.CompletedProcess[str]:
    """
    Run a program of Python as a fork of a process that has done the imports.

    :param argv: file and arguments
    :param cwd: working directory
    :param with_torch: whether torch is among the imports
    :param check: assert exit code 0
    :param env: added to the environment
    :param timeout: seconds
    """
    with TemporaryDirectory() as folder:
        out, err = Path(folder, "stdout"), Path(folder, "stderr")
        out.touch()
        err.touch()
        request = {
            "argv": list(argv),
            "cwd": str(cwd),
            "env": program_env(env),
            "stdout": str(out),
            "stderr": str(err),
        }
        code = _server(with_torch).ask(request, timeout=timeout)
        res = subprocess.CompletedProcess(
            argv, code, out.read_text("utf8", "backslashreplace"), err.read_text("utf8", "backslashreplace")
        )
    if check:
        assert code == 0, f"exit code {code}\n--- stdout\n{res.stdout}\n--- stderr\n{res.stderr}"
    return res


class _Server:
    """See fork_server.py. It ends when this process ends, and with it the pipe."""

    def __init__(self, modules: list[str]):
        self._process = subprocess.Popen(
            [sys.executable, str(Path(__file__).parent / "fork_server.py"), *modules],
            env=program_env(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def ask(self, request: Mapping[str, object], *, timeout: float) -> int:
        """:return: exit code"""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(str(request["argv"]), timeout)
        return int(self._process.stdout.readline())


@functools.cache
def _server(with_torch: bool) -> _Server:
    return _Server(_TORCH_MODULES if with_torch else _MODULES)


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
