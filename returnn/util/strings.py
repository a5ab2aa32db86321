"""
Texts: bools, numbers, transcriptions, shell-like variables.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable, Iterable, Sequence
from typing import Any

__all__ = [
    "to_bool",
    "str_is_number",
    "unicode_to_str",
    "as_str",
    "parse_orthography",
    "parse_orthography_into_symbols",
    "eval_shell_env",
    "eval_shell_str",
    "get_checkpoint_filepattern",
]

_WHITE_SPACE_RE = re.compile(r"\s")


def to_bool(v: Any) -> bool:
    """
    :param v: anything that int() takes (also 0.5, which is 0), or true/yes/on, false/no/off in any case
    :raises ValueError: another text
    :raises TypeError: another type
    """
    try:
        return bool(int(v))
    except ValueError:
        pass
    if isinstance(v, (str, bytes)):
        text = unicode_to_str(v).lower() if isinstance(v, bytes) else v.lower()
        if text in ("true", "yes", "on", "1"):
            return True
        if text in ("false", "no", "off", "0"):
            return False
    raise ValueError(f"expected a bool (true, yes, on, 1, false, no, off, 0), got {v!r}")


def str_is_number(s: str) -> bool:
    """:return: whether float() takes it"""
    try:
        float(s)
    except ValueError:
        return False
    return True


def unicode_to_str(s: str | bytes) -> str:
    """:return: bytes decoded as UTF-8"""
    if isinstance(s, bytes):
        return s.decode("utf8")
    if not isinstance(s, str):
        raise AssertionError(f"expected str or bytes, got {s!r} ({type(s).__name__})")
    return s


def as_str(s: str | bytes) -> str:
    """:return: bytes decoded as UTF-8"""
    if not isinstance(s, (str, bytes)):
        raise TypeError(f"expected str or bytes, got {s!r} ({type(s).__name__})")
    return unicode_to_str(s)


def parse_orthography_into_symbols(
    orthography: str,
    upper_case_special: bool = True,
    word_based: bool = False,
    square_brackets_for_specials: bool = True,
) -> list[str]:
    """
    Split a transcription into characters or words.

    :param orthography: e.g. "hello [HESITATION] there "
    :param upper_case_special: upper-case the specials
    :param word_based: split at each white space character (empty words are kept), instead of into characters
    :param square_brackets_for_specials: ``[...]`` (nesting allowed, an unclosed one goes to the end) is one symbol;
        with words, what follows without white space belongs to it
    :return: e.g. ["h", "e", "l", "l", "o", " ", "[HESITATION]", " ", ...]
    """
    if "[" not in orthography or not square_brackets_for_specials:
        if not word_based:
            return list(orthography)
        words = _WHITE_SPACE_RE.split(orthography)
        return words if words[0] else words[1:]
    symbols: list[str] = []
    depth = 0
    for char in orthography:
        if depth:
            depth += {"[": 1, "]": -1}.get(char, 0)
            symbols[-1] += char.upper() if upper_case_special else char
        elif char == "[":
            depth = 1
            if symbols and not symbols[-1]:  # the word that the white space before began
                symbols[-1] = char
            else:
                symbols.append(char)
        elif not word_based:
            symbols.append(char)
        elif char.isspace():
            symbols.append("")
        elif symbols:
            symbols[-1] += char
        else:
            symbols.append(char)
    return symbols


def parse_orthography(
    orthography: str,
    prefix: Iterable[str] = (),
    postfix: Iterable[str] = ("[END]",),
    remove_chars: str = "(){}",
    collapse_spaces: bool = True,
    final_strip: bool = True,
    **kwargs: Any,
) -> list[str]:
    """
    Normalise a transcription and split it into symbols.

    :param orthography: e.g. "hello [HESITATION] there "
    :param prefix: symbols put before
    :param postfix: symbols put after
    :param remove_chars: these characters are removed
    :param collapse_spaces: each run of white space becomes one blank
    :param final_strip: remove white space at both ends
    :param kwargs: for :func:`parse_orthography_into_symbols`
    """
    for char in remove_chars:
        orthography = orthography.replace(char, "")
    if collapse_spaces:
        orthography = " ".join(orthography.split())
    if final_strip:
        orthography = orthography.strip()
    symbols = parse_orthography_into_symbols(orthography, **kwargs) if orthography else []
    return [*prefix, *symbols, *postfix]


def eval_shell_env(token: str) -> str:
    """:return: for ``$VAR`` the value of the environment variable (unset: empty), else the text itself"""
    return os.environ.get(token[1:], "") if token.startswith("$") else token


ShellStr = str | Sequence[Any] | Callable[[], Any]


def eval_shell_str(s: ShellStr) -> list[str]:
    """
    :param s: text, split as a shell does; or a list of texts, which are not split; or a function that gives either
    :return: tokens, with ``$VAR`` tokens replaced by the environment variable, which is split too
    """
    value = s() if callable(s) else s
    tokens: list[Any] = shlex.split(value) if isinstance(value, str) else list(value)
    result: list[str] = []
    for token in tokens:
        if callable(token):
            inner = token()
            result.extend([inner] if isinstance(inner, str) else eval_shell_str(inner))
        elif token.startswith("$"):
            result.extend(eval_shell_str(eval_shell_env(token)))
        elif token:
            result.append(token)
    return result


def get_checkpoint_filepattern(filepath: str) -> str:
    """
    :param filepath: file of a checkpoint, e.g. "net.020.pt"
    :return: without one trailing ``.meta``, ``.index`` or ``.pt``
    """
    for ext in (".meta", ".index", ".pt"):
        if filepath.endswith(ext):
            return filepath[: -len(ext)]
    return filepath
