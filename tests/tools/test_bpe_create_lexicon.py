"""tools/bpe-create-lexicon.py: golden output, forms of its input, errors."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path

import pytest

from returnn.datasets._vocabulary.bpe_lexicon import iter_lemmas
from tests.helpers import GOLDEN, ROOT, run_program

_TOOL = ROOT / "tools" / "bpe-create-lexicon.py"
_DIR = GOLDEN / "05-audio-text"
_VOCAB = str(_DIR / "vocab" / "demo.vocab")


def _run(cwd: Path, *args: str, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, str(_TOOL), *args], cwd=cwd, check=check)


def test_golden(tmp_path: Path) -> None:
    words = str(_DIR / "tools" / "wordlist.txt")
    opts = ["--bpe_vocab", _VOCAB, "--word_vocab", words, "--skip_special", "--lower_case"]
    res = _run(tmp_path, *opts, "--output", "bpe_lexicon.xml")
    assert res.stdout == (_DIR / "tools" / "bpe_lexicon.log").read_text(encoding="utf8")
    lines = (_DIR / "tools" / "bpe_lexicon.xml").read_text(encoding="utf8").splitlines()
    # The peer indents the end of the last phoneme by 2; all others, and ours, have 4.
    idx = lines.index("  </phoneme>")
    assert lines.count("  </phoneme>") == 1 and lines[idx + 1] == "  </phoneme-inventory>"
    lines[idx] = "    </phoneme>"
    lexicon = (tmp_path / "bpe_lexicon.xml").read_text(encoding="utf8")
    assert lexicon == "\n".join(lines) + "\n"
    # To standard output, where nothing else is.
    res = _run(tmp_path, *opts, "--unk", "<unk>")
    assert res.stdout == lexicon
    assert "no BPE seq found for word 'zz'" in res.stderr and "--unk has no effect" in res.stderr
    # What it wrote is a lexicon that it reads: the phonemes are the labels, the lemmas are the words.
    (tmp_path / "again.xml.gz").write_bytes(gzip.compress(lexicon.encode()))
    res = _run(tmp_path, "--bpe_vocab", "bpe_lexicon.xml", "--word_vocab", "again.xml.gz")
    assert res.stdout == lexicon


def test_words_and_special_words() -> None:
    labels = ["<s>", "a@@", "b", "ab", "[x]"]
    words = ["Ab", "ab", "<s>", "[x]", "[y]", "", "ab"]
    assert list(iter_lemmas(labels, words, skip_special=True, lower_case=True)) == [
        ("ab", [["a@@", "b"], ["ab"]]),
        ("<s>", [["<s>"]]),
        ("[x]", [["[x]"]]),
    ]
    assert list(iter_lemmas(labels, words)) == [
        ("Ab", []),
        ("ab", [["a@@", "b"], ["ab"]]),
        ("<s>", [["<s>"]]),
        ("[x]", [["[x]"]]),
        ("[y]", []),
    ]


@pytest.mark.parametrize(
    ("words", "text"),
    [
        (None, "words"),
        (b"{'a': __import__('os')}", "Python dict literal"),
        (b"<?xml version='1.0'?><lexicon><", "Cannot read the lexicon"),
        (b"a\x01b\n", "cannot be written to the lexicon"),
    ],
)
def test_errors(tmp_path: Path, words: bytes | None, text: str) -> None:
    if words is not None:
        (tmp_path / "words").write_bytes(words)
    (tmp_path / "bpe").write_text("a@@\n\x01@@\nb\n" if words == b"a\x01b\n" else "a\n")
    res = _run(tmp_path, "--bpe_vocab", "bpe", "--word_vocab", "words", "--output", "out.xml", check=False)
    assert res.returncode == 1 and text in res.stderr.splitlines()[-1]
    assert not (tmp_path / "out.xml").exists()


def test_command_line(tmp_path: Path) -> None:
    assert "--word_vocab" in _run(tmp_path, "--help").stdout
    assert _run(tmp_path, "--bpe_vocab", _VOCAB, check=False).returncode == 2


def test_output_is_checked_first(tmp_path: Path) -> None:
    res = _run(tmp_path, "--bpe_vocab", "nope", "--word_vocab", "nope", "--output", "no_folder/x.xml", check=False)
    assert res.returncode == 1 and res.stdout == ""
    assert "--output: cannot write 'no_folder/x.xml'" in res.stderr and "Traceback" not in res.stderr
