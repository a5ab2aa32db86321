"""
The terminal: size, progress bar, questions.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any, TextIO

from returnn._state import state
from returnn.errors import ConfigError
from returnn.util.time_format import hms

__all__ = ["is_tty", "terminal_size", "progress_bar", "progress_bar_with_time", "confirm"]


def is_tty(file: TextIO | None = None) -> bool:
    """:return: whether the stream (default is standard output) is a terminal"""
    return terminal_size(file)[0] > 0


def terminal_size(file: TextIO | None = None) -> tuple[int, int]:
    """:return: columns and lines of the terminal; (-1, -1) if the stream is none"""
    file = file if file is not None else sys.stdout
    try:
        if not file.isatty():
            return -1, -1
        size = os.get_terminal_size(file.fileno())
    except (AttributeError, OSError, ValueError):
        return -1, -1
    return size.columns, size.lines


def progress_bar(complete: float = 1.0, prefix: str = "", suffix: str = "", file: TextIO | None = None) -> None:
    """
    Draw a bar over the current line of a terminal; nothing elsewhere.

    :param complete: 0 to 1. At 1, the line is cleared
    :param prefix: before the bar
    :param suffix: after the bar
    :param file: default is standard output
    """
    file = file if file is not None else sys.stdout
    columns, _ = terminal_size(file)
    if columns <= 0:
        return
    if complete >= 1.0:
        file.write("\r" + " " * (columns - 1) + "\r")
        file.flush()
        return
    progress = f"{complete * 100:.02f}%"
    prefix = prefix + " " if prefix else ""
    suffix = " " + suffix if suffix else ""
    width = columns - len(prefix) - len(progress) - len(suffix) - 6
    bars = "|" * int(complete * max(width, 0))
    text = f"{prefix}[{bars}{' ' * (max(width, 0) - len(bars))}] {progress}{suffix}"
    file.write("\r" + text[: columns - 1])
    file.flush()


def progress_bar_with_time(complete: float = 1.0, prefix: str = "", **kwargs: Any) -> None:
    """
    As :func:`progress_bar`, with the remaining time, estimated from the calls with this prefix since complete was lowest.

    :param complete: 0 to 1
    :param prefix: identifies the bar
    :param kwargs: for progress_bar
    """
    if not is_tty(kwargs.get("file")):
        return
    starts = state.progress_bar_starts
    now = time.time()
    if prefix not in starts or complete <= starts[prefix][1]:
        starts[prefix] = (now, complete)
    start_time, start_complete = starts[prefix]
    if complete >= 1.0:
        starts.pop(prefix, None)
    suffix = ""
    if complete > start_complete:
        suffix = hms(int((now - start_time) / (complete - start_complete) * (1.0 - complete)))
    progress_bar(complete, prefix=prefix, suffix=suffix, **kwargs)


def confirm(txt: str, exit_on_false: bool = False) -> bool:
    """
    Ask the user until the answer is yes or no.

    :param txt: question
    :param exit_on_false: end the process with code 1 on no
    :raises ConfigError: nobody can answer: the end of the input is reached
    """
    while True:
        try:
            answer = input(f"{txt} Confirm? [yes/no]").strip().lower()
        except EOFError as exc:
            raise ConfigError(
                f"No answer to the question {txt!r}, because standard input has ended, so nothing is done."
                " Run it in a terminal, or give the answer through a pipe: echo yes | ..."
            ) from exc
        if answer in ("y", "yes"):
            return True
        if answer in ("n", "no"):
            if exit_on_false:
                sys.exit(1)
            return False
