"""
Runs a program of Python in which writing fails.

``faulty_run.py FAULT FOLDER PROGRAM ARGS...``, as its own process or as a fork of one that has done the imports. FAULT is

- ``full:N``: files cannot grow beyond N bytes, as on a full disk; standard output and error can
- ``readonly``: no permission to write in FOLDER, also for root
- ``gone:open``, ``gone:rename``: FOLDER vanishes right before a file in it is opened for writing, or gets its name
"""

from __future__ import annotations

import ctypes
import os
import resource
import runpy
import select
import shutil
import sys

_PERMISSION_CAPABILITIES = 0b110  # CAP_DAC_OVERRIDE, CAP_DAC_READ_SEARCH


def _continue_behind_pipes() -> None:
    """Go on in a child, whose output the parent, which no limit holds for, copies to ours."""
    pipes = {fd: os.pipe() for fd in (1, 2)}
    pid = os.fork()
    if not pid:
        for fd, (_, write_end) in pipes.items():
            os.dup2(write_end, fd)
        return
    targets = {}
    for fd, (read_end, write_end) in pipes.items():
        os.close(write_end)
        targets[read_end] = fd
    while targets:
        for read_end in select.select(list(targets), [], [])[0]:
            data = os.read(read_end, 1 << 16)
            if data:
                os.write(targets[read_end], data)
            else:
                del targets[read_end]
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    os._exit(code if code >= 0 else 128 - code)


def _drop_permissions_of_root() -> None:
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(0x20080522, 0)  # version 3, this process
    data = (ctypes.c_uint32 * 6)()
    if libc.capget(header, data):
        raise OSError(ctypes.get_errno(), "capget")
    for i in (0, 1):  # effective, permitted
        data[i] &= ~_PERMISSION_CAPABILITIES
    if libc.capset(header, data):
        raise OSError(ctypes.get_errno(), "capset")


def _remove_at(event: str, folder: str) -> None:
    """
    :param event: "open" or "rename"
    :param folder: vanishes then
    """
    done: list[bool] = []

    def hook(name: str, args: tuple[object, ...]) -> None:
        if done or name != ("open" if event == "open" else "os.rename"):
            return
        path = args[0] if event == "open" else args[1]
        if not isinstance(path, (str, bytes)) or not os.path.realpath(os.fsdecode(path)).startswith(folder + os.sep):
            return
        if os.fsdecode(path).endswith(".lock"):  # not what the program is for
            return
        flags = args[2] if event == "open" else os.O_WRONLY
        if isinstance(flags, int) and flags & (os.O_WRONLY | os.O_RDWR):
            done.append(True)
            shutil.rmtree(folder)

    sys.addaudithook(hook)


def main() -> None:
    """See the top of the file."""
    fault, folder, *argv = sys.argv[1:]
    folder = os.path.realpath(folder)
    if fault.startswith("full:"):
        _continue_behind_pipes()
        limit = int(fault.removeprefix("full:"))
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))
    elif fault == "readonly":
        os.chmod(folder, 0o555)
        if not os.geteuid():
            _drop_permissions_of_root()
    elif fault != "none":
        _remove_at(fault.removeprefix("gone:"), folder)
    sys.argv[:] = argv
    sys.path[0] = os.path.dirname(argv[0])
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    main()
