"""Literals: equal to ast.literal_eval, on the fast and on the slow path; extensions; errors with position."""

from __future__ import annotations

import ast
import math
import pickle
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.util import literal
from returnn.util.literal import LiteralError, parse_literal, parse_literal_file
from returnn.util.literal_py_to_pickle import literal_eval, py_to_pickle

_leaves = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text()
    | st.binary()
)
_nested = st.recursive(
    _leaves,
    lambda inner: (
        st.lists(inner)
        | st.tuples(inner, inner)
        | st.dictionaries(st.text() | st.integers(), inner)
        | st.sets(st.integers() | st.text(), min_size=1)
    ),
    max_leaves=20,
)


@pytest.fixture
def always_fast() -> Iterator[None]:
    saved = literal._FAST_PATH_MIN_LEN
    literal._FAST_PATH_MIN_LEN = -1
    try:
        yield
    finally:
        literal._FAST_PATH_MIN_LEN = saved


@given(obj=_nested)
def test_repr_round_trip(obj: Any) -> None:
    assert parse_literal(repr(obj)) == obj


@given(obj=_nested)
def test_repr_round_trip_fast_path(obj: Any) -> None:
    found, value = literal._parse_via_json(repr(obj))
    if found:
        assert value == obj and repr(value) == repr(obj)


# Texts where a careless conversion to json would go wrong.
_TRICKY = [
    *("['a' 'b']", "['''a''']", "[u'a', b'b']", "[r'\\n']", "['a', # c, 'd'\n'b']", "['\\'', \"it's\", '\"', 'it\"s']"),
    *(
        "{'a': 1, 'a': 2}",
        "[1e5, 1E-5, .5, 1., -1, +1, 0x1f, 1_000, 10**2]",
        "['\\ud83d\\ude00', '\\x41', '\\101', '\\U0001f600']",
    ),
    *(
        "['a\\\nb']",
        "{1: 2}",
        "[(1, 2), (3,)]",
        "[true]",
        "[null]",
        "[NaN, Infinity]",
        "['\\/']",
        '["\\/"]',
        "[1,]",
        "['a,]',]",
    ),
    *(
        "[,]",
        "{'a': 1,, }",
        "['a'",
        "[]]",
        "[1 2]",
        "['\t']",
        "[1+2j]",
        "{'a', 'b'}",
        "[3000000000, 1234567890123456789012]",
    ),
    *(
        "[--1]",
        "[None, True, False]",
        "['None', \"True\"]",
        "[1if 1else 2]",
        "[0e0, 0E1, 1e400]",
        "[00]",
        "[01]",
        "['\x0c']",
        "[\x0c1]",
    ),
    *(
        "{'a': {'b': ['c', None]}, 'd': 'e\\\\'}",
        "[e5]",
        "[1e]",
        "[1,\u00a02]",
        "['\u2028']",
        "[1;2]",
        "[*[1]]",
        "{**{}}",
        "[]",
        "{}",
    ),
]


@pytest.mark.filterwarnings("ignore:invalid:DeprecationWarning", "ignore:invalid:SyntaxWarning")
@pytest.mark.parametrize("text", _TRICKY, ids=repr)
def test_same_as_ast(text: str, always_fast: None) -> None:
    try:
        expected = ast.literal_eval(text)
    except (ValueError, SyntaxError):
        if "NaN" in text:
            return  # an extension
        with pytest.raises(LiteralError):
            print(parse_literal(text))
        return
    assert repr(parse_literal(text)) == repr(expected)
    assert repr(parse_literal(text.encode("utf8", "surrogatepass"))) == repr(expected)


def test_large_segment_list_takes_fast_path(monkeypatch: pytest.MonkeyPatch) -> None:
    entries = [
        {
            "text": f'it\'s "{i}"' if i % 3 == 0 else f"text {i}",
            "file": f"/a/b-{i}.ogg",
            "duration": i / 7,
            "speaker": None,
        }
        for i in range(200)
    ]
    text = "[\n" + "".join(f"{entry!r},\n" for entry in entries) + "]\n"
    monkeypatch.delattr(literal, "_Evaluator")
    assert parse_literal(text) == entries
    assert literal_eval(text.encode("utf8")) == entries
    lens = {f"tag-{i}": i for i in range(500)}
    assert parse_literal("{\n" + "".join(f"{k!r}: {v},\n" for k, v in lens.items()) + "}") == lens


def test_values_that_the_peer_got_wrong() -> None:
    for text in (
        "1e-3",
        "0x1f",
        "'a' 'b'",
        "True",
        "(1, 2)",
        "b'x'",
        "u'x'",
        "1234567890123456789012",
        ".5",
        "-3000000000",
    ):
        expected = ast.literal_eval(text)
        assert literal_eval(text) == expected and type(literal_eval(text)) is type(expected)
        assert pickle.loads(py_to_pickle(text.encode())) == expected


def test_extensions() -> None:
    value = parse_literal(
        "{'a': nan, 'b': -inf, 'c': float('nan'), 'd': np.float64(0.5), 'e': numpy.float32(1), 'f': set([1]), 'g': np.int64(3),"
        " 'h': [set(), dict(x=1), frozenset({2})], 'i': np.nan, 'j': E(1, b={'x': nan})}",
        constructors={"E": lambda a, b: ("E", a, list(b))},
    )
    assert math.isnan(value["a"]) and value["b"] == -math.inf and math.isnan(value["c"]) and math.isnan(value["i"])
    assert value["d"] == 0.5 and isinstance(value["e"], numpy.float32) and value["g"] == 3
    assert value["f"] == {1} and value["h"] == [set(), {"x": 1}, frozenset([2])] and value["j"] == ("E", 1, ["x"])


@pytest.mark.parametrize(
    "text,problem",
    [
        ("__import__('os')", "call of __import__"),
        ("[1,\n  open('x')]", "line 2, column 3"),
        ("[1,\n\n f]", "line 3, column 2): unknown name: 'f'"),
        ("\n\n[1, (]", "line 3"),
        ("[x for x in (1,)]", "got an expression"),
        ("(1).real", "unknown name"),
        ("'a'.join(['b'])", "call of an expression"),
        ("{[]: 1}", "unhashable"),
        ("f'{1}'", "got an expression"),
        ("1 + 1", "got an expression"),
        ("-'a'", "got an expression"),
        ("float('x')", "could not convert"),
        ("np.float64(**{})", r"'\*\*' is not allowed"),
        ("", "line 1"),
        ("(" * 1000, "."),
        ("\x00", "."),
    ],
)
def test_errors_have_position(text: str, problem: str) -> None:
    with pytest.raises(
        LiteralError, match=problem.replace(")", r"\)").replace("(", r"\(") if "column 2" in problem else problem
    ):
        parse_literal(text)
    with pytest.raises(ValueError, match="some.file"):
        parse_literal(text, filename="some.file")


def test_file(tmp_path: Path) -> None:
    path = tmp_path / "lens.txt"
    path.write_text("{'ü': 3,\n'b': oops}", encoding="utf8")
    with pytest.raises(LiteralError, match=r"lens.txt, line 2, column 6\): unknown name: 'oops'"):
        parse_literal_file(str(path))
    path.write_text("{'ü': 3}", encoding="utf8")
    assert parse_literal_file(str(path)) == {"ü": 3}
    with pytest.raises(LiteralError, match="x.txt is not UTF-8"):
        parse_literal(b"'\xff'", filename="x.txt")
