"""
Reading of config files in their three forms: Python, json, and old lines of key and value.
"""

from __future__ import annotations

import dis
import importlib
import json
import os
import sys
import traceback
import types
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any, TextIO

from returnn.errors import ConfigFileError, ReturnnError
from returnn.util.json_comments import json_remove_comments

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = [
    "CONFIG_MODULE_NAME",
    "read_source",
    "file_type",
    "is_in_package",
    "execute_python",
    "import_from_package",
    "module_level_names",
    "parse_json",
    "parse_lines",
]

#: ``__name__`` of a directly executed config, and the proxy module of that name
CONFIG_MODULE_NAME = "__returnn_config__"


def read_source(f: str | TextIO) -> tuple[str, str]:
    """
    :param f: file name, or text stream
    :return: file name (a placeholder for streams), text without white space at both ends; but the empty lines before it
        stay, so that messages count lines as the file does
    :raises ConfigFileError: no such file, or not readable as UTF-8
    """
    if not isinstance(f, str):
        return "<config string>", _without_outer_space(f.read())
    if not os.path.isfile(f):
        what = "is a folder, no config file" if os.path.isdir(f) else "not found"
        raise ConfigFileError(f"config file {what}: {f!r} (current folder: {os.getcwd()}). Check the path.")
    try:
        with open(f, encoding="utf-8-sig") as stream:  # some editors put a mark at the start
            return f, _without_outer_space(stream.read())
    except (OSError, UnicodeDecodeError) as exc:
        raise ConfigFileError(f"Cannot read config file {f!r}: {exc}.") from exc


def _without_outer_space(text: str) -> str:
    body = text.lstrip()
    return "\n" * text[: len(text) - len(body)].count("\n") + body.rstrip()


def file_type(content: str, filename: str = "") -> str:
    """:return: "py" (shebang, or name ends with ``.py``), "js" (starts with a brace) or "txt" (lines)"""
    content = content.lstrip()
    if content.startswith("#!") or filename.endswith(".py"):
        return "py"
    return "js" if content.startswith("{") else "txt"


def execute_python(content: str, filename: str, namespace: dict[str, Any], config: Config) -> types.CodeType:
    """
    Run a config in the namespace, which is globals and locals at once.

    :param content: source text
    :param filename: for tracebacks, and ``__file__`` of the config
    :param namespace: ``Config.typed_dict``
    :param config: visible as ``config`` while loading
    :return: the compiled code
    :raises ConfigFileError: syntax error, or an exception of the config's code; with file and line
    """
    try:
        code = compile(content + "\n", filename, "exec", dont_inherit=True)
    except (SyntaxError, ValueError) as exc:
        line = getattr(exc, "lineno", None)
        source = (getattr(exc, "text", None) or "").strip()
        raise ConfigFileError(
            f"Config file {filename}{f', line {line}' if line else ''}: {type(exc).__name__}: {getattr(exc, 'msg', exc)}"
            + (f": {source!r}" if source else "")
            + "."
        ) from exc
    namespace.update(config=config, __file__=filename, __name__=CONFIG_MODULE_NAME, __package__="returnn")
    with _described_errors(filename):
        exec(code, namespace)
    return code


def import_from_package(filename: str) -> dict[str, Any]:
    """
    Import a config which is a module of a package (its folder has an ``__init__.py``).

    :param filename: ends with ``.py``
    :return: the names of the module
    :raises ConfigFileError: an exception of the code; with file and line
    """
    root, name = os.path.split(os.path.abspath(filename))
    parts = [name[: -len(".py")]]
    while os.path.exists(os.path.join(root, "__init__.py")):
        root, package = os.path.split(root)
        parts.insert(0, package)
    if root not in sys.path:
        sys.path.insert(0, root)
    with _described_errors(filename):
        return vars(importlib.import_module(".".join(parts)))


def is_in_package(filename: str) -> bool:
    """:return: whether the config is a module of a package"""
    folder = os.path.dirname(os.path.abspath(filename))
    return filename.endswith(".py") and os.path.exists(os.path.join(folder, "__init__.py"))


class _described_errors:
    """Context manager: words an exception of the config's code with file and line. Exits and own errors pass."""

    def __init__(self, filename: str) -> None:
        self.filename = filename

    def __enter__(self) -> None:
        pass

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: types.TracebackType | None
    ) -> None:
        if not isinstance(exc, Exception) or isinstance(exc, ReturnnError):
            return
        frames = traceback.extract_tb(tb)
        own = [frame for frame in frames if _same_path(frame.filename, self.filename)]
        line = f", line {own[-1].lineno} ({own[-1].line!r})" if own else ""
        text = f"{type(exc).__name__}: {exc}" if str(exc) else type(exc).__name__
        last = frames[-1] if frames else None
        origin = ""
        if last is not None and (not own or not _same_path(last.filename, self.filename)):
            origin = f", raised in {last.filename}, line {last.lineno}, in {last.name}"
        raise ConfigFileError(f"Config file {self.filename}{line}: {text}{origin}.") from exc


def _same_path(a: str, b: str) -> bool:
    return a == b or os.path.abspath(a) == os.path.abspath(b)


def module_level_names(filename: str) -> tuple[set[str], set[str], bool]:
    """
    :param filename: config file
    :return: names that the code at module level of a directly executed Python config assigns; names that it (or any of
        its functions) reads; whether it may read anything, because it uses the namespace as a whole.
        For other files there is nothing to read: they never run again with another result
    """
    filename, content = read_source(filename)
    if file_type(content, filename) != "py" or is_in_package(filename):
        return set(), set(), False
    codes = [compile(content + "\n", filename, "exec", dont_inherit=True)]
    stored: set[str] = set()
    loaded: set[str] = set()
    for instruction in dis.get_instructions(codes[0]):
        if instruction.opname in ("STORE_NAME", "STORE_GLOBAL"):
            stored.add(instruction.argval)
    while codes:
        code = codes.pop()
        loaded.update(code.co_names)
        codes.extend(const for const in code.co_consts if isinstance(const, types.CodeType))
    return stored, loaded, bool(loaded & {"typed_dict", "globals", "vars", "eval", "exec", "get_global_config"})


def parse_json(content: str, filename: str) -> dict[str, Any]:
    """
    :param content: json object; may have ``//`` and ``/* */`` comments
    :param filename: for the error text
    :raises ConfigFileError: invalid, or not an object
    """
    try:
        values = json.loads(json_remove_comments(content, strip_space=False))
    except (ValueError, RecursionError) as exc:
        raise ConfigFileError(
            f"Config file {filename}: not valid json: {exc}. If this is a Python config, the first line must be '#!rnn.py'."
        ) from exc
    if not isinstance(values, dict):
        raise ConfigFileError(f"Config file {filename}: expected a json object, got {type(values).__name__}.")
    return values


def parse_lines(content: str, filename: str) -> Iterator[tuple[str, str]]:
    """
    :param content: lines "key value"; ``#`` starts a comment
    :param filename: for the error text
    :return: keys and values
    :raises ConfigFileError: line without value
    """
    for line_idx, line in enumerate(content.splitlines()):
        parts = line.partition("#")[0].strip().split(None, 1)
        if not parts:
            continue
        if len(parts) == 1 or parts[1].startswith("="):
            raise ConfigFileError(
                f"Config file {filename}, line {line_idx + 1}: expected a key and a value, got {line.strip()!r}."
                " If this is a Python config, the first line must be '#!rnn.py' (maybe you forgot '#!')."
            )
        yield parts[0], parts[1].strip()
