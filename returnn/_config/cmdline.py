"""
The syntax of command-line options, and of the values given there.
"""

from __future__ import annotations

import ast
import dataclasses
import operator
import re
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from returnn.__setup__ import get_version_str
from returnn.errors import ConfigError
from returnn.util.literal import LiteralError, parse_literal
from returnn.util.strings import to_bool

__all__ = ["ParsedCommandLine", "SHORT_OPTIONS", "parse_command_line", "parse_override"]

#: short form -> config key
SHORT_OPTIONS = {
    "b": "batch_size",
    "c": "chunking",
    "e": "epoch",
    "i": "save_interval",
    "l": "log",
    "L": "load",
    "n": "num_epochs",
    "r": "learning_rate",
    "u": "device",
    "v": "log_verbosity",
    "x": "task",
    "z": "max_seqs",
}
# Long names of the peers which are not the key itself.
_LONG_ALIASES = {"verbose": "log_verbosity", "max_sequences": "max_seqs"}
_KEY_RE = re.compile(r"[A-Za-z_][\w.:/-]*\Z")
_NEGATIVE_NUMBER_RE = re.compile(r"-(\d|\.\d|inf\b)")

_USAGE = """\
usage: rnn.py <config> [<config> ...] [++key value ...] [--key value ...]

  ++key value, --key value   set a config option (parsed as Python literal where the config file has a non-str value;
                             negative numbers: ++key +-0.1)
  --config FILE              load a further config file, after the others
  -h, --help                 this text
  -V, --version              version
  short forms: """ + ", ".join(f"-{short} {key}" for short, key in SHORT_OPTIONS.items())


@dataclasses.dataclass(frozen=True)
class ParsedCommandLine:
    """What the options say, in order."""

    config_files: list[str]
    overrides: list[tuple[str, str]]


def _fail(message: str) -> NoReturn:
    print(f"rnn.py: error: {message}", file=sys.stderr)
    raise SystemExit(2)


def parse_command_line(args: Sequence[str]) -> ParsedCommandLine:
    """
    :param args: options as ``++key value``, ``--key value``, ``--key=value``, ``-b 100``, ``--config file``
    :raises SystemExit: 0 for ``--help`` and ``--version``; 2 for a malformed ``-`` or ``--`` option, after a sentence on stderr
    :raises ConfigError: ``++key`` without value, or an argument which is no option
    """
    config_files: list[str] = []
    overrides: list[tuple[str, str]] = []
    args = list(args)
    pos = 0
    while pos < len(args):
        arg = args[pos]
        pos += 1
        following = args[pos] if pos < len(args) else None
        if arg in ("-h", "--help"):
            print(_USAGE)
            raise SystemExit(0)
        if arg in ("-V", "--version"):
            print(f"RETURNN, version {get_version_str(long=True)}")
            raise SystemExit(0)
        if arg.startswith("++"):
            overrides.append((_checked_key(arg), _plus_value(arg, following)))
            pos += 1
        elif arg.startswith("-"):
            key, value = _dash_option(arg)
            if value is None:
                value = _dash_value(arg, following)
                pos += 1
            if key == "config":
                config_files.append(value)
            else:
                overrides.append((key, value))
        else:
            raise ConfigError(
                f"Command line: expected an option as '++key value', got {arg!r}."
                " Config files come first; each option has one value (quote values with blanks)."
            )
    return ParsedCommandLine(config_files, overrides)


def _checked_key(arg: str) -> str:
    key = arg[2:]
    if not _KEY_RE.match(key):
        raise ConfigError(f"Command line: {arg!r} is not an option name. Write e.g. '++batch_size 1000'.")
    if key == "config":  # the name of the Config object itself
        raise ConfigError(
            "Command line: '++config' is no option. To load a further config file, write '--config FILE'."
        )
    return key


def _plus_value(arg: str, value: str | None) -> str:
    if value is None:
        raise ConfigError(f"Command line: {arg!r} has no value. Write '{arg} value'.")
    if value.startswith("-"):
        # Same as the peers, for which this is another option.
        _fail(f"the value of {arg} starts with '-'; write {arg} +{value}")
    if value.startswith("+-"):
        return value[1:]
    return value


def _dash_option(arg: str) -> tuple[str, str | None]:
    """:return: key, value if it is part of the argument"""
    if arg.startswith("--"):
        key, equals, value = arg[2:].partition("=")
        if not _KEY_RE.match(key):
            _fail(f"no such option: {arg}")
        return _LONG_ALIASES.get(key, key), value if equals else None
    short = arg[1:2]
    if short not in SHORT_OPTIONS:
        _fail(f"no such option: {arg}; known are {', '.join('-' + name for name in SHORT_OPTIONS)}, ++key value")
    return SHORT_OPTIONS[short], arg[2:] or None


def _dash_value(arg: str, value: str | None) -> str:
    if value is None or (value.startswith(("-", "++")) and not _NEGATIVE_NUMBER_RE.match(value)):
        _fail(f"option {arg} needs a value")
    return value[1:] if value.startswith("+-") else value


def parse_override(text: str, old: Any) -> tuple[bool, Any]:
    """
    Value of a command-line text: a Python literal, a formula of numbers, or a word for a bool. Nothing is executed.

    :param text: from the command line
    :param old: the value that it replaces; ``...`` if there is none. Only decides about words such as "on" and "no",
        which mean a bool where a bool (or None) was
    :return: whether it is any of these, and the value (else the text). Any: depends on the text
    """
    stripped = text.strip()
    try:
        return True, parse_literal(stripped)
    except LiteralError:
        pass
    try:
        return True, _formula(ast.parse(stripped, mode="eval").body)
    except (SyntaxError, ValueError, TypeError, ArithmeticError, RecursionError, MemoryError):
        pass
    if stripped.lower() in ("true", "false") or isinstance(old, bool) or old is None:
        try:
            return True, to_bool(stripped)
        except ValueError:
            pass
    return False, text


_OPERATORS: dict[type[ast.operator], Callable[[Any, Any], Any]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
    ast.Pow: operator.pow,
}


def _formula(node: ast.expr) -> int | float:
    """:return: value of e.g. ``10 * 1000`` or ``2 ** 10``, as job scripts write them; ValueError for anything else"""
    if isinstance(node, ast.Constant) and isinstance(node.value, (int, float)) and not isinstance(node.value, bool):
        return node.value
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, (ast.USub, ast.UAdd)):
        value = _formula(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if isinstance(node, ast.BinOp) and type(node.op) in _OPERATORS:
        left, right = _formula(node.left), _formula(node.right)
        if isinstance(node.op, ast.Pow) and abs(right) > 1000:
            raise ValueError("exponent too large")
        result: int | float = _OPERATORS[type(node.op)](left, right)
        return result
    raise ValueError("not a formula of numbers")
