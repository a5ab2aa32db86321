"""
Json with comments.
"""

from __future__ import annotations

import json
import re
from typing import Any

__all__ = ["json_remove_comments", "load_json"]

_TOKEN_RE = re.compile(r'("(?:[^"\\]|\\.)*")|(//[^\n]*)|(/\*.*?\*/)|(\s+)', re.DOTALL)


def json_remove_comments(string: str, strip_space: bool = True) -> str:
    """
    :param string: json with ``//`` and ``/* */`` comments
    :param strip_space: remove also the white space outside of strings
    :return: plain json
    """

    def _replace(match: re.Match[str]) -> str:
        if match[1] is not None:
            return match[1]
        if strip_space:
            return ""
        # Keep the lines, so that error positions stay right.
        return match[4] if match[4] is not None else re.sub(r"[^\n]", " ", match[0])

    return _TOKEN_RE.sub(_replace, string)


def load_json(filename: str | None = None, content: str | None = None) -> Any:
    """
    :param filename: json file with comments. Either this
    :param content: or the text
    :return: the value; Any: depends on the data
    :raises ValueError: invalid json
    """
    if content is None:
        if filename is None:
            raise TypeError("load_json: expected filename or content")
        with open(filename, encoding="utf-8-sig") as f:
            content = f.read()
    try:
        return json.loads(json_remove_comments(content, strip_space=False))
    except (ValueError, RecursionError) as exc:
        raise ValueError(f"Not valid json (in {filename or 'the given text'}): {exc}.") from exc
