"""
The values of secrets that an exception passed by, so that its report shows them nowhere: not in its text either.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Collection, Mapping
from itertools import islice
from types import TracebackType
from typing import Any

from returnn.util.secret_names import HIDDEN, hidden_args, hidden_locals, hides, is_secret_name, mask_text

__all__ = ["find_secrets", "hide"]

# Shorter texts may be anything.
_MIN_LEN = 6
# Under a name such as "token", which is often a word: those which look like no word.
_MIN_WEAK_LEN = 12
_MAX_LEN = 10_000
_MAX_FRAMES = 300
_MAX_NAMES = 2000
_MAX_DEPTH = 3


def find_secrets(exc: BaseException) -> frozenset[str]:
    """
    :param exc: with its traceback and causes
    :return: texts under names of secrets in the local and global variables of its frames, in dicts and objects there, in
        the environment, and on the command line
    """
    found: set[str] = set()
    _collect(os.environ, found, 0)
    found.update(text for i in hidden_args(sys.argv) if len(text := sys.argv[i]) >= _MIN_LEN)
    seen: set[int] = set()
    todo: list[BaseException | None] = [exc]
    while todo:
        current = todo.pop()
        if current is None or id(current) in seen:
            continue
        seen.add(id(current))
        todo += [current.__cause__, current.__context__]
        _collect_frames(current.__traceback__, found, seen)
    return frozenset(found)


def _collect_frames(tb: TracebackType | None, found: set[str], seen: set[int]) -> None:
    num = 0
    while tb is not None and num < _MAX_FRAMES:
        num += 1
        names = tb.tb_frame.f_locals
        _collect(names, found, 0)
        if names is not tb.tb_frame.f_globals:
            values = (names[name] for name in hidden_locals(names) if not hides(name, names[name]))
            found.update(value for value in values if isinstance(value, str) and _MIN_LEN <= len(value) <= _MAX_LEN)
        if id(tb.tb_frame.f_globals) not in seen:
            seen.add(id(tb.tb_frame.f_globals))
            _collect(tb.tb_frame.f_globals, found, _MAX_DEPTH - 2)
        tb = tb.tb_next


def _collect(values: Mapping[Any, Any], found: set[str], depth: int) -> None:
    """Any: variables."""
    try:
        items = list(islice(values.items(), _MAX_NAMES))
    except Exception:  # another thread changes it, or it is a class of the user
        return
    for name, value in items:
        if isinstance(value, (str, bytes)):
            text = value if isinstance(value, str) else value.decode("latin1") if len(value) <= _MAX_LEN else ""
            if _MIN_LEN <= len(text) <= _MAX_LEN and hides(name, value) and _is_sure(str(name), text):
                found.add(text)
        elif depth < _MAX_DEPTH and type(value) is dict:
            _collect(value, found, depth + 1)
        elif depth < 1 and name == "self" and type(getattr(value, "__dict__", None)) is dict:
            _collect(value.__dict__, found, depth + 1)


def _is_sure(name: str, text: str) -> bool:
    if text.startswith(("/", "~", ".")) and "\0" not in text and os.path.exists(os.path.expanduser(text)):
        return False  # where the secret is; the path may be part of many texts
    if is_secret_name(name):
        return not text.isspace()
    return len(text) >= _MIN_WEAK_LEN and " " not in text and any(char.isdigit() for char in text)


def hide(text: str, secrets: Collection[str] = ()) -> str:
    """
    :param text: report of an error
    :param secrets: of :func:`find_secrets`
    :return: without these values, and masked as by mask_text
    """
    for secret in sorted(secrets, key=len, reverse=True):
        for shown in {secret, repr(secret)[1:-1]}:
            if shown in text:
                text = text.replace(shown, HIDDEN)
    return mask_text(text)
