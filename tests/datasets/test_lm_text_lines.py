"""Lines of text files as columns, against what Python's own string functions give."""

from __future__ import annotations

import bz2
import gzip
import lzma
from collections.abc import Callable
from pathlib import Path

import numpy
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from returnn.datasets._lm import text_lines
from returnn.datasets._lm.text_lines import TextLines
from returnn.errors import DataFileError

_SPACES = " \t\r\x0b\x0c\x1c\x1d\x1e\x1f\x85\xa0\u1680\u2000\u200a\u2028\u2029\u202f\u205f\u3000"
_TEXT = st.text(st.sampled_from(f"ab\n\n {_SPACES}äöß\u200b\u3001\u2010語😀\x00"), max_size=40)


def _expected(data: bytes, keep_empty: bool) -> list[str]:
    lines = data.split(b"\n")
    if not lines[-1]:
        lines.pop()
    texts = []
    for line in lines:
        try:
            text = line.decode("utf8")
        except UnicodeDecodeError:
            text = line.decode("latin1")
        texts.append(text.strip())
    return [text for text in texts if text or keep_empty]


def _check(path: Path, data: bytes, keep_empty: bool) -> None:
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    lines = TextLines.from_file(str(path), keep_empty=keep_empty)
    expected = _expected(data, keep_empty)
    assert list(lines) == expected
    assert len(lines) == len(expected)
    assert lines.num_chars().tolist() == [len(text) for text in expected]


@pytest.mark.parametrize("name", ["a.txt", "a.gz"])
@pytest.mark.parametrize("keep_empty", [False, True])
@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(text=_TEXT)
def test_as_python(text: str, keep_empty: bool, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "_CHUNK_BYTES", 7)
    monkeypatch.setattr(text_lines, "_BLOCK_LINES", 2)
    _check(tmp_path / name, text.encode(), keep_empty)


@settings(max_examples=200, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(data=st.lists(st.sampled_from([*b"ab\n\n \xc2\xa0\x85\xe3\x80\xe4\xff"]), max_size=30).map(bytes))
def test_any_bytes(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_lines, "_BLOCK_LINES", 3)
    _check(tmp_path / "a.txt", data, keep_empty=False)
    _check(tmp_path / "a.txt", data, keep_empty=True)


def test_where(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\n a\n\nb")
    lines = TextLines.from_file(str(path))
    assert [lines.where(i) for i in range(2)] == [f"{path}, line 2", f"{path}, line 4"]
    assert TextLines.from_texts(["a", "", "bö"], name="x.xml").where(2) == "x.xml, text 3"


def test_from_texts() -> None:
    texts = ["a", "", "bö\n ", "\ud800"]
    lines = TextLines.from_texts(texts, name="x")
    assert list(lines) == texts
    assert lines.num_chars().tolist() == [1, 0, 4, 1] and lines.num_latin1 == 0
    assert len(TextLines.from_texts([], name="x")) == 0


def test_byte_order_mark(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"\xef\xbb\xbf" + "ä\n".encode())
    assert list(TextLines.from_file(str(path))) == ["ä"]
    path.write_bytes(b"\xef\xbb\xbf\nb")
    assert list(TextLines.from_file(str(path))) == ["b"]


def test_not_readable(tmp_path: Path) -> None:
    for path in (tmp_path / "nofile", tmp_path):
        with pytest.raises(DataFileError, match=path.name):
            TextLines.from_file(str(path))
    (tmp_path / "b.gz").write_bytes(gzip.compress(b"abc\n" * 100)[:-9])
    with pytest.raises(DataFileError, match=r"b\.gz"):
        TextLines.from_file(str(tmp_path / "b.gz"))


def test_no_copy_of_a_plain_file(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(b"abc\n" * 10)
    lines = TextLines.from_file(str(path))
    assert not isinstance(lines._buffer, bytes)
    assert isinstance(lines._starts, numpy.ndarray)


@pytest.mark.parametrize("pack", [bz2.compress, lzma.compress, lambda data: gzip.compress(gzip.compress(data))])
def test_other_packing_is_no_text(pack: Callable[[bytes], bytes], tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_bytes(pack(b"hello\n"))
    with pytest.raises(DataFileError, match=r"is no text: its content is compressed by (bzip2|xz|gzip)\. .*unpack it"):
        TextLines.from_file(str(path))
