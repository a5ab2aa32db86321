"""
Handlers of signals and crashes that say where the program is.
"""

from __future__ import annotations

import atexit
import contextlib
import ctypes
import faulthandler
import io
import os
import signal
import sys
import threading
from types import FrameType

from returnn.util import stop_request
from returnn.util.thread_traces import dump_all_thread_tracebacks

__all__ = [
    "signum_to_signame",
    "format_signum",
    "signal_handler",
    "install_signal_handler_if_default",
    "init_faulthandler",
    "install_subproc_faulthandler",
    "install_lib_sig_segfault",
]

signum_to_signame = {int(s): s.name for s in signal.Signals}


def format_signum(signum: int) -> str:
    """:return: e.g. "10 (SIGUSR1)" """
    return f"{int(signum)} ({signum_to_signame.get(int(signum), 'unknown')})"


def signal_handler(signum: int, frame: FrameType | None) -> None:
    """
    Print the signal and the stacks of all threads. SIGUSR1 also asks a training that can save to stop after its step
    (:mod:`returnn.util.stop_request`): SLURM and SGE can send it when the limit of time is near.
    """
    is_new = stop_request.requested() is None
    is_warning = signum == getattr(signal, "SIGUSR1", None)
    stops = is_warning and stop_request.request("SIGUSR1")
    if is_warning and not stops:
        stop_request.remember("SIGUSR1")
    text = io.StringIO()
    print(f"Signal handler: got signal {format_signum(signum)}", file=text)
    if stops and is_new:
        print("The training saves after this step and stops.", file=text)
    dump_all_thread_tracebacks(file=text)
    try:
        sys.stdout.write(text.getvalue())
        sys.stdout.flush()
    except (RuntimeError, OSError, ValueError):  # it interrupted a write to the same stream, or nobody reads
        with contextlib.suppress(OSError, ValueError, AttributeError):
            os.write(sys.stdout.fileno(), text.getvalue().encode())


def install_signal_handler_if_default(signum: int, exceptions_are_fatal: bool = False) -> bool:
    """
    :param signum: gets :func:`signal_handler` if it still has the default action
    :param exceptions_are_fatal: raise if that is not possible (in another thread than the main one), else only say so
    :return: whether it was installed
    """
    if signal.getsignal(signum) != signal.SIG_DFL:
        return False
    try:
        signal.signal(signum, signal_handler)
    except ValueError as exc:
        if exceptions_are_fatal:
            raise
        print(f"Cannot install signal handler for signal {format_signum(signum)}: {exc}")
        return False
    return True


def init_faulthandler(sigusr1_chain: bool = False) -> None:
    """
    Dump the stacks of all threads on SIGUSR1 and SIGUSR2 (the process goes on; a training that can save stops after its step
    on SIGUSR1, see :func:`signal_handler`) and on crashes such as SIGSEGV.

    :param sigusr1_chain: call an earlier handler of SIGUSR1 as well
    """
    is_main_thread = threading.current_thread() is threading.main_thread()
    if os.name != "nt" and is_main_thread:
        # USR1 is used by SGE when the limit of time is near.
        if install_signal_handler_if_default(signal.SIGUSR1):
            sigusr1_chain = True
        install_signal_handler_if_default(signal.SIGUSR2)
        atexit.unregister(_ignore_at_exit)
        atexit.register(_ignore_at_exit)
    if not faulthandler.is_enabled() and _has_fileno(sys.stderr):
        faulthandler.enable()
        if os.name != "nt":
            faulthandler.register(signal.SIGUSR1, all_threads=True, chain=sigusr1_chain)


def _ignore_at_exit() -> None:
    """The interpreter gives them their default action at its end, and then a late one would spoil the exit code."""
    for signum in (signal.SIGUSR1, signal.SIGUSR2):
        if signal.getsignal(signum) is signal_handler:
            faulthandler.unregister(signum)
            signal.signal(signum, signal.SIG_IGN)


def _has_fileno(stream: object) -> bool:
    try:
        stream.fileno()  # type: ignore[attr-defined]
    except (AttributeError, OSError, ValueError):  # replaced by a test runner or a notebook
        return False
    return True


def install_subproc_faulthandler() -> None:
    """
    For child processes: dumps of crashes go to ``faulthandler_dump.<pid>.log`` in the current folder; the file is removed
    at exit if it is empty.
    """
    filename = f"faulthandler_dump.{os.getpid()}.log"
    try:
        file = open(filename, "w")  # noqa: SIM115  # stays open: written by the crash handler
    except OSError:  # not writable: the dumps go to stderr
        init_faulthandler()
        return
    faulthandler.enable(file=file, all_threads=True)

    def _remove_if_empty() -> None:
        faulthandler.disable()
        file.close()
        if os.path.exists(filename) and os.path.getsize(filename) == 0:
            os.remove(filename)

    atexit.register(_remove_if_empty)


def install_lib_sig_segfault() -> bool:
    """
    Preload glibc's ``libSegFault.so``, for C stack traces on crashes. Newer systems have no such library.

    :return: whether it was loaded
    """
    os.environ.setdefault("SEGFAULT_SIGNALS", "all")
    try:
        ctypes.CDLL("libSegFault.so")
    except OSError as exc:
        print(f"installLibSigSegfault: libSegFault.so not found ({exc}), using the faulthandler")
        return False
    print("Installed libSegFault.so.")
    return True
