"""returnn.datasets.util.bliss."""

from __future__ import annotations

import gzip
from decimal import Decimal
from pathlib import Path

import pytest

from returnn.datasets.util.bliss import BlissSegment, iter_segments
from returnn.errors import DataFileError
from tests.helpers import GOLDEN

FOLDER = GOLDEN / "05-audio-text" / "oggzip"


def _write(path: Path, body: str, name: str = "c") -> Path:
    path.write_text(
        f'<?xml version="1.0" encoding="utf8"?>\n<corpus name="{name}">\n{body}\n</corpus>\n', encoding="utf8"
    )
    return path


def _names(path: Path) -> list[str]:
    return [segment.name for segment in iter_segments(path)]


@pytest.mark.parametrize("name", ["corpus.xml", "corpus.xml.gz"])
def test_golden_corpus(name: str) -> None:
    assert list(iter_segments(str(FOLDER / name))) == [
        BlissSegment(
            "demo/r1/s1", "demo/r1", "rec/r1.wav", Decimal("0.0"), Decimal("0.25"), "0.0", "0.25", "hello world", "spk1"
        ),
        BlissSegment(
            "demo/r1/2", "demo/r1", "rec/r1.wav", Decimal("0.25"), Decimal("0.6"), "0.25", "0.6", 'it\'s "käse"', None
        ),
        BlissSegment(
            "demo/sub/r2/s1",
            "demo/sub/r2",
            "rec/sub/r2.wav",
            Decimal(0),
            Decimal("0.3"),
            "0.00",
            "0.300",
            "short one",
            "spk2",
        ),
    ]


def test_defaults(tmp_path: Path) -> None:
    (segment,) = iter_segments(_write(tmp_path / "c.xml", "<recording><segment/></recording>"))
    assert segment == BlissSegment("c/1/1", "c/1", None, Decimal(0), Decimal("Infinity"), "0", "inf", "", None)


def test_position_among_all_children(tmp_path: Path) -> None:
    body = """<speaker-description name="x"/>
      <subcorpus><recording audio="a"><speaker name="x"/><segment end="inf"/><segment name="n"/><segment/></recording></subcorpus>
      <recording name="r"><segment/></recording>"""
    assert _names(_write(tmp_path / "c.xml", body)) == ["c/2/1/2", "c/2/1/n", "c/2/1/4", "c/r/1"]


def test_orth(tmp_path: Path) -> None:
    body = (
        "<recording><segment><orth>\n a\u00a0 b&amp;<x>c</x><!-- no --> d </orth><orth>second</orth></segment>"
        "<segment><orth/></segment></recording>"
    )
    assert [segment.orth for segment in iter_segments(_write(tmp_path / "c.xml", body))] == ["a b&c d", ""]


def test_long_corpus_is_read_in_parts(tmp_path: Path) -> None:
    text = "word " * 40
    body = "".join(
        f'<recording name="r{i}"><segment start="{i}" end="{i + 1}"><orth>{text}</orth></segment></recording>\n'
        for i in range(2000)
    )
    segments = iter_segments(_write(tmp_path / "c.xml", body))
    assert next(segments).name == "c/r0/1"
    assert [s.orth for s in segments] == [text.strip()] * 1999


def test_includes(tmp_path: Path) -> None:
    (tmp_path / "sub").mkdir()
    _write(tmp_path / "sub" / "same.xml", '<recording name="r2"><segment/></recording><include file="other.xml.gz"/>')
    other = _write(tmp_path / "sub" / "other.xml", '<recording name="r3"><segment/></recording>', name="other")
    (tmp_path / "sub" / "other.xml.gz").write_bytes(gzip.compress(other.read_bytes()))
    body = '<recording name="r1"><segment/></recording><include file="sub/same.xml"/><recording name="r4"><segment/></recording>'
    path = _write(tmp_path / "c.xml", body)
    assert _names(path) == ["c/r1/1", "c/r2/1", "c/other/r3/1", "c/r4/1"]
    assert [s.name for s in iter_segments(path, resolve_includes=False)] == ["c/r1/1", "c/r4/1"]
    _write(tmp_path / "sub" / "same.xml", '<include file="../c.xml"/>')
    with pytest.raises(DataFileError, match="includes itself"):
        _names(path)
    (tmp_path / "sub" / "same.xml").unlink()
    with pytest.raises(DataFileError, match=r"same\.xml', included by .*c\.xml"):
        _names(path)


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("<recording>", "line 4: this is no valid XML: mismatched tag"),
        ('<recording name="r"><segment name="s" start="x"/></recording>', "line 3: segment 'c/r/s': .* start, got 'x'"),
        ('<recording><segment end="nan"/></recording>', "got 'nan'"),
        ("<segment/>", "line 3: <segment> is not allowed inside of <corpus>"),
        ("<recording><include/></recording>", "<include> is not allowed"),
        ("<include/>", "needs a file"),
        ('<include file="missing.xml"/>', "missing.xml"),
    ],
)
def test_errors(tmp_path: Path, body: str, message: str) -> None:
    with pytest.raises(DataFileError, match=message):
        _names(_write(tmp_path / "c.xml", body))


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "no valid XML: no element found"),
        (b"hello", "no valid XML"),
        (b"<lexicon/>", "expected <corpus> as root element, got <lexicon>"),
        (b"<corpus/>", "needs a name"),
        (gzip.compress(b"<corpus name='x'></corpus>", mtime=0)[:-9], "Cannot read the Bliss corpus"),
    ],
)
def test_no_corpus(tmp_path: Path, data: bytes, message: str) -> None:
    path = tmp_path / "c.xml"
    path.write_bytes(data)
    with pytest.raises(DataFileError, match=message):
        _names(path)
    with pytest.raises(DataFileError, match=r"no\.xml"):
        _names(tmp_path / "no.xml")
