"""Splitting of transcriptions into symbols, against what the peers return."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.util.basic import parse_orthography, parse_orthography_into_symbols

_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "05-audio-text" / "lm"


def _golden() -> list[dict[str, Any]]:
    items = []
    for peer in ("mini", "main"):
        items += json.loads((_GOLDEN / f"expected.{peer}.json").read_text(encoding="utf8"))["parse_orthography"]
    return items


@pytest.mark.parametrize("item", _golden())
def test_parse_orthography_golden(item: dict[str, Any]) -> None:
    text, opts = item["in"], {"word_based": item["word_based"]}
    assert parse_orthography(text, **opts) == item["parse"]
    assert parse_orthography_into_symbols(text, **opts) == item["into_symbols"]
    assert parse_orthography_into_symbols(text, upper_case_special=False, **opts) == item["no_upper"]
    assert parse_orthography_into_symbols(text, square_brackets_for_specials=False, **opts) == item["no_brackets"]


@pytest.mark.parametrize(
    ("text", "opts", "expected"),
    [
        ("(x) {y}", {"word_based": True}, ["x", "y", "[END]"]),
        ("a\tb  c", {"word_based": True, "collapse_spaces": False, "postfix": []}, ["a", "b", "", "c"]),
        (" a b ", {"final_strip": False, "postfix": []}, ["a", " ", "b"]),
        (" a b ", {"final_strip": False, "collapse_spaces": False, "postfix": []}, [" ", "a", " ", "b", " "]),
        ("", {"prefix": ["<s>"], "word_based": True}, ["<s>", "[END]"]),
        ("\t", {"word_based": True, "collapse_spaces": False, "final_strip": False, "postfix": ()}, [""]),
        ("a(b", {"remove_chars": "", "word_based": True, "postfix": ()}, ["a(b"]),
    ],
)
def test_parse_orthography_options(text: str, opts: dict[str, Any], expected: list[str]) -> None:
    assert parse_orthography(text, **opts) == expected


@given(text=st.text("ab \t\u3000é"), word_based=st.booleans())
def test_without_specials(text: str, word_based: bool) -> None:
    """A special at the end does not change what is before it: the two ways through the function agree."""
    plain = parse_orthography_into_symbols(text, word_based=word_based)
    with_special = parse_orthography_into_symbols(text + "[x]", word_based=word_based)
    if word_based and plain and not plain[-1]:
        plain = plain[:-1]
    assert with_special == [*plain, "[X]"]
    assert (
        plain
        == parse_orthography_into_symbols(text, word_based=word_based, square_brackets_for_specials=False)[: len(plain)]
    )
