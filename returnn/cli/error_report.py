"""
Uncaught exceptions as text: a short report that ends with the sentence goes to stderr, the long dump to the log.

The long dump (all threads, local variables) is made by :mod:`returnn.util.debug`. It goes to the log files, and to stdout
only at verbosity 5.
"""

from __future__ import annotations

import contextlib
import io
import linecache
import logging
import os
import sys
import sysconfig
import threading
import traceback
from collections.abc import Callable
from types import TracebackType
from typing import TextIO

from returnn._state import state
from returnn.cli import rank_end
from returnn.errors import UserError, WorkerError
from returnn.log import StdoutHandler, log
from returnn.util.rank_failure import prefix_lines
from returnn.util.safe_repr import cut_middle
from returnn.util.secret_values import find_secrets, hide

__all__ = ["sentence", "short_report", "report", "report_and_leave", "install", "ignore_broken_pipe"]

_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.abspath(__file__))) + os.sep
_LIBRARY_DIRS = tuple(
    os.path.abspath(path) + os.sep
    for path in {sysconfig.get_path(n) for n in ("stdlib", "platstdlib", "purelib", "platlib")}
)

_MAX_REPORT_LEN = 20_000

#: Writes the long dump of an exception to a stream.
Dump = Callable[[BaseException, TextIO], None]


def sentence(exc: BaseException) -> str:
    """
    :param exc:
    :return: class and text, e.g. ``ConfigError: option "batch_size" is invalid: ...``; the last line that a user sees
    """
    if isinstance(exc, UserError):
        return f"{type(exc).__name__}: {exc}"
    notes = list(getattr(exc, "__notes__", ()))
    lines = traceback.format_exception_only(type(exc), exc)
    if notes and sys.version_info >= (3, 11):  # each is an entry, or several if it has several lines
        lines = lines[: len(lines) - sum(len(str(note).split("\n")) for note in notes)]
    return "".join(lines).rstrip("\n")


def short_report(exc: BaseException) -> str:
    """
    :param exc:
    :return: for a mistake of the user the sentence, after the place in the user's own code if it passed through that;
        for other exceptions a traceback, from the first place in the user's code on if there is one, then the sentence
    """
    frames = list(traceback.extract_tb(exc.__traceback__))
    user_frames = [f for f in frames if _is_user_file(f.filename)]
    if isinstance(exc, UserError):
        place = _place_in_worker(exc)
        if not place and user_frames and not isinstance(exc.__cause__, SyntaxError):
            frame = user_frames[-1]
            place = f'  File "{frame.filename}", line {frame.lineno}, in {frame.name}\n'
            line = frame.line or linecache.getline(frame.filename, frame.lineno or 0).strip()
            place += f"    {line}\n" if line else ""
        return place + _notes(exc) + sentence(exc) + "\n"
    if not user_frames:
        if not _notes(exc):
            return "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        return "".join(traceback.format_tb(exc.__traceback__)) + _notes(exc) + sentence(exc) + "\n"
    first = frames.index(user_frames[0])
    text = ""
    if exc.__cause__ is not None:
        text += short_report(exc.__cause__)
        text += "\nThe above exception was the direct cause of the following exception:\n\n"
    text += "Traceback (most recent call last):\n"
    if first:
        text += f"  ... ({first} calls inside of returnn)\n"
    text += "".join(traceback.format_list(frames[first:]))
    return text + _notes(exc) + sentence(exc) + "\n"


def _place_in_worker(exc: BaseException) -> str:
    """
    :return: traceback of a worker process from the first place in the user's code on, if it passed through that;
        the whole one if the error is not one of ours
    """
    frames = [
        traceback.FrameSummary(filename, lineno, name, lookup_line=False, line=line)
        for filename, lineno, name, line in getattr(exc.__cause__, "frames", ())
    ]
    first = next((i for i, frame in enumerate(frames) if _is_user_file(frame.filename)), None)
    if first is None:
        if not frames or not isinstance(exc, WorkerError):
            return ""
        first = 0
    text = f"  ... ({first} calls inside of returnn)\n" if first else ""
    return "Traceback of the worker (most recent call last):\n" + text + "".join(traceback.format_list(frames[first:]))


def _notes(exc: BaseException) -> str:
    """:return: what was added to the exception on its way, before the sentence, since that is to be the last"""
    return "".join(f"  {line}\n" for note in getattr(exc, "__notes__", ()) for line in str(note).splitlines())


def report(exc: BaseException, *, dump: Dump | None = None) -> None:
    """
    Write the dump to the log and then the short report to stderr, so that the sentence is the last that is seen.
    With several ranks, each line says which, and a rank that ends because of another one says only that.

    :param exc:
    :param dump: writes the long dump; None: only the full traceback goes to the log
    """
    with contextlib.suppress(Exception):  # a broken log or dump must not hide the error itself
        _log_dump(exc, dump)
    ignore_broken_pipe(sys.stdout)
    first = rank_end.failed_before()
    if first is not None:
        rank_end.say_cause(first, rank_end.own_sentence(exc, _without_secrets(sentence(exc), exc)))
        return
    try:
        sys.stderr.write(prefix_lines(_without_secrets(short_report(exc), exc)))
        sys.stderr.flush()
    except (OSError, ValueError):  # nobody reads, or it is closed, or the disk is full
        ignore_broken_pipe(sys.stderr)


def _without_secrets(text: str, exc: BaseException) -> str:
    """:return: without values of secrets, and not longer than somebody reads"""
    text = cut_middle(text, _MAX_REPORT_LEN)
    try:
        return hide(text, find_secrets(exc))
    except Exception:  # a variable of a strange class; the names in the text are still looked at
        return hide(text)


def _log_dump(exc: BaseException, dump: Dump | None) -> None:
    handlers = [h for h in logging.getLogger("returnn").handlers if _wants_dump(h)]
    if not handlers or not log.initialized:
        return
    buffer = io.StringIO()
    if dump is not None:
        dump(exc, buffer)
    else:
        text = "".join(traceback.format_exception(type(exc), exc, exc.__traceback__))
        buffer.write(_without_secrets(text, exc))
    text = buffer.getvalue().rstrip("\n")
    record = logging.LogRecord("returnn", logging.ERROR, __file__, 0, "%s", (text,), None)
    for handler in handlers:
        handler.handle(record)


def _wants_dump(handler: logging.Handler) -> bool:
    """:return: True for files and pipes; for stdout only if it also gets the lines of log.v5"""
    return not isinstance(handler, StdoutHandler) or (handler.level <= logging.DEBUG and not state.rank)


def _is_user_file(filename: str) -> bool:
    """:return: whether it is neither ours nor of a library"""
    if filename.startswith("<"):
        return filename == "<config string>"
    path = os.path.abspath(filename)
    root = os.path.dirname(_PACKAGE_DIR.rstrip(os.sep))
    if path == os.path.join(root, "rnn.py") or os.path.dirname(path) == os.path.join(root, "tools"):
        return False
    return not path.startswith((_PACKAGE_DIR, *_LIBRARY_DIRS)) and "site-packages" not in path


def install(dump: Dump | None = None) -> None:
    """
    Make :func:`report` what happens to uncaught exceptions of the main thread.

    :param dump: see there
    """

    def hook(exc_type: type[BaseException], exc: BaseException, tb: TracebackType | None) -> None:
        if threading.current_thread() is threading.main_thread():
            state.quitting = True
        if isinstance(exc, KeyboardInterrupt):
            with contextlib.suppress(OSError, ValueError):
                print("KeyboardInterrupt", file=sys.stderr)
            return
        report(exc.with_traceback(tb), dump=dump)

    sys.excepthook = hook


def report_and_leave(exc: BaseException, *, dump: Dump | None = None) -> None:
    """
    The end of one of several ranks by an exception: :func:`report`, after those who need us have heard of it; exit code 1.

    Not through ``sys.excepthook``: torch.distributed wraps it, and the interpreter's own end may wait for other ranks.

    :param exc:
    :param dump: see :func:`report`
    """
    rank_end.part_from_ranks(error=True)
    report(exc, dump=dump)
    rank_end.leave(1)


def ignore_broken_pipe(stream: TextIO) -> bool:
    """
    Flush; if the reader is gone, or the disk full, let all further output go nowhere, so that the interpreter
    does not complain at its end.

    :param stream: sys.stdout or sys.stderr
    :return: whether that is so
    """
    try:
        stream.flush()
    except (OSError, ValueError):
        with contextlib.suppress(OSError, ValueError, AttributeError):
            devnull = os.open(os.devnull, os.O_WRONLY)
            os.dup2(devnull, stream.fileno())
            os.close(devnull)
        return True
    except AttributeError:  # no stream at all, e.g. under pythonw
        return False
    return False
