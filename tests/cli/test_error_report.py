"""The text of an uncaught exception."""

from __future__ import annotations

import dataclasses
import pickle
import sys
from typing import Any

import pytest

from returnn.cli.error_report import sentence, short_report
from returnn.datasets._loading.remote_error import RemoteError
from returnn.errors import ConfigError, DatasetError, MissingOptionError


def raised(code: str, filename: str, **names: Any) -> BaseException:
    """:return: what that code raises, with traceback"""
    try:
        exec(compile(code, filename, "exec"), names)
    except Exception as exc:
        return exc
    raise AssertionError("nothing was raised")


def test_sentence() -> None:
    assert sentence(ConfigError("x is wrong.")) == "ConfigError: x is wrong."
    assert (
        sentence(MissingOptionError("x", needed_for="y"))
        == 'MissingOptionError: option "x" is not set, but needed for y.'
    )
    assert sentence(ValueError("abc")) == "ValueError: abc"


def test_mistake_of_the_user_shows_only_its_place_and_the_sentence() -> None:
    exc = raised("def f():\n    raise error\nf()\n", "/some/where/my.config", error=ConfigError("x is wrong."))
    assert short_report(exc) == '  File "/some/where/my.config", line 2, in f\nConfigError: x is wrong.\n'


def test_other_exceptions_show_the_users_frames() -> None:
    exc = raised("def f():\n    import json\n    json.loads('{')\nf()\n", "/some/where/my.config")
    text = short_report(exc)
    assert text.startswith("Traceback (most recent call last):\n")
    assert 'File "/some/where/my.config", line 3, in f' in text
    assert "json/decoder.py" in text
    assert text.splitlines()[-1].startswith("json.decoder.JSONDecodeError: ")


def test_cause_is_shown() -> None:
    exc = raised(
        "try:\n    1 / 0\nexcept ZeroDivisionError as e:\n    raise RuntimeError('outer') from e\n",
        "/some/where/my.config",
    )
    text = short_report(exc)
    assert "ZeroDivisionError: division by zero" in text
    assert text.index("ZeroDivisionError") < text.index("direct cause") < text.index("RuntimeError: outer")


def test_without_frames_of_the_user_the_whole_traceback_is_shown() -> None:
    text = short_report(ValueError("abc"))
    assert text == "ValueError: abc\n"


@pytest.mark.skipif(sys.version_info < (3, 11), reason="exceptions have no notes")
def test_notes_come_before_the_sentence() -> None:
    exc = raised("def f():\n    raise error\nf()\n", "/some/where/my.config", error=ValueError("abc"))
    exc.add_note("in epoch 1,\nsequences a, b")
    exc.add_note("second")
    assert sentence(exc) == "ValueError: abc"
    assert short_report(exc).endswith("  in epoch 1,\n  sequences a, b\n  second\nValueError: abc\n")
    user_error = raised("raise error\n", "/some/where/my.config", error=ConfigError("x is wrong."))
    user_error.add_note("in epoch 1")
    assert short_report(user_error).endswith("  in epoch 1\nConfigError: x is wrong.\n")
    without_frames = ValueError("abc")
    without_frames.add_note("note")
    assert short_report(without_frames) == "  note\nValueError: abc\n"


def test_error_of_a_worker_shows_the_place_in_the_code_of_the_user() -> None:
    code = "def f():\n    raise error\nf()\n"
    for error, start in (
        (ValueError("abc"), "WorkerError: ValueError: abc (In "),
        (DatasetError("abc"), "DatasetError: abc"),
    ):
        remote = RemoteError.from_exception(raised(code, "/some/where/my.config", error=error), where="dataset 'train'")
        lines = short_report(pickle.loads(pickle.dumps(remote)).to_exception()).splitlines()
        assert lines[0] == "Traceback of the worker (most recent call last):"
        assert lines[-2] == '  File "/some/where/my.config", line 2, in f'
        assert lines[-1].startswith(start)


def test_error_of_a_worker_outside_of_the_code_of_the_user() -> None:
    code = "raise error"
    place = '  File "<string>", line 1, in <module>\n'
    for error, shown in ((ValueError("abc"), True), (DatasetError("abc"), False)):
        remote = RemoteError.from_exception(raised(code, "<string>", error=error), where="x")
        remote = dataclasses.replace(remote, frames=remote.frames[1:])  # without that of this file
        assert (place in short_report(remote.to_exception())) == shown
