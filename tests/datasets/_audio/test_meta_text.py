"""returnn.datasets._audio.meta_text."""

from __future__ import annotations

import ast
import math
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._audio import meta_text
from returnn.datasets._audio.meta_text import MetaColumns, parse_meta_text
from returnn.errors import DataFileError

_TEXT = st.text(
    st.one_of(st.sampled_from("ab'\"\\\n\r\t\0 ,{}[]:#äß漢\u2028\x85"), st.characters(codec="utf8")), max_size=12
)
_ENTRY = st.fixed_dictionaries(
    {"text": _TEXT, "duration": st.one_of(st.floats(), st.integers(-5, 10**9))},
    optional={
        "file": st.one_of(st.none(), _TEXT),
        "seq_name": st.one_of(st.none(), _TEXT),
        "speaker_name": st.one_of(st.none(), _TEXT, st.integers(), st.booleans(), st.lists(st.integers(), max_size=2)),
        "odd key": st.tuples(_TEXT),
    },
)


def _check(columns: MetaColumns, entries: list[dict[str, Any]]) -> None:
    assert len(columns) == len(entries)
    for i, entry in enumerate(entries):
        assert columns.text[i] == entry["text"]
        file = entry.get("file")
        assert columns.file[i] == (file or "")
        tag = entry.get("seq_name")
        assert columns.tag[i] == (tag if tag is not None else (file or ""))
        duration = float(entry["duration"])
        assert columns.duration[i] == duration or (math.isnan(duration) and math.isnan(columns.duration[i]))


def _parse(text: str) -> MetaColumns:
    return parse_meta_text(text.encode("utf8"), where="x.txt", need_file=False)


@settings(deadline=None, max_examples=300)
@given(st.lists(_ENTRY, max_size=6), st.integers(0, 4), st.booleans())
def test_equals_the_literal(entries: list[dict[str, Any]], form: int, last_comma: bool) -> None:
    entries = [{"text": "a", "seq_name": "first", "duration": 1.5}, *entries]
    comma = "," if last_comma else ""
    text = {
        0: "[\n" + ",\n".join(map(repr, entries)) + f"{comma}\n]\n",
        1: "[" + ", ".join(map(repr, entries)) + comma + "]",
        2: "\n [\r\n" + ",\r\n".join(map(repr, entries)) + f"{comma}\r\n]",
        3: "[\n" + ",\n\n".join(map(repr, entries)) + f"{comma}\n\n] ",
        4: "[\n# comment\n" + ",\n".join(map(repr, entries)) + f"{comma} # x\n]",
    }[form]
    _check(_parse(text), entries)


@pytest.mark.parametrize(
    "entry",
    [
        r"""{'text': 'it\'s "q"', 'file': 'a', 'duration': 1.5}""",
        r"""{'text': "it's", 'file': 'a', 'duration': 1.5,}""",
        r"""{'text': 'a\\\'b\x41\u00e4\N{BULLET}\101', 'file': 'a', 'duration': 1.5}""",
        """{'text': 'a' 'b', 'file': 'a', 'duration': 1.5}""",
        """{'text': '''a'''  , 'file': u'a', 'duration': .5}""",
        """{'text': r'a\\b', 'file': 'a', 'duration': 1e-3}""",
        """{"text" : "x", "file":"y", "duration" :1_0.5, 3: (4,)}""",
        """{'text': 'x', 'text': 'y', 'file': 'z', 'duration': 3}""",
        """{'text': 'x', 'file': 'z',\n 'duration': -0.0}""",
        """{'text': '', 'file': '', 'seq_name': '', 'duration': 00.5}""",
        """{'text': 'x', 'duration': 1E+1, 'file': None, 'seq_name': 'n', 'more': {'text': 'z'}}""",
        "{'text': 'x\\\ny', 'file': 'z', 'duration': 1.}",
    ],
)
def test_forms_of_literals(entry: str) -> None:
    plain = "{'text': 'x', 'seq_name': 's', 'file': 'f', 'duration': 1.0}"
    for text in (f"[\n{plain},\n{entry},\n{plain},\n]\n", f"[{plain}, {entry}]", f"[\n{plain},\n{entry}\n]"):
        _check(_parse(text), ast.literal_eval(text))


def test_decimals_of_the_tool() -> None:
    text = "[\n" + "".join(
        f"{{'text': 'x', 'seq_name': 's{d}', 'duration': {d}}},\n"
        for d in ("Infinity", "inf", "nan", "1E+1", "0E-2", "7")
    )
    for end in ("]\n", "# comment\n]\n"):
        columns = _parse(text + end)
        assert columns.duration.tolist()[:2] == [math.inf, math.inf]
        assert math.isnan(columns.duration[2])
        assert columns.duration.tolist()[3:] == [10, 0, 7]


@pytest.mark.parametrize("num", [8, 9, 10])
def test_blocks(monkeypatch: pytest.MonkeyPatch, num: int) -> None:
    monkeypatch.setattr(meta_text, "_BLOCK_ENTRIES", 3)
    entries: list[dict[str, Any]] = [{"text": str(i), "seq_name": f"s{i}", "duration": i / 2} for i in range(num)]
    entries[7]["extra"] = [1]
    _check(_parse("[\n" + "".join(f"{entry!r},\n" for entry in entries) + "]\n"), entries)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "no list"),
        ("[\n]\n", "no entries"),
        ("{'text': 'x'}", "a list of dicts"),
        ("[1]", "a dict"),
        (
            "[\n{'text': 'x', 'seq_name': 's', 'duration': 1.0}\n{'text': 'x', 'seq_name': 's', 'duration': 1.0}\n]",
            "x.txt",
        ),
        ("[\n{'text': 'x', 'seq_name': 's', 'duration': 1.0},\n", "x.txt"),
        ("[\n{'text': 'x', 'seq_name': 's', 'duration': 1.0},\n]]", "x.txt"),
        ("[\n{'text': 'x', 'seq_name': 's', 'duration': 1.0},\n{'text': __import__('os'), 'duration': 1}]", "x.txt"),
        ("[{'text': 'x', 'seq_name': 's', 'duration': '1'}]", "Entry 0 .*'s'.*'duration'.*seconds"),
        ("[{'text': 'x', 'seq_name': 's', 'duration': True}]", "'duration'"),
        ("[{'text': 5, 'seq_name': 's', 'duration': 1.0}]", "'text'.*expected str, got 5"),
        ("[{'text': '\\ud800', 'seq_name': 's', 'duration': 1.0}]", "Unicode"),
        ("[{'text': 'x', 'duration': 1.0}]", "neither 'seq_name' nor 'file'"),
        (
            "[\n{'text': 'x', 'seq_name': 's', 'duration': 1.0},\n{'text': 'x', 'seq_name': 't'},\n]",
            "Entry 1 .*'t'.*no 'duration'",
        ),
        ("[{'seq_name': 's', 'duration': 1.0}]", "no 'text'"),
    ],
)
def test_errors(text: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        _parse(text)


def test_no_utf8() -> None:
    with pytest.raises(DataFileError, match="UTF-8"):
        parse_meta_text(b"[{'text': '\xff'}]", where="x.txt", need_file=False)
