"""Text files with one Python dict."""

from __future__ import annotations

import ast
import gzip
import math
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from returnn.errors import DataFileError
from returnn.util import py_text_dict
from returnn.util.py_text_dict import load_text_dict, save_text_dict

_GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "05-audio-text" / "lm"


def test_golden_files() -> None:
    assert load_text_dict(str(_GOLDEN / "dict_single.txt"))["utt/1"] == "hello wörld"
    assert load_text_dict(str(_GOLDEN / "dict_nbest.txt")) == {
        "utt/1": [(-1.5, "hello"), (-0.5, "hallo")],
        "utt/2": [(-2.0, "a b"), (-3.0, "")],
    }
    ((score, text), (score2, _)) = load_text_dict(str(_GOLDEN / "dict_inf.txt"))["utt/1"]
    assert score == -math.inf and math.isnan(score2) and text == "hello"


@pytest.mark.parametrize("name", ["d.py.txt", "d.txt.gz"])
@pytest.mark.parametrize("block_chars", [1, 30, 1 << 18])
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(
    items=st.dictionaries(
        st.text(),
        st.one_of(
            st.text(),
            st.lists(st.tuples(st.floats(allow_nan=False), st.text(alphabet="ab'\"\\\n {},#:äß"))),
            st.none(),
            st.integers(),
        ),
    )
)
def test_round_trip(
    items: dict[str, Any], name: str, block_chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(py_text_dict, "_BLOCK_CHARS", block_chars)
    path = str(tmp_path / name)
    save_text_dict(path, items.items())
    assert load_text_dict(path) == items
    assert list(load_text_dict(path)) == list(items)


def test_numpy_values(tmp_path: Path) -> None:
    path = tmp_path / "d.gz"
    value = [(numpy.float32(-0.5), numpy.str_("x")), (numpy.float64("-inf"), "y")]
    save_text_dict(str(path), {"a": value, "b": numpy.int64(3), "c": numpy.arange(2)})
    assert gzip.open(path, "rt").read() == "{\n'a': [(-0.5, 'x'), (-inf, 'y')],\n'b': 3,\n'c': [0, 1],\n}\n"
    path = tmp_path / "numpy.txt"
    path.write_text("{'a': [(np.float64(-0.5), np.str_('x')), (numpy.nan, 'y')], 'b': float('nan'), 'c': -inf}")
    loaded = load_text_dict(str(path))
    assert loaded["a"][0] == (-0.5, "x") and math.isnan(loaded["b"]) and loaded["c"] == -math.inf


def test_what_has_no_literal(tmp_path: Path) -> None:
    path = tmp_path / "d"
    path.write_text("{'old': 1}")
    with pytest.raises(TypeError, match="no Python literal"):
        save_text_dict(str(path), {"a": object()})
    assert load_text_dict(str(path)) == {"old": 1}  # and no half file
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


@pytest.mark.parametrize("block_chars", [1, 1 << 18])
@pytest.mark.parametrize(
    "text",
    [
        "{'a': 1,\n'b': {\n'c': 1,\n'd': 2,\n},\n\"e\": [\n'f',\n'g',\n],\n}",
        "{'a': '''x,\n'b': 1,\n''',\n'c': 2}",
        "\n{ # comment,\n'a': 1, # more,\n 'b': 2, # end\n}\n",
        "{}",
        "{'a': 1,\r\n'b': 2,\r\n}",
        "{'a': 1,\n'a': 2}",
    ],
)
def test_layouts(text: str, block_chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(py_text_dict, "_BLOCK_CHARS", block_chars)
    path = tmp_path / "d"
    path.write_bytes(text.encode())
    assert load_text_dict(str(path)) == ast.literal_eval(text.strip())


@pytest.mark.parametrize("block_chars", [1, 1 << 18])
@pytest.mark.parametrize(
    ("text", "match"),
    [
        (b"{'a': 1,\n'b': foo,\n'c': 3}", "d, line 2, column 6"),
        (b"{'a': 1,\n'b': 2,\n'c': [}", "d, line 3"),
        (b"['a',\n'b',\n]", "got list"),
        (b"{'a',\n'b',\n}", "got set"),
        (b"{'a': 1}, {\n'b': 1}", "got tuple"),
        (b"{1: 2,\n3: 4}", "got 1 .int."),
        (b"", "d"),
        (b"{'a': 1,\n'b': '\xff'}", "d, line 2: the text is not UTF-8"),
        (b"{'a': __import__('os').getcwd()}", "only"),
    ],
)
def test_mistakes(text: bytes, match: str, block_chars: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(py_text_dict, "_BLOCK_CHARS", block_chars)
    path = tmp_path / "d"
    path.write_bytes(text)
    with pytest.raises(DataFileError, match=match):
        load_text_dict(str(path))


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match="nofile"):
        load_text_dict(str(tmp_path / "nofile"))
    broken = tmp_path / "broken.gz"
    broken.write_bytes(gzip.compress(b"{'a': 1}")[:-5])
    with pytest.raises(DataFileError, match="broken.gz"):
        load_text_dict(str(broken))
