"""tools/collect-orth-symbols.py, collect-words.py and extract_state_tying_from_dataset.py as programs."""

from __future__ import annotations

import gzip
from pathlib import Path

import numpy
import pytest

from returnn.datasets._lm.allophones import StateTying
from returnn.datasets.hdf import SimpleHDFWriter
from tests.helpers import GOLDEN
from tests.tools.tool_program import imports_torch, last_error_line, run_tool

_CORPUS = """<?xml version="1.0"?>
<corpus name="c">
  <recording name="r1" audio="r1.wav">
    <segment name="s1" start="0" end="1.5"><orth> hello world [noise] </orth></segment>
    <segment name="s2" start="1.5" end="2.0"><orth>wörld (x)</orth></segment>
  </recording>
</corpus>
"""
_NO_EXTRA = ["--add_numbers", "0", "--add_lower_alphabet", "0", "--add_upper_alphabet", "0"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "corpus.xml").write_text(_CORPUS, encoding="utf8")
    with gzip.open(tmp_path / "text.gz", "wt", encoding="utf8") as file:
        file.write("hello world [noise]\nwörld (x)\n")
    (tmp_path / "my.config").write_text(
        "#!rnn.py\nimport numpy\nfrom returnn.datasets.map import FromListDataset\n"
        "texts = ['hello world [noise]', 'w\\u00f6rld (x)']\n"
        "data = [{'raw': numpy.array(t), 'data': numpy.zeros((50, 1), 'float32')} for t in texts]\n"
        "types = {'raw': {'dtype': 'string', 'shape': (), 'dim': 1}, 'data': {'dim': 1, 'shape': (None, 1)}}\n"
        "train = {'class': 'MapDatasetWrapper', 'map_dataset': FromListDataset(data, data_types=types)}\n"
    )
    return tmp_path


@pytest.mark.parametrize(
    ("source", "time"),
    [("corpus.xml", "(200 frames in 2 seqs)"), ("text.gz", None), ("my.config", "(100 frames in 2 seqs)")],
)
def test_symbols_of_each_kind_of_input(folder: Path, source: str, time: str | None) -> None:
    res = run_tool("collect-orth-symbols", source, *_NO_EXTRA, "--output", "out.txt", cwd=folder)
    want = sorted({*"hello world wörld x", "[NOISE]", "[END]"})
    assert (folder / "out.txt").read_text(encoding="utf8").splitlines() == want
    assert "Num seqs: 2\n" in res.stdout
    assert ("Total time" in res.stdout) == (time is not None) and (time or "") in res.stdout
    line = last_error_line(run_tool("collect-orth-symbols", source, "--output", "out.txt", cwd=folder, check=False))
    assert "exists already" in line


def test_symbol_filters(folder: Path) -> None:
    res = run_tool("collect-orth-symbols", "corpus.xml", cwd=folder)
    assert f"Num different symbols: {62 + 4}" in res.stdout  # ö, blank, [NOISE], [END]
    for args in (
        ["--filter_orth_sym", "ö"],
        ["--filter_orth_syms_seq", "wö"],
        ["--max_seq_frame_len", "60"],
        ["--max_seq_orth_len", "9"],
    ):
        res = run_tool("collect-orth-symbols", "corpus.xml", "--dump_orth_syms", *args, *_NO_EXTRA, cwd=folder)
        assert res.stdout.startswith(
            "'c/r1/s2': ['w', 'ö', 'r', 'l', 'd', ' ', 'x', '[END]']\nNum seqs: 1, filtered out: 1\n"
        )


def test_words_and_lexicon(folder: Path) -> None:
    lexicon = GOLDEN / "05-audio-text" / "lm" / "lexicon.xml"
    res = run_tool(
        "collect-words", "corpus.xml", "--lexicon", str(lexicon), "--dump_orth", "--output", "w.txt", cwd=folder
    )
    lines = res.stdout.splitlines()
    assert "'c/r1/s1': 'hello world [noise]'" in lines
    assert "Num words: 5, 2.50 per seq" in lines
    start = lines.index("Not in the lexicon: 4 different words, 4 in all (80.00%)")
    assert lines[start + 1 : start + 5] == ["  (x) 1", "  [noise] 1", "  hello 1", "  wörld 1"]
    assert "wörld 1" in (folder / "w.txt").read_text(encoding="utf8").splitlines()


def test_state_tying(folder: Path) -> None:
    labels = ["AH{HH+L}@i.0|AH{HH+L}@i.1", "[SILENCE]{#+#}@i@f.0"]
    with SimpleHDFWriter(folder / "a.hdf", dim=2, ndim=1, labels=labels) as writer:
        writer.insert_batch(numpy.array([[0, 1]]), [2], ["a"])
    run_tool("extract_state_tying_from_dataset", "a.hdf", "--output", "tying", cwd=folder)
    tying = StateTying(str(folder / "tying"))
    assert ["|".join(sorted(tying.class_map[i])) for i in range(tying.num_classes)] == labels
    args = ['{"class": "Task12AXDataset", "num_seqs": 1}', "--output", "x"]
    assert "no labels" in last_error_line(run_tool("extract_state_tying_from_dataset", *args, cwd=folder, check=False))


def test_mistakes_help_and_imports(folder: Path) -> None:
    for tool in ("collect-orth-symbols", "collect-words"):
        assert "missing.xml" in last_error_line(run_tool(tool, "missing.xml", cwd=folder, check=False))
        args = ['{"class": "Task12AXDataset", "num_seqs": 1}']
        assert "no texts" in last_error_line(run_tool(tool, *args, cwd=folder, check=False))
        assert "examples" in run_tool(tool, "--help", cwd=folder).stdout
        assert not imports_torch(tool, "text.gz", cwd=folder)
    assert "example" in run_tool("extract_state_tying_from_dataset", "--help", cwd=folder).stdout
