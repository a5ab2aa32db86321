"""Parsers of text end in a result or in one of our own errors, whatever the text; and read what our writers write."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import warnings
import xml.sax.saxutils as sax
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from returnn._config.files import parse_lines
from returnn.datasets.seq_lists import load_seq_lens_file, load_seq_list_file
from returnn.datasets.seq_order import parse_seq_ordering
from returnn.datasets.util.bliss import iter_segments
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.lr import lr_file
from returnn.lr.lr_file import EpochData
from returnn.util.json_comments import load_json
from returnn.util.literal import parse_literal
from returnn.util.pprint import better_repr
from returnn.util.py_text_dict import load_text_dict, save_text_dict
from tests.helpers import ROOT, run_program
from tests.robustness import fuzz
from tests.robustness.fuzz_targets import TARGETS, Target, fuzz_folder, run_target

_SETTINGS = settings(suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])


@pytest.fixture(autouse=True)
def _quiet() -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", SyntaxWarning)  # what Python itself says about strange literals
        yield


def _texts(target: Target) -> st.SearchStrategy[bytes]:
    """:return: rows of what the parser knows, changed whole texts, and anything"""
    tokens = st.lists(st.sampled_from(target.tokens) | st.text(max_size=3), max_size=25).map("".join)
    seeds = st.tuples(st.sampled_from(target.seeds), st.integers(0, 200), st.integers(0, 5), tokens)
    changed = seeds.map(lambda parts: parts[0][: parts[1]] + parts[3] + parts[0][parts[1] + parts[2] :])
    return (tokens | changed).map(lambda text: text.encode("utf8", errors="surrogatepass")) | st.binary(max_size=200)


@pytest.mark.parametrize("name", TARGETS)
def test_any_text(name: str) -> None:
    with fuzz_folder() as folder:

        @_SETTINGS
        @given(_texts(TARGETS[name]))
        def check(data: bytes) -> None:
            assert run_target(name, data, folder) in ("ok", "worded")

        check()
        for seed in TARGETS[name].seeds:
            assert run_target(name, seed.encode(), folder) == "ok"


_WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc", "Zs", "Zl", "Zp")), min_size=1, max_size=6)
_NUMBERS = st.integers(-(10**9), 10**9) | st.floats()
_PLAIN = st.recursive(
    st.none() | st.booleans() | _NUMBERS | st.text(max_size=6),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=8,
)


def _same(a: Any, b: Any) -> bool:
    """Any: values of any types. :return: whether they are equal, where nan is nan"""
    if isinstance(a, float) and isinstance(b, float) and math.isnan(a):
        return math.isnan(b)
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(_same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(_same, a, b))
    return type(a) is type(b) and bool(a == b)


@given(
    st.dictionaries(st.text(max_size=3), _NUMBERS | st.text(max_size=5) | st.lists(_NUMBERS, max_size=3), max_size=3)
)
def test_better_repr_is_read_again(value: dict[str, Any]) -> None:
    # A dict is written in the order of its keys.
    assert _same(parse_literal(better_repr(value)), dict(sorted(value.items())))


@_SETTINGS
@given(
    st.dictionaries(
        st.integers(1, 10**6),
        st.tuples(st.floats(0, 1e9), st.dictionaries(_WORDS, st.floats(), max_size=3)),
        max_size=4,
    )
)
def test_learning_rate_file(epochs: dict[int, tuple[float, dict[str, float]]]) -> None:
    data = {epoch: EpochData(learning_rate=rate, error=error) for epoch, (rate, error) in epochs.items()}
    text = lr_file.dumps(data)
    again = lr_file.loads(text)
    assert sorted(again) == sorted(data)
    for epoch in data:
        assert _same(again[epoch].learning_rate, data[epoch].learning_rate)
        assert _same(dict(sorted(again[epoch].error.items())), dict(sorted(data[epoch].error.items())))
    assert lr_file.dumps(again) == text


@settings(_SETTINGS, max_examples=30)
@given(st.dictionaries(st.text(max_size=5), st.text(max_size=8) | st.lists(st.integers(), max_size=3), max_size=5))
def test_text_dict(tmp_path: Path, items: dict[str, Any]) -> None:
    for name in ("a.py", "a.py.gz"):
        save_text_dict(str(tmp_path / name), items)
        assert load_text_dict(str(tmp_path / name)) == items


@_SETTINGS
@given(st.lists(_WORDS, unique=True, max_size=6))
def test_lists_and_vocabularies(tmp_path: Path, words: list[str]) -> None:
    path = tmp_path / "words"
    path.write_text("".join(f"{word}\n" for word in words), "utf8")
    assert load_seq_list_file(str(path)) == words
    path.write_text(json.dumps({word: i for i, word in enumerate(words)}))
    assert load_seq_lens_file(str(path)) == {word: i for i, word in enumerate(words)}
    with fuzz_folder() as folder:
        for name, content in (("v.py", repr({word: i for i, word in enumerate(words)})), ("v.json", json.dumps(words))):
            (folder / name).write_text(content, "utf8")
            if words:
                assert Vocabulary(str(folder / name), unknown_label=None).labels == words


@given(_PLAIN, st.sampled_from(["", '// a "\n', '/* " { */', "\n\t"]))
def test_json_with_comments(value: Any, comment: str) -> None:
    text = json.dumps(value, indent=1).replace("\n", comment + "\n" if comment else "\n") + comment
    assert _same(load_json(content=text), json.loads(json.dumps(value)))


@given(
    st.dictionaries(
        _WORDS.filter(lambda w: "#" not in w and "=" not in w), _WORDS.filter(lambda w: "#" not in w and "=" not in w)
    )
)
def test_config_lines(options: dict[str, str]) -> None:
    text = "".join(f"{key}  {value} # comment\n" for key, value in options.items())
    assert dict(parse_lines(text, "my.config")) == options


@_SETTINGS
@given(st.lists(st.tuples(_WORDS, st.integers(0, 10**6), _WORDS), max_size=4, unique_by=lambda seg: seg[0]))
def test_bliss(tmp_path: Path, segments: list[tuple[str, int, str]]) -> None:
    body = "".join(
        f"<segment name={sax.quoteattr(name)} start='{start / 100}' end='{start / 100 + 1}'><orth>{sax.escape(orth)}</orth></segment>"
        for name, start, orth in segments
    )
    path = tmp_path / "c.xml"
    path.write_text(f"<corpus name='c'><recording name='r' audio='r.wav'>{body}</recording></corpus>", "utf8")
    found = list(iter_segments(path))
    assert [(seg.name.rpartition("c/r/")[2], seg.orth) for seg in found] == [(name, orth) for name, _, orth in segments]


def test_numbers_of_orderings_are_bounded() -> None:
    assert parse_seq_ordering("default_every_n:0002").every_n == 2
    for text in ("default_every_n:" + "9" * 5000, "random:" + "9" * 19, "laplace:." + "9" * 5000):
        with pytest.raises(ValueError, match="positive int|must be"):
            parse_seq_ordering(text)


def test_command() -> None:
    args = [sys.executable, "-m", "tests.robustness.fuzz"]
    res = run_program([*args, "seq_ordering", "--without-atheris", "--seconds", "1"], cwd=ROOT, check=False)
    assert res.returncode == 0, res.stdout + res.stderr
    assert res.stdout.startswith("seq_ordering: ") and " worded " in res.stdout and res.stderr == ""
    if importlib.util.find_spec("atheris") is None:
        res = run_program([*args, "literal"], cwd=ROOT, check=False)
        assert res.returncode == 1 and res.stdout == ""
        assert "pip install atheris" in res.stderr and len(res.stderr.splitlines()) == 1
    else:
        res = run_program([*args, "literal", "--seconds", "1"], cwd=ROOT, check=False)
        assert res.returncode == 0


def test_what_ends_badly_is_shown_and_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def crash(data: bytes, folder: Path) -> None:
        assert folder.is_dir()
        raise IndexError(f"bad {len(data)}")

    monkeypatch.setitem(TARGETS, "literal", TARGETS["literal"]._replace(parse=crash))
    assert fuzz.main(["literal", "--without-atheris", "--seconds", "60", "--keep", str(tmp_path / "kept")]) == 1
    out = capsys.readouterr().out
    assert "then one ended badly" in out and "IndexError: bad" in out
    assert (tmp_path / "kept" / "literal").exists()


def test_texts_are_decided_by_the_seed() -> None:
    first = fuzz.fuzz_plain("seq_ordering", seconds=60, seed=3, max_num=50)
    assert first == fuzz.fuzz_plain("seq_ordering", seconds=60, seed=3, max_num=50) and sum(first[0].values()) == 50


def test_hangs_are_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    def hang(data: bytes, folder: Path) -> None:
        while True:
            pass

    monkeypatch.setattr(fuzz, "_MAX_SECS", 0.05)
    monkeypatch.setitem(TARGETS, "literal", TARGETS["literal"]._replace(parse=hang))
    _, bad, text = fuzz.fuzz_plain("literal", seconds=60, seed=1)
    assert bad is not None and "longer than 0.05 s" in text
