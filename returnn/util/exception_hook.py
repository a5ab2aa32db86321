"""
What happens to uncaught exceptions: the sentence last on stderr, the long dump with local variables in the log.
"""

from __future__ import annotations

import contextlib
import io
import logging
import os
import sys
import threading
import traceback
from types import TracebackType
from typing import TextIO

from returnn._state import state
from returnn.errors import UserError
from returnn.util.better_exchook import better_exchook
from returnn.util.secret_values import find_secrets, hide
from returnn.util.thread_traces import dump_all_thread_tracebacks

__all__ = ["init_better_exchook", "dump_exception", "excepthook"]

_logger = logging.getLogger("returnn")


def dump_exception(exc: BaseException, stream: TextIO) -> None:
    """
    The long dump: stacks of all threads, then the traceback with local variables, without values of secrets.

    :param exc: with its traceback
    :param stream: gets the text; no colours
    """
    thread = threading.current_thread()
    print(f"Unhandled exception {type(exc)} in thread {thread}, proc {os.getpid()}.", file=stream)
    if isinstance(exc, KeyboardInterrupt):
        return
    dump_all_thread_tracebacks(exclude_self=True, file=stream)
    try:
        better_exchook(type(exc), exc, exc.__traceback__, file=stream)
    except Exception as dump_exc:  # whatever goes wrong there, the exception itself must be seen
        print(f"(No local variables: {type(dump_exc).__name__}: {dump_exc})", file=stream)
        print(hide("".join(traceback.format_exception(type(exc), exc, exc.__traceback__))), file=stream)


def excepthook(exc_type: type[BaseException], exc: BaseException | None, tb: TracebackType | None) -> None:
    """
    For ``sys.excepthook``. See the module.

    :param exc_type: class
    :param exc: exception
    :param tb: traceback
    """
    if exc is None:
        exc = exc_type()
    if threading.current_thread() is threading.main_thread():
        if state.quitting and isinstance(exc, KeyboardInterrupt):
            return  # a further Ctrl-C while ending
        state.quitting = True
    exc = exc.with_traceback(tb)
    with contextlib.suppress(Exception):  # a broken log must not hide the exception itself
        _dump_to_log(exc)
    with contextlib.suppress(OSError, ValueError):  # nobody reads
        sys.stdout.flush()
        if not isinstance(exc, (UserError, KeyboardInterrupt)):
            text = "".join(traceback.format_exception(type(exc), exc, tb)).rstrip("\n")
        else:
            text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        print(hide(text, find_secrets(exc)), file=sys.stderr)
        sys.stderr.flush()


def _dump_to_log(exc: BaseException) -> None:
    """To log files and pipes always, to standard output only at verbosity 5. Without log to nowhere."""
    handlers = [
        handler
        for handler in _logger.handlers
        if handler.level <= logging.DEBUG or type(handler).__name__ != "StdoutHandler"
    ]
    if not handlers:
        return
    buffer = io.StringIO()
    dump_exception(exc, buffer)
    record = logging.LogRecord("returnn", logging.ERROR, __file__, 0, "%s", (buffer.getvalue().rstrip("\n"),), None)
    for handler in handlers:
        handler.handle(record)


def _thread_excepthook(args: threading.ExceptHookArgs) -> None:
    if args.exc_type is not SystemExit:
        excepthook(args.exc_type, args.exc_value, args.exc_traceback)


def init_better_exchook() -> None:
    """
    Install :func:`excepthook` for all threads. The first uncaught exception of the main thread marks the process as
    ending; a further Ctrl-C is then ignored. A hook that somebody else has installed stays.
    """
    if sys.excepthook is sys.__excepthook__ or getattr(sys.excepthook, "__module__", "") == "better_exchook":
        sys.excepthook = excepthook
    if threading.excepthook is threading.__excepthook__:
        threading.excepthook = _thread_excepthook
