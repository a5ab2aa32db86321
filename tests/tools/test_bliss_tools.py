"""tools/bliss-collect-seq-lens.py, bliss-dump-text.py, bliss-get-segment-names.py."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.helpers import GOLDEN
from tests.tools.tool_program import imports_torch, last_error_line, run_tool

FOLDER = GOLDEN / "05-audio-text" / "tools"
CORPUS = """<corpus name="c">
<recording name="r1" audio="/x/a/r1.wav">
  <segment name="s1" start="0.0" end="1.504"><orth> hello  world </orth><speaker name="spk"/></segment>
  <segment start="1.504" end="2.0"><orth>it's "q"</orth></segment>
</recording>
<recording name="r2" audio="/x/a/r2.wav"><segment name="s1" start="0" end="0.995"><orth>x</orth></segment></recording>
</corpus>
"""


@pytest.fixture
def corpus(tmp_path: Path) -> str:
    (tmp_path / "c.xml").write_text(CORPUS)
    return "c.xml"


@pytest.mark.parametrize(
    ("tool", "args", "expected"),
    [
        ("bliss-collect-seq-lens", [], "seq_lens.txt"),
        ("bliss-dump-text", [], "dump_text.txt"),
        ("bliss-get-segment-names", ["--output_type", "segment_name"], "segment_names.txt"),
        (
            "bliss-get-segment-names",
            ["--output_type", "segment_name,start_time,end_time,orth", "--merge_segs_up_to_time", "0.7"],
            "segment_merged.txt",
        ),
    ],
)
def test_golden(tool: str, args: list[str], expected: str) -> None:
    assert run_tool(tool, "corpus.xml", *args, cwd=FOLDER).stdout == (FOLDER / expected).read_text(encoding="utf8")


def test_collect_seq_lens(tmp_path: Path, corpus: str) -> None:
    expected = "{\n'c/r1/s1': 150,\n'c/r1/2': 50,\n'c/r2/s1': 100,\n}\n"
    assert run_tool("bliss-collect-seq-lens", corpus, cwd=tmp_path).stdout == expected
    run_tool("bliss-collect-seq-lens", corpus, "--output", "o.txt", cwd=tmp_path)
    assert (tmp_path / "o.txt").read_text() == expected
    run_tool("bliss-collect-seq-lens", corpus, str(FOLDER / "corpus.xml"), "--output", "o.gz", cwd=tmp_path)
    text = gzip.decompress((tmp_path / "o.gz").read_bytes()).decode()
    assert text == expected[:-2] + (FOLDER / "seq_lens.txt").read_text(encoding="utf8")[2:]


def test_collect_seq_lens_keeps_what_is_in_a_redirected_file(tmp_path: Path, corpus: str) -> None:
    res = run_tool("bliss-collect-seq-lens", corpus, "--output", "/dev/stdout", cwd=tmp_path)
    assert res.stdout.startswith("{\n")


def test_collect_seq_lens_without_end(tmp_path: Path) -> None:
    (tmp_path / "c.xml").write_text('<corpus name="c"><recording><segment/></recording></corpus>')
    res = run_tool("bliss-collect-seq-lens", "c.xml", "--output", "o.txt", cwd=tmp_path, check=False)
    assert "'c/1/1' is not known" in last_error_line(res)
    assert not (tmp_path / "o.txt").exists()


@pytest.mark.parametrize(
    ("args", "expected"),
    [
        ([], "c/r1/s1\nc/r1/2\nc/r2/s1\n"),
        (["--output_type", "segment_name,start_time"], "c/r1/s1 0.0\nc/r1/2 1.504\nc/r2/s1 0.0\n"),
        (["--merge_segs_up_to_time", "3", "--output_type", "segment_name"], "c/r1/s1;c/r1/2\nc/r2/s1\n"),
        (
            ["--output_type", "recording_filename,delta_time"],
            "/x/a/r1.wav 1.504\n/x/a/r1.wav 0.496\n/x/a/r2.wav 0.995\n",
        ),
        (["--subset_segment_file", "segs.txt"], "c/r1/2\n"),
    ],
)
def test_get_segment_names(tmp_path: Path, corpus: str, args: list[str], expected: str) -> None:
    (tmp_path / "segs.txt").write_text("c/r1/2\nnope\n")
    res = run_tool("bliss-get-segment-names", corpus, *args, cwd=tmp_path)
    assert res.stdout == expected
    assert ("1 segments of the subset are not in the corpus, e.g. ['nope']" in res.stderr) == ("segs.txt" in args)


def test_get_segment_names_of_two_channels(tmp_path: Path) -> None:
    (tmp_path / "c.xml").write_text(
        '<corpus name="c">'
        '<recording name="a" audio="sw1A.wav"><segment name="1" start="0" end="1"/><segment name="2" start="3" end="4"/></recording>'
        '<recording name="x" audio="x.wav"><segment name="1" start="0" end="1"/></recording>'
        '<recording name="b" audio="sw1B.wav"><segment name="1" start="1" end="2"/></recording></corpus>'
    )
    res = run_tool("bliss-get-segment-names", "c.xml", "--merge_swb_ab", "--sort_by_time", cwd=tmp_path)
    assert res.stdout.split() == ["c/a/1", "c/b/1", "c/a/2", "c/x/1"]


def test_errors_and_start(tmp_path: Path, corpus: str) -> None:
    res = run_tool("bliss-get-segment-names", corpus, "--output_type", "nam", cwd=tmp_path, check=False)
    assert res.returncode == 2
    assert "unknown nam; known are segment_name" in res.stderr
    assert "no.xml" in last_error_line(run_tool("bliss-dump-text", "no.xml", cwd=tmp_path, check=False))
    for tool in ("bliss-collect-seq-lens", "bliss-dump-text", "bliss-get-segment-names"):
        assert not imports_torch(tool, corpus, cwd=tmp_path)
