"""
A program that has imported what our programs import, and runs each of them in a forked child: started a hundred times in the
tests, it is a process of its own, with its own exit code and output, but the imports are paid once.

Started by forked.py as ``python fork_server.py MODULE...``. A request is a line of JSON: a list of processes that run side by
side. The answer is a line with their ids, and when all have ended one with their exit codes.
"""

from __future__ import annotations

import contextlib
import gc
import importlib
import io
import json
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent


def _become(process: Mapping[str, Any]) -> None:
    """Be the process that is asked for. :param process: argv, cwd, env, stdout, stderr (file names)"""
    os.chdir(process["cwd"])
    os.environ.clear()
    os.environ.update(process["env"])
    for fd, filename, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, process["stdout"], os.O_WRONLY | os.O_APPEND),
        (2, process["stderr"], os.O_WRONLY | os.O_APPEND),
    ):
        file = os.open(filename, flags)
        os.dup2(file, fd)
        os.close(file)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for the life of the process
    if process["env"].get("PYTHONUNBUFFERED"):
        sys.stdout = io.TextIOWrapper(open(1, "wb", 0, closefd=False), "utf8", write_through=True)  # noqa: SIM115
    if "numpy" in sys.modules:
        sys.modules["numpy"].random.seed()  # as in a new process: each draws something else
    sys.argv[:] = process["argv"]
    sys.path[:1] = [
        os.path.dirname(process["argv"][0]),
        *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)),
    ]


def _next_process() -> Mapping[str, Any] | None:
    """:return: in a child: what it has to be; in the server, when nobody asks any more: None"""
    gc.collect()
    gc.freeze()  # children share the memory of what is imported
    for line in sys.stdin:
        processes = json.loads(line)
        pids = []
        for process in processes:
            pid = os.fork()
            # Programs send signals to their group. On both sides, since it is not known who comes first.
            with contextlib.suppress(OSError):
                os.setpgid(pid, pid)
            if not pid:
                return process  # type: ignore[no-any-return]
            pids.append(pid)
        print(json.dumps(pids), flush=True)
        codes: dict[int, int] = {}
        while len(codes) < len(pids):
            pid, status = os.wait()
            codes[pid] = os.waitstatus_to_exitcode(status)
        print(json.dumps([codes[pid] for pid in pids]), flush=True)
    return None


def _run_program() -> None:
    """As ``python PROGRAM``: what is not caught goes to sys.excepthook, which does not see the frames of this file."""
    try:
        runpy.run_path(sys.argv[0], run_name="__main__")
    except Exception as exc:
        traceback = exc.__traceback__
        while traceback is not None and traceback.tb_frame.f_code.co_filename in (__file__, "<frozen runpy>"):
            traceback = traceback.tb_next
        sys.excepthook(type(exc), exc.with_traceback(traceback), traceback)
        sys.exit(1)


if __name__ == "__main__":
    sys.path[0] = str(_ROOT)
    for module in sys.argv[1:]:
        importlib.import_module(module)
    wanted = _next_process()
    if wanted is not None:
        _become(wanted)
        _run_program()
