"""
Running other programs, and the end of this one.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from importlib import metadata
from types import FrameType
from typing import Any

from returnn._state import state

__all__ = [
    "sys_cmd_out_lines",
    "sys_exec_out",
    "sys_exec_ret_code",
    "which",
    "which_pip",
    "pip_install",
    "pip_check_is_installed",
    "close_all_fds_except",
    "is_valid_fd",
    "restart_returnn",
    "is_quitting",
    "interrupt_main",
    "try_and_ignore_exception",
    "try_get_stack_frame",
    "maybe_restart_returnn_with_atfork_patch",
]


def sys_cmd_out_lines(s: str) -> list[str]:
    """
    :param s: shell command
    :return: stripped lines of its output, without empty ones
    :raises subprocess.CalledProcessError: exit code not 0
    """
    proc = subprocess.run(s, shell=True, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=True)
    lines = [line.strip() for line in proc.stdout.decode("utf8").split("\n")]
    return [line for line in lines if line]


def sys_exec_out(*args: str, **kwargs: Any) -> str:
    """
    :param args: program and arguments
    :param kwargs: for :class:`subprocess.Popen`
    :return: output
    :raises subprocess.CalledProcessError: exit code not 0
    """
    return subprocess.run(list(args), stdout=subprocess.PIPE, check=True, **kwargs).stdout.decode("utf8")


def sys_exec_ret_code(*args: str, **kwargs: Any) -> int:
    """
    :param args: program and arguments
    :param kwargs: ``valid``: allowed exit codes, default (0, 1); the rest is for :func:`subprocess.call`
    :return: exit code
    :raises subprocess.CalledProcessError: another one
    """
    valid = kwargs.pop("valid", (0, 1))
    code = subprocess.call(list(args), shell=kwargs.pop("shell", False), **kwargs)
    if code not in valid:
        raise subprocess.CalledProcessError(code, list(args))
    return code


def which(program: str) -> str | None:
    """:return: path of the executable, or None"""
    return shutil.which(program)


def which_pip() -> str:
    """:return: path of a pip that belongs to this Python, or the name of one"""
    directory = os.path.dirname(sys.executable)
    for name in (f"pip{sys.version_info.major}", "pip"):
        candidate = os.path.join(directory, name)
        if os.path.exists(candidate):
            return candidate
    return which("pip3") or which("pip") or "pip"


def pip_install(*pip_names: str) -> None:
    """
    :param pip_names: packages, installed into the environment of this Python
    :raises subprocess.CalledProcessError: pip failed
    """
    print(f"$ {sys.executable} -m pip install {' '.join(pip_names)}")
    subprocess.check_call([sys.executable, "-m", "pip", "install", *pip_names], cwd="/")


def pip_check_is_installed(pkg_name: str) -> bool:
    """:return: whether a distribution of that name is installed"""
    try:
        metadata.distribution(pkg_name)
    except metadata.PackageNotFoundError:
        return False
    return True


def close_all_fds_except(except_fds: Collection[int]) -> None:
    """:param except_fds: file descriptors that stay open"""
    if os.path.isdir("/proc/self/fd"):
        fds = [int(name) for name in os.listdir("/proc/self/fd")]
    else:
        fds = list(range(os.sysconf("SC_OPEN_MAX")))
    for fd in fds:
        if fd not in except_fds:
            with contextlib.suppress(OSError):
                os.close(fd)


def is_valid_fd(fd: int) -> bool:
    """:return: whether the file descriptor is open"""
    try:
        os.fstat(fd)
    except OSError:
        return False
    return True


def restart_returnn() -> None:
    """Replace this process by a new one with the same command line. Does not return."""
    sys.stdout.flush()
    sys.stderr.flush()
    close_all_fds_except({0, 1, 2})
    os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def maybe_restart_returnn_with_atfork_patch() -> None:
    """Nothing to do: processes are spawned here, so the patch of fork that the option ``patch_atfork`` meant is not needed."""
    print("Option patch_atfork has no effect: processes are spawned, not forked.")


def is_quitting() -> bool:
    """:return: whether the process is about to end: threads should stop"""
    return state.quitting


def interrupt_main() -> None:
    """Raise KeyboardInterrupt in the main thread; SystemExit in the current one, if that is another and we are not quitting."""
    is_main_thread = threading.current_thread() is threading.main_thread()
    if is_quitting():
        return
    signal.raise_signal(signal.SIGINT)
    if not is_main_thread:
        sys.exit(1)


def try_and_ignore_exception(f: Callable[[], Any]) -> None:
    """:param f: called; an exception is only printed"""
    try:
        f()
    except Exception as exc:  # that is what the caller asks for
        print(f"try_and_ignore_exception: {f!r} failed: {type(exc).__name__}: {exc}", file=sys.stderr)


def try_get_stack_frame(depth: int = 1) -> FrameType | None:
    """
    :param depth: 1: the caller of this function
    :return: the frame, or None if there are not that many
    """
    try:
        return sys._getframe(depth)
    except ValueError:
        return None
