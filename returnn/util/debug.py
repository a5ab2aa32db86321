"""
Debugging aids: exception hook, signals, shells.
"""

from __future__ import annotations

import importlib
import os
import sys
import threading
import traceback
import warnings
from collections.abc import Mapping
from typing import Any, TextIO

from returnn.util import better_exchook
from returnn.util.exception_hook import dump_exception, excepthook, init_better_exchook
from returnn.util.signals import (
    format_signum,
    init_faulthandler,
    install_lib_sig_segfault,
    install_signal_handler_if_default,
    install_subproc_faulthandler,
    signal_handler,
    signum_to_signame,
)
from returnn.util.thread_traces import dump_all_thread_tracebacks

__all__ = [
    "init_better_exchook",
    "excepthook",
    "dump_exception",
    "init_faulthandler",
    "install_lib_sig_segfault",
    "install_signal_handler_if_default",
    "install_subproc_faulthandler",
    "signal_handler",
    "format_signum",
    "signum_to_signame",
    "dump_all_thread_tracebacks",
    "init_ipython_kernel",
    "debug_shell",
    "setup_warn_with_traceback",
    "init_cuda_not_in_main_proc_check",
]


def init_ipython_kernel() -> None:
    """
    Start an IPython kernel in a daemon thread, to which ``jupyter console --existing`` can connect.
    Without the package ipykernel, only a notice is printed.
    """
    try:
        kernelapp = importlib.import_module("ipykernel.kernelapp")
    except ImportError as exc:
        print(f"IPython import error, cannot start IPython kernel. {exc}. Install it with: pip install ipykernel")
        return

    def _run() -> None:
        app = kernelapp.IPKernelApp.instance()
        # Signal handlers are only possible in the main thread.
        app.init_signal = lambda: None
        app.initialize(["python", f"--IPKernelApp.connection_file=kernel-{os.getpid()}.json"])
        app.start()

    threading.Thread(target=_run, daemon=True, name="IPython kernel").start()
    print(f"IPython kernel: connect with: jupyter console --existing kernel-{os.getpid()}.json")


def debug_shell(
    user_ns: Mapping[str, Any] | None = None,
    user_global_ns: Mapping[str, Any] | None = None,
    exit_afterwards: bool = True,
) -> None:
    """
    Interactive shell.

    :param user_ns: local names
    :param user_global_ns: global names
    :param exit_afterwards: end the process with code 1 when the shell ends
    """
    print("Debug shell:")
    better_exchook.debug_shell(user_ns=user_ns, user_global_ns=user_global_ns)
    if exit_afterwards:
        print("Debug shell exit. Exit now.")
        sys.exit(1)


def setup_warn_with_traceback() -> None:
    """With the environment variable DEBUG_WARN_WITH_TRACEBACK set to 1, each Python warning prints its stack."""
    if os.environ.get("DEBUG_WARN_WITH_TRACEBACK", "0") in ("", "0"):
        return

    def _show(
        message: Warning | str,
        category: type[Warning],
        filename: str,
        lineno: int,
        file: TextIO | None = None,
        line: str | None = None,
    ) -> None:
        stream = file or sys.stderr
        traceback.print_stack(file=stream)
        stream.write(warnings.formatwarning(message, category, filename, lineno, line))

    warnings.showwarning = _show


def init_cuda_not_in_main_proc_check() -> None:
    """In a child process: using CUDA becomes an error, which shows where a worker would have touched the GPU."""
    torch = sys.modules.get("torch")
    if torch is None:
        return

    def _fail(*_args: Any, **_kwargs: Any) -> None:
        raise RuntimeError("CUDA is used in a worker process. Keep tensors on the CPU there.")

    torch.cuda._lazy_init = _fail  # type: ignore[attr-defined]
