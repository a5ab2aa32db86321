"""
A program that has imported what the tools import, and runs each tool in a forked child: started a hundred times in the tests, a
tool is a process of its own, with its own exit code and output, but the imports are paid once.

Started by tool_program.py as ``python fork_server.py MODULE...``; reads a JSON request per line, writes an exit code per line.
"""

from __future__ import annotations

import importlib
import json
import os
import runpy
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_ROOT = Path(__file__).resolve().parent.parent.parent


def _become(request: Mapping[str, Any]) -> None:
    """Be the process that the request describes. :param request: argv, cwd, env, stdout, stderr (file names)"""
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    for fd, filename, flags in (
        (0, os.devnull, os.O_RDONLY),
        (1, request["stdout"], os.O_WRONLY),
        (2, request["stderr"], os.O_WRONLY),
    ):
        file = os.open(filename, flags)
        os.dup2(file, fd)
        os.close(file)
    sys.stdin = open(os.devnull)  # noqa: SIM115  # for the life of the process
    sys.argv[:] = request["argv"]
    sys.path[0] = os.path.dirname(request["argv"][0])


def _next_request() -> Mapping[str, Any] | None:
    """:return: in a child: what it has to do; in the server, when nobody asks any more: None"""
    for line in sys.stdin:
        pid = os.fork()
        if not pid:
            return json.loads(line)  # type: ignore[no-any-return]
        _, status = os.waitpid(pid, 0)
        print(os.waitstatus_to_exitcode(status), flush=True)
    return None


if __name__ == "__main__":
    sys.path.append(str(_ROOT))
    for module in sys.argv[1:]:
        importlib.import_module(module)
    sys.path.remove(str(_ROOT))  # the tool finds it by itself
    wanted = _next_request()
    if wanted is not None:
        _become(wanted)
        runpy.run_path(sys.argv[0], run_name="__main__")
