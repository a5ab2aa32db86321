"""Text cleaners, against what the peers return."""

from __future__ import annotations

import json
import sys
from ast import literal_eval
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets.util import cleaners
from returnn.datasets.util.post_processing import get_post_processor_function
from returnn.errors import MissingDependencyError

_GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "05-audio-text" / "lm"


def _golden_cases() -> list[tuple[str, str, str]]:
    cases = []
    for peer in ("mini", "main"):
        results = json.loads((_GOLDEN / f"expected.{peer}.json").read_text(encoding="utf8"))["cleaners"]
        cases += [(name, text, output) for name, outputs in results.items() for text, output in outputs.items()]
    return sorted(set(cases))


@pytest.mark.parametrize(("name", "text", "expected"), _golden_cases())
def test_golden(name: str, text: str, expected: str) -> None:
    if name.startswith("pp:"):
        function = get_post_processor_function(_opts_of_name(name[len("pp:") :]))
    elif name == "normalize_numbers_spacing":
        assert cleaners.normalize_numbers(text, with_spacing=True) == expected
        return
    else:
        function = get_post_processor_function(name)
    if not text.isascii() and ("ascii" in name or "trans" in name or "english" in name):
        pytest.importorskip("unidecode")
    assert function(text) == expected


def _opts_of_name(text: str) -> object:
    """:return: the options, whose repr is in the name of the golden item"""
    return literal_eval(text)


def test_no_unidecode_is_a_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "unidecode", None)
    assert cleaners.english_cleaners("Plain ASCII") == "plain ascii"  # not needed
    with pytest.raises(MissingDependencyError, match=r"unidecode.*convert_to_ascii.*pip install Unidecode"):
        cleaners.english_cleaners("Käse")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("$,5", "five dollars"),
        ("10000 20000000000000000000000000000000000000", "ten thousand two" + 37 * " zero"),
        ("1" + 40 * "0" + "th", "1" + 40 * "0" + "th"),
        ("1005 2009 2010 3000", "ten oh five two thousand nine twenty ten three thousand"),
    ],
)
def test_numbers(text: str, expected: str) -> None:
    assert cleaners.normalize_numbers(text).replace("one" + 40 * " zero", "1" + 40 * "0") == expected


@given(st.text(alphabet="0123456789,.$£ stndrh", max_size=30))
def test_no_digits_are_left(text: str) -> None:
    result = cleaners.normalize_numbers(text)
    assert len(result) >= len(text.replace(",", "")) - 30
    assert not any(char.isdigit() for char in result)
