"""Values that are secret where an exception passed are nowhere in its report."""

from __future__ import annotations

import builtins
import sys
import traceback
from pathlib import Path
from typing import Any

import pytest

from returnn.datasets._loading.remote_error import RemoteError
from returnn.errors import DatasetError
from returnn.util import better_exchook
from returnn.util.better_exchook import format_exception_with_locals
from returnn.util.secret_values import find_secrets, hide


def _raised(code: str, **names: Any) -> BaseException:
    """:return: what that code raises. Any: global names of the code"""
    try:
        exec(compile(code, "my.config", "exec"), names)
    except Exception as exc:
        return exc
    raise AssertionError("nothing was raised")


_CODE = """
class Client:
    def __init__(self):
        self.secret = "attr-Secret-1"
    def go(self, token):
        password = "local-Secret-2"
        for key, value in {"db_password": "loop-Secret-3"}.items():
            pass
        opts = {"a": {"api_key": "dict-Secret-4"}}
        host = "shown"
        raise error(f"{self.secret} {password} {value} {opts} {token} {other_password}")
other_password = "global-Secret-5"
Client().go("token-Secret-6")
"""


@pytest.mark.parametrize("error", [ValueError, DatasetError])
def test_everywhere(error: type[Exception], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_PASSWORD", "env-Secret-7")
    monkeypatch.setattr(sys, "argv", ["rnn.py", "++password", "argv-Secret-8"])
    exc: Any = _raised(_CODE, error=error, argv=sys.argv)  # add_note is new in Python 3.11
    if sys.version_info >= (3, 11):
        exc.add_note("env-Secret-7 argv-Secret-8")
    assert len(find_secrets(exc)) >= 8
    dump = format_exception_with_locals(exc)
    remote = RemoteError.from_exception(exc, where="x")
    worker = remote.to_exception()
    for text in (
        dump,
        repr(remote),
        str(worker),
        hide(str(exc), find_secrets(exc)),
        format_exception_with_locals(worker),
    ):
        assert "Secret-" not in text.replace("<class", ""), text
        assert "hidden" in text
    assert "host = 'shown'" in dump and "key = 'db_password'" in dump


def test_words_are_no_secrets() -> None:
    exc = _raised("def f():\n    token = 'important'\n    password = 'a'\n    raise ValueError('important a')\nf()")
    assert not {"important", "a"} & find_secrets(exc)
    assert hide(str(exc), find_secrets(exc)) == "important a"


def test_where_a_secret_is_may_be_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MY_CREDENTIALS", str(tmp_path))
    exc = ValueError(f"no file {tmp_path}/x")
    assert hide(str(exc), find_secrets(exc)) == str(exc)


def test_sizes() -> None:
    many = "\n".join(f"    v{i} = 'x' * 10000" for i in range(100))
    text = format_exception_with_locals(_raised(f"def f():\n{many}\n    raise ValueError('y' * 10**7)\nf()"))
    assert len(text) < 30_000 and "more)" in text and "y" * 10001 not in text
    text = format_exception_with_locals(_raised("def f():\n    x = 'x' * 500\n    f()\nf()"))
    assert len(text) < 200_000 and " calls are left out)" in text and "RecursionError" in text.splitlines()[-1]
    for depth in (5, 300):
        exc: BaseException = ValueError("first")
        for i in range(depth):
            new = ValueError("z" * 9000 + str(i))
            new.__cause__, exc = exc, new
        text = format_exception_with_locals(exc)
        assert len(text) < 201_000
    assert "characters are left out" not in format_exception_with_locals(ValueError("a"))


def test_circles_and_groups() -> None:
    first, second = ValueError("first"), KeyError("second")
    first.__context__, second.__context__ = second, first
    assert format_exception_with_locals(first).count("first") == 1
    assert find_secrets(first) is not None
    if sys.version_info >= (3, 11):
        group = builtins.ExceptionGroup(
            "all", [_raised("def f():\n    mine = 5\n    raise ValueError('one')\nf()"), KeyError("two")]
        )  # type: ignore[list-item]
        text = format_exception_with_locals(group)
        assert "mine = 5" in text and "one" in text and "KeyError: 'two'" in text and "Part 2" in text


def test_strange_exceptions() -> None:
    class Strange(Exception):
        def __str__(self) -> str:
            raise RuntimeError("no text")

    assert "Strange" in format_exception_with_locals(Strange())


def test_format_tb(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(traceback, "format_tb", traceback.format_tb)
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    better_exchook.setup_all()
    exc = _raised(_CODE, error=ValueError)
    entries = traceback.format_tb(exc.__traceback__)
    assert len(entries) == 3 and "host = 'shown'" in entries[-1] and entries[-1].endswith("\n")
    assert "local-Secret-2" not in "".join(entries)
    assert len(traceback.format_tb(exc.__traceback__, 1)) == 1
    assert sys.excepthook is better_exchook.better_exchook
