"""
Extended tracebacks with local variables, without values of secrets, bounded in size, and without colours.

They are our own, also where the package ``better_exchook`` is installed, which shows all values; its shell is used.
"""

from __future__ import annotations

import code
import importlib
import linecache
import sys
import traceback
import types
from collections.abc import Mapping
from typing import Any, TextIO

from returnn.util.safe_repr import cut_middle, safe_repr, shorten
from returnn.util.secret_names import HIDDEN, hidden_locals
from returnn.util.secret_values import find_secrets, hide

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
_MAX_FRAME_LEN = 4000
_MAX_MESSAGE_LEN = 10_000
_MAX_DUMP_LEN = 200_000
# Of one traceback, e.g. of an endless recursion.
_MAX_FIRST_FRAMES, _MAX_LAST_FRAMES = 20, 80
_MAX_EXCEPTIONS = 20


def _package() -> types.ModuleType | None:
    try:
        return importlib.import_module("better_exchook")
    except ImportError:
        return None


def install() -> None:
    """Make extended tracebacks the reaction to uncaught exceptions of this process."""
    sys.excepthook = better_exchook


def setup_all() -> None:
    """:func:`install`, and :func:`replace_traceback_format_tb`."""
    install()
    replace_traceback_format_tb()


def replace_traceback_format_tb() -> None:
    """Let the stdlib's ``traceback.format_tb`` give extended tracebacks."""
    traceback.format_tb = _format_tb  # type: ignore[assignment]


def _format_tb(tb: types.TracebackType | None, limit: int | None = None) -> list[str]:
    """:return: as ``traceback.format_tb``: an entry per frame, with line ends; the first ones, if limited"""
    frames = list(traceback.walk_tb(tb))
    return [hide("\n".join(_format_frame(frame, lineno))) + "\n" for frame, lineno in frames[:limit]]


def better_exchook(
    etype: type[BaseException] | None,
    value: BaseException | None,
    tb: types.TracebackType | None,
    *,
    file: TextIO | None = None,
    **kwargs: Any,
) -> None:
    """
    Print an exception with the local variables of each frame, as :func:`format_exception_with_locals`.

    :param etype: class of the exception
    :param value: exception
    :param tb: traceback
    :param file: default is standard error
    :param kwargs: of the package's function of that name. Any: of different types. ``debugshell=True`` opens a shell; no
        effect of the others
    """
    file = file or sys.stderr
    if value is None:
        print("No exception.", file=file)
        return
    print(format_exception_with_locals(value, tb), file=file)
    if kwargs.get("debugshell"):
        debug_shell(traceback=tb)


def format_exception_with_locals(exc: BaseException, tb: types.TracebackType | None = None) -> str:
    """
    :param exc: with its causes
    :param tb: default is that of the exception
    :return: traceback with local variables. Values under names of secrets are hidden everywhere. A value has 300 characters
        at most, a frame 4,000, all 200,000; of many frames, the first and last are shown
    """
    # Cut before secrets are looked for, which takes time; a secret that is cut is still seen by its name.
    text = "\n".join(_format_chain(exc, tb, seen=set()))
    return hide(cut_middle(text, _MAX_DUMP_LEN), find_secrets(exc))


def _format_chain(exc: BaseException, tb: types.TracebackType | None, *, seen: set[int]) -> list[str]:
    """:return: lines, of the causes first"""
    seen.add(id(exc))
    parts = []
    cause, context = exc.__cause__, None if exc.__suppress_context__ else exc.__context__
    before = cause if cause is not None else context
    if before is not None and id(before) not in seen and len(seen) < _MAX_EXCEPTIONS:
        parts += _format_chain(before, None, seen=seen)
        how = "The above exception was the direct cause of" if cause is not None else "During handling of"
        end = "the following exception:" if cause is not None else "the above exception, another exception occurred:"
        parts.append(f"\n{how} {end}\n")
    parts.append("EXCEPTION\nTraceback (most recent call last):")
    frames = list(traceback.walk_tb(tb if tb is not None else exc.__traceback__))
    left_out = len(frames) - _MAX_FIRST_FRAMES - _MAX_LAST_FRAMES
    for i, (frame, lineno) in enumerate(frames):
        if left_out > 0 and _MAX_FIRST_FRAMES <= i < _MAX_FIRST_FRAMES + left_out:
            if i == _MAX_FIRST_FRAMES:
                parts.append(f"  ... ({left_out} calls are left out)")
            continue
        parts += _format_frame(frame, lineno)
    parts.append(_format_message(exc))
    for i, part in enumerate(getattr(exc, "exceptions", None) or ()):  # of an exception group
        if isinstance(part, BaseException) and id(part) not in seen and len(seen) < _MAX_EXCEPTIONS:
            parts.append(f"\nPart {i + 1} of the above exception:\n")
            parts += _format_chain(part, None, seen=seen)
    return parts


def _format_message(exc: BaseException) -> str:
    try:
        text = "".join(traceback.format_exception_only(type(exc), exc)).rstrip("\n")
    except Exception as text_exc:  # any class may have a broken text
        text = f"{type(exc).__name__}: <no text: {type(text_exc).__name__}>"
    return shorten(text, _MAX_MESSAGE_LEN)


def _format_frame(frame: types.FrameType, lineno: int) -> list[str]:
    """:return: lines: the place, the source line, and the local variables"""
    filename = frame.f_code.co_filename
    parts = [f'  File "{filename}", line {lineno}, in {frame.f_code.co_name}']
    line = linecache.getline(filename, lineno, frame.f_globals).strip()
    if line:
        parts.append(f"    line: {shorten(line, _MAX_VALUE_LEN)}")
    parts.extend(_format_locals(frame))
    return parts


def _format_locals(frame: types.FrameType) -> list[str]:
    names = frame.f_locals
    if names is frame.f_globals:  # module level: everything that is imported, of little use
        return []
    lines = ["    locals:"]
    size = 0
    hidden = hidden_locals(names)
    for i, (name, value) in enumerate(list(names.items())):
        if i >= _MAX_LOCALS_PER_FRAME or size > _MAX_FRAME_LEN:
            lines.append(f"      ... ({len(names) - i} more)")
            break
        shown = HIDDEN if name in hidden else safe_repr(value, limit=_MAX_VALUE_LEN)
        text = shown.replace("\n", "\n        ")
        size += len(text)
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
