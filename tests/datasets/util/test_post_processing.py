"""The function behind orth_post_process and targets_post_process."""

from __future__ import annotations

import pickle
from typing import Any

import pytest

from returnn.datasets.util.post_processing import get_post_processor_function
from returnn.errors import DatasetOptionError


def _shout(text: str) -> str:
    return text + "!"


@pytest.mark.parametrize(
    ("opts", "text", "expected"),
    [
        (None, " A ", " A "),
        ("", " A ", " A "),
        ([], " A ", " A "),
        (_shout, "a", "a!"),
        (str.upper, "a", "A"),
        ("lowercase", "AB", "ab"),
        ("get_remove_chars(',/')", "a,/b", "a b"),
        ("get_replace(old='a', new='b')", "aa", "bb"),
        ("lowercase,collapse_whitespace", " A  B ", "a b"),
        ("(lowercase, get_replace('a','(,'))", "A", "(,"),
        (["lowercase", "get_remove_chars(',.')", _shout], "A,b", "a b!"),
        (("lowercase", None, [_shout, _shout]), "A", "a!!"),
    ],
)
def test_forms(opts: Any, text: str, expected: str) -> None:
    function = get_post_processor_function(opts)
    assert function(text) == expected
    assert pickle.loads(pickle.dumps(function))(text) == expected


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        ("lowercas", "did you mean 'lowercase'"),
        ("get_remove_chars", "needs arguments"),
        ("get_remove_chars(1)", "must be strings"),
        ("get_remove_chars('a', 'b')", "arguments of get_remove_chars"),
        ("get_replace(**{'old': 'a', 'new': 'b'})", "arguments of get_replace"),
        ("lowercase()", "takes no arguments"),
        ("lowercase(", "syntax error"),
        ("lowercase, 3", "expected names"),
        (17, "expected the name of a text cleaner"),
        ({"a": "b"}, "expected the name of a text cleaner"),
        (len, "does not seem as a valid function str->str"),
    ],
)
def test_mistakes(opts: Any, match: str) -> None:
    with pytest.raises(DatasetOptionError, match=match) as info:
        get_post_processor_function(opts)
    assert isinstance(info.value, AssertionError)


@pytest.mark.parametrize(
    "opts",
    [
        "__import__('os').system('touch {path}')",
        "get_remove_chars(open('{path}', 'w'))",
        "lowercase, (lambda t: open('{path}', 'w'))",
        "[f for f in [open('{path}', 'w')]]",
    ],
)
def test_runs_no_code(opts: str, tmp_path: Any) -> None:
    path = tmp_path / "made"
    with pytest.raises(DatasetOptionError):
        get_post_processor_function(opts.format(path=path))
    assert not path.exists()
