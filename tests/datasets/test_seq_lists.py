"""Sequence list and length files: all forms, and that no code of a file is run."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import pytest

from returnn.datasets.basic import Dataset
from returnn.datasets.seq_lists import load_seq_lens_file, load_seq_list_file

TAGS = ["a/b", "c d", "ü"]


class Evil:
    """Runs code when unpickled without restriction."""

    def __reduce__(self) -> Any:
        return os.mkdir, ("evil-was-here",)


@pytest.mark.parametrize("name", ["l.txt", "l", "l.gz", "l.txt.gz", "l.pkl", "l.pkl.gz"])
def test_list_forms(tmp_path: Path, name: str) -> None:
    data = pickle.dumps(TAGS) if ".pkl" in name else ("\n".join(TAGS) + "\n").encode("utf8")
    path = tmp_path / name
    path.write_bytes(gzip.compress(data) if name.endswith(".gz") else data)
    assert load_seq_list_file(str(path)) == TAGS
    assert Dataset(seq_list_filter_file=str(path)).seq_tags_filter == set(TAGS)


def test_list_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("evil.pkl").write_bytes(pickle.dumps([Evil()]))
    Path("dict.pkl").write_bytes(pickle.dumps({"a": ["x"]}))
    Path("no.gz").write_bytes(b"abc")
    Path("latin1").write_bytes(b"\xff\xfe\xfa")
    for name, text in [
        ("missing.txt", "missing.txt.*does not exist"), ("evil.pkl", "evil.pkl.*mkdir"), ("dict.pkl", "list of tags, got dict"),
        ("no.gz", "no.gz"), ("latin1", "UTF-8"),
    ]:  # fmt: skip
        with pytest.raises(OSError, match=text):
            load_seq_list_file(name)
    assert not Path("evil-was-here").exists()
    assert load_seq_list_file("dict.pkl", expect_list=False) == {"a": ["x"]}
    with pytest.raises(OSError, match="missing.txt"):
        Dataset(seq_list_filter_file="missing.txt")


LENS: dict[str, float] = {"a/b": 3, "it's": 7, "ü": 2.5}


@pytest.mark.parametrize(
    "text",
    [
        repr(LENS),
        json.dumps(LENS),
        "{\n" + "".join(f"{k!r}: {v},\n" for k, v in LENS.items()) + "}\n",
        f"\n {LENS!r} \n",
    ],
)
@pytest.mark.parametrize("name", ["lens.txt", "lens.gz"])
def test_lens_forms(tmp_path: Path, text: str, name: str) -> None:
    path = tmp_path / name
    path.write_bytes(gzip.compress(text.encode("utf8")) if name.endswith(".gz") else text.encode("utf8"))
    assert load_seq_lens_file(str(path)) == LENS


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("{'a': __import__('os').mkdir('evil-was-here')}", "neither a Python literal nor JSON"),
        ("[1, 2]", "must hold a dict"),
        ("{'a': 'b'}", "'a': 'b'"),
        ("{'a': True}", "'a': True"),
        ("{3: 4}", "3: 4"),
        ("{'a': 3", "neither"),
        ("", "neither"),
    ],
)
def test_lens_errors(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, error: str) -> None:
    monkeypatch.chdir(tmp_path)
    Path("lens.txt").write_text(text)
    with pytest.raises(OSError, match=error) as exc_info:
        load_seq_lens_file("lens.txt")
    assert "lens.txt" in str(exc_info.value)
    assert not Path("evil-was-here").exists()
