"""Running programs of Python as forks of a process that has done the imports: rnn.py with torch takes a tenth of the time."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory

__all__ = ["Program", "program_env", "run_all_forked", "run_forked"]

_MODULES = ["h5py", "numpy.random", "returnn.__main__", "returnn.cli.dataset_source", "returnn.datasets.hdf"]
_TORCH_MODULES = [
    *("torch.onnx", "torch._dynamo", "returnn.__main__"),  # the second: whoever makes an optimizer imports it
    *("returnn.torch.engine", "returnn.torch.inspection"),
]


def program_env(extra: Mapping[str, str] | None = None) -> dict[str, str]:
    """:return: environment for a subprocess: one thread, so that numbers do not depend on the machine's cores"""
    env = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1", **(extra or {})}
    env.pop("PT_DEVICE", None)
    return env


@dataclasses.dataclass(frozen=True)
class Program:
    """
    What to run.

    :ivar argv: file and arguments
    :ivar cwd: working directory
    :ivar env: added to the environment
    """

    argv: Sequence[str]
    cwd: Path
    env: Mapping[str, str] = dataclasses.field(default_factory=dict)


def run_forked(
    argv: Sequence[str],
    *,
    cwd: Path,
    with_torch: bool = True,
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
    (res,) = run_all_forked([Program(argv, cwd, env or {})], with_torch=with_torch, timeout=timeout)
    if check:
        text = f"exit code {res.returncode}\n--- stdout\n{res.stdout}\n--- stderr\n{res.stderr}"
        assert res.returncode == 0, text
    return res


def run_all_forked(
    programs: Sequence[Program], *, with_torch: bool = True, one_output: bool = False, timeout: float = 300
) -> list[subprocess.CompletedProcess[str]]:
    """
    Run programs side by side, until all have ended.

    :param programs: what to run
    :param with_torch: whether torch is among the imports
    :param one_output: stderr goes where stdout goes
    :param timeout: seconds
    """
    with TemporaryDirectory() as folder:
        files = [
            (Path(folder, f"out{i}"), Path(folder, f"{'out' if one_output else 'err'}{i}"))
            for i in range(len(programs))
        ]
        request = []
        for program, (out, err) in zip(programs, files, strict=True):
            out.touch()
            err.touch()
            process = {"argv": list(program.argv), "cwd": str(program.cwd), "env": program_env(program.env)}
            request.append({**process, "stdout": str(out), "stderr": str(err)})
        codes = _server(with_torch).ask(request, timeout=timeout)
        return [
            subprocess.CompletedProcess(program.argv, code, _text(out), "" if one_output else _text(err))
            for program, code, (out, err) in zip(programs, codes, files, strict=True)
        ]


def _text(file: Path) -> str:
    return file.read_text("utf8", "backslashreplace")


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

    def ask(self, request: Sequence[Mapping[str, object]], *, timeout: float) -> list[int]:
        """:return: exit codes"""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write(json.dumps(request) + "\n")
        self._process.stdin.flush()
        pids = self._answer(request)
        if not select.select([self._process.stdout], [], [], timeout)[0]:
            for group in (*pids, self._process.pid):
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(group, signal.SIGKILL)
            _server.cache_clear()
            raise subprocess.TimeoutExpired(str([process["argv"] for process in request]), timeout)
        return self._answer(request)

    def _answer(self, request: Sequence[Mapping[str, object]]) -> list[int]:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            _server.cache_clear()
            raise RuntimeError(f"the server ended: exit code {self._process.wait()}, request {request}")
        answer: list[int] = json.loads(line)
        return answer


@functools.cache
def _server(with_torch: bool) -> _Server:
    return _Server(_TORCH_MODULES if with_torch else _MODULES)
