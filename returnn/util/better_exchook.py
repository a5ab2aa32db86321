"""
Extended tracebacks with local variables: the package ``better_exchook`` if it is installed, else a small one of our own.
"""

from __future__ import annotations

import code
import importlib
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any, TextIO

__all__ = [
    "install",
    "setup_all",
    "better_exchook",
    "replace_traceback_format_tb",
    "debug_shell",
    "format_exception_with_locals",
]

_MAX_VALUE_LEN = 300
_MAX_LOCALS_PER_FRAME = 30


def _package() -> types.ModuleType | None:
    try:
        return importlib.import_module("better_exchook")
    except ImportError:
        return None


def install() -> None:
    """Make extended tracebacks the reaction to uncaught exceptions of this process."""
    package = _package()
    if package is not None:
        package.install()
    else:
        sys.excepthook = better_exchook


def setup_all() -> None:
    """:func:`install`, and :func:`replace_traceback_format_tb`."""
    install()
    replace_traceback_format_tb()


def replace_traceback_format_tb() -> None:
    """Let the stdlib's ``traceback.format_tb`` give extended tracebacks. Without the package, nothing changes."""
    package = _package()
    if package is not None:
        package.replace_traceback_format_tb()


def better_exchook(
    etype: type[BaseException] | None,
    value: BaseException | None,
    tb: types.TracebackType | None,
    *,
    file: TextIO | None = None,
    **kwargs: Any,
) -> None:
    """
    Print an exception with the local variables of each frame.

    :param etype: class of the exception
    :param value: exception
    :param tb: traceback
    :param file: default is standard error
    :param kwargs: of the package's function of that name; no effect without the package. Any: of different types
    """
    file = file or sys.stderr
    package = _package()
    if package is not None:
        if not _is_terminal(file):  # the package itself decides by the environment, whatever the file
            kwargs.setdefault("with_color", False)
        package.better_exchook(etype, value, tb, file=file, **kwargs)
        return
    if value is None:
        print("No exception.", file=file)
        return
    print(format_exception_with_locals(value, tb), file=file)


def _is_terminal(file: TextIO) -> bool:
    is_terminal = getattr(file, "isatty", None)
    return is_terminal is not None and is_terminal()


def format_exception_with_locals(exc: BaseException, tb: types.TracebackType | None = None) -> str:
    """
    :param exc: with its causes
    :param tb: default is that of the exception
    :return: traceback with local variables; values are cut to 300 characters
    """
    parts = []
    if exc.__cause__ is not None:
        parts.append(format_exception_with_locals(exc.__cause__))
        parts.append("\nThe above exception was the direct cause of the following exception:\n")
    elif exc.__context__ is not None and not exc.__suppress_context__:
        parts.append(format_exception_with_locals(exc.__context__))
        parts.append("\nDuring handling of the above exception, another exception occurred:\n")
    parts.append("EXCEPTION\nTraceback (most recent call last):")
    for frame, lineno in traceback.walk_tb(tb if tb is not None else exc.__traceback__):
        summary = traceback.extract_stack(frame, limit=1)[0]
        parts.append(f'  File "{frame.f_code.co_filename}", line {lineno}, in {frame.f_code.co_name}')
        line = traceback.linecache.getline(frame.f_code.co_filename, lineno).strip() or summary.line  # type: ignore[attr-defined]
        if line:
            parts.append(f"    line: {line}")
        parts.extend(_format_locals(frame))
    parts.append("".join(traceback.format_exception_only(type(exc), exc)).rstrip("\n"))
    return "\n".join(parts)


def _format_locals(frame: types.FrameType) -> list[str]:
    if frame.f_locals is frame.f_globals:  # module level: everything that is imported, of little use
        return []
    lines = ["    locals:"]
    for name, value in list(frame.f_locals.items())[:_MAX_LOCALS_PER_FRAME]:
        try:
            text = repr(value)
        except Exception as exc:  # any class may have a broken repr, which must not hide the error
            text = f"<repr failed: {type(exc).__name__}>"
        text = text.replace("\n", "\n        ")
        if len(text) > _MAX_VALUE_LEN:
            text = text[:_MAX_VALUE_LEN] + "..."
        lines.append(f"      {name} = {text}")
    return lines if len(lines) > 1 else []


def debug_shell(
    user_ns: Mapping[str, Any] | None = None,
    user_global_ns: Mapping[str, Any] | None = None,
    traceback: types.TracebackType | None = None,
    execWrapper: Any = None,
) -> None:
    """
    Interactive shell: IPython if it is installed, else that of the stdlib.

    :param user_ns: local names
    :param user_global_ns: global names
    :param traceback: no effect without the package
    :param execWrapper: no effect without the package
    """
    package = _package()
    if package is not None:
        package.debug_shell(
            user_ns=dict(user_ns or {}),
            user_global_ns=dict(user_global_ns or {}),
            traceback=traceback,
            execWrapper=execWrapper,
        )
        return
    namespace = {**(user_global_ns or {}), **(user_ns or {})}
    try:
        ipython = importlib.import_module("IPython")
    except ImportError:
        code.interact(banner="Python shell. Names: " + ", ".join(sorted(namespace)), local=namespace)
    else:
        ipython.start_ipython(argv=[], user_ns=namespace)
