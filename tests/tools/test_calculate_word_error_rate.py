"""tools/calculate-word-error-rate.py as a program."""

from __future__ import annotations

import gzip
import subprocess
from pathlib import Path

import pytest

from tests.tools.tool_program import imports_torch, last_error_line, run_tool

_REFS = "{'a': 'x y', 'b': 'u w', 'c': 'x x'}"
_HYPS = "{'a': 'x y z', 'b': 'u w', 'c': 'x'}"


def _wer(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_tool("calculate-word-error-rate", *args, cwd=cwd, check=check)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "refs.py").write_text(_REFS)
    (tmp_path / "hyps.py").write_text(_HYPS)
    return tmp_path


def test_as_a_job_calls_it(folder: Path) -> None:
    res = _wer("--expect_full", "--hyps", "hyps.py", "--refs", "refs.py", "--out", "wer", cwd=folder)
    assert (folder / "wer").read_text() == "33.33\n"
    lines = res.stdout.splitlines()
    assert lines[0].startswith("Done. Num seqs 3. Total time 0:00:0")
    assert lines[1] == "Remaining num hyp seqs 0."
    assert lines[2].startswith("Seq-length ")
    assert "2 errors in 6 words: 0 substitutions, 1 insertions, 1 deletions." in lines
    assert lines[-2:] == ["Final WER: 33.33%", "Wrote WER% to 'wer'."]
    res = _wer("--hyps", str(folder / "hyps.py"), "--refs", str(folder / "refs.py"), "--verbosity", "1", cwd=Path("/"))
    assert res.stdout == "Final WER: 33.33%\n"


def test_n_best_lists_gz_ranges_and_table(folder: Path) -> None:
    text = "{'a': [(-1.5, 'x y z'), (-2.0, 'x y')], 'b': [(-inf, 'u w')], 'c': [], 'd': 'more'}"
    with gzip.open(folder / "nbest.py.gz", "wt") as file:
        file.write(text)
    res = _wer("--hyps", "nbest.py.gz", "--refs", "refs.py", "--per_seq", "table.tsv", cwd=folder)
    assert "Final WER: 50.00%" in res.stdout and "Remaining num hyp seqs 1." in res.stdout
    assert (folder / "table.tsv").read_text().splitlines() == [
        "tag\twords\tsubstitutions\tinsertions\tdeletions",
        "a\t2\t0\t1\t0",
        "b\t2\t0\t0\t0",
        "c\t2\t0\t0\t2",
    ]
    res = _wer("--hyps", "hyps.py", "--refs", "refs.py", "--startseq", "1", "--endseq", "1", cwd=folder)
    assert "Final WER: 0.00%" in res.stdout


def test_references_from_a_dataset(folder: Path) -> None:
    (folder / "my.config").write_text(
        "#!rnn.py\nimport numpy\nfrom returnn.datasets.map import FromListDataset\n"
        'data = [{"raw": numpy.array(text)} for text in ("x y", "u w", "x x")]\n'
        'types = {"raw": {"dtype": "string", "shape": (), "dim": 1}}\n'
        'eval = {"class": "MapDatasetWrapper", "map_dataset": FromListDataset(data, data_types=types)}\n'
        'wer_data = "eval"\n'
    )
    (folder / "seq_hyps.py").write_text(
        _HYPS.replace("'a'", "'seq-0'").replace("'b'", "'seq-1'").replace("'c'", "'seq-2'")
    )
    res = _wer("--config", "my.config", "--hyps", "seq_hyps.py", cwd=folder)
    assert "Final WER: 33.33%" in res.stdout
    res = _wer("--config", "my.config", "--dataset", "eval", "--hyps", "seq_hyps.py", "--endseq", "0", cwd=folder)
    assert "Final WER: 50.00%" in res.stdout


@pytest.mark.parametrize(
    ("refs", "hyps", "words"),
    [
        (_REFS, "{'a': 'x', 'b': ''}", ["UnknownSeqTagError", "hyps.py", "1 of 3", "'c'"]),
        ("{'a': 'x'}", _HYPS, ["There are still remaining hypotheses", "2 tags", "'b'"]),
        ("{'a': ' '}", "{'a': 'x'}", ["no words"]),
        (_REFS, "{'a': 3, 'b': '', 'c': ''}", ["hyps.py, tag 'a'", "3 (int)"]),
        (_REFS, "{'a': __import__('os')}", ["hyps.py"]),
        ("[1]", _HYPS, ["refs.py"]),
    ],
)
def test_mistakes_end_with_a_sentence(folder: Path, refs: str, hyps: str, words: list[str]) -> None:
    (folder / "refs.py").write_text(refs)
    (folder / "hyps.py").write_text(hyps)
    args = ["--refs", "refs.py", "--hyps", "hyps.py", "--out", "wer", "--expect_full", "--per_seq", "table"]
    line = last_error_line(_wer(*args, cwd=folder, check=False))
    for word in words:
        assert word in line
    assert not (folder / "wer").exists()


def test_arguments_help_and_imports(folder: Path) -> None:
    assert "Which dataset?" in last_error_line(_wer("--hyps", "hyps.py", cwd=folder, check=False))
    assert _wer("--refs", "refs.py", cwd=folder, check=False).returncode == 2
    assert "examples" in _wer("--help", cwd=folder).stdout
    assert not imports_torch("calculate-word-error-rate", "--hyps", "hyps.py", "--refs", "refs.py", cwd=folder)
