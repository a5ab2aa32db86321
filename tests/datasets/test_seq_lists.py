"""Sequence list and length files: all forms, and that no code of a file is run."""

from __future__ import annotations

import gzip
import json
import os
import pickle
from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest

from returnn.datasets import init_dataset
from returnn.datasets.basic import Dataset
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.hdf import SimpleHDFWriter
from returnn.datasets.seq_lists import load_seq_lens_file, load_seq_list_file
from returnn.errors import DatasetError

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


def test_check_corpus_finds_mistakes_before_the_first_epoch(tmp_path: Path) -> None:
    good = str(tmp_path / "good.hdf")
    with SimpleHDFWriter(good, dim=2) as writer:
        writer.insert_batch(numpy.zeros((2, 3, 2), dtype="float32"), [3, 2], ["a", "b"])
    empty = str(tmp_path / "empty.hdf")
    with h5py.File(empty, "w") as f:
        f["inputs"] = numpy.zeros((0, 2), dtype="float32")
        f["seqLengths"] = numpy.zeros((0, 2), dtype="int32")
        f["seqTags"] = numpy.zeros(0, dtype="S1")
    other_tags = tmp_path / "other.txt"
    other_tags.write_text("x\ny\n")
    lens = tmp_path / "lens.txt"
    lens.write_text("{'a': 3}")

    def _child(**opts: Any) -> dict[str, Any]:
        return {"class": "HDFDataset", "files": [good], **opts}

    def _meta(child: dict[str, Any], **opts: Any) -> dict[str, Any]:
        return {"class": "MetaDataset", "datasets": {"c": child}, "data_map": {"data": ("c", "data")}, **opts}

    def _check(opts: dict[str, Any]) -> None:
        init_dataset(opts, default_kwargs={"name": "dev"}).check_corpus()

    filtered = {"seq_list_filter_file": str(other_tags)}
    wrong_lens = {"seq_ordering": "sorted", "seq_order_seq_lens_file": str(lens)}
    for opts, words in (
        (_child(files=[empty]), "no sequences .*'dev'.*empty.hdf"),
        (_child(**filtered), r"'dev'.* empty after applying seq_list_filter_file .*other.txt"),
        (_child(**wrong_lens), r"'dev'.*lens.txt' has no length for 1 of 2 tags, e.g. \['b'\]"),
        (_meta(_child(**filtered), seq_order_control_dataset="c"), "'dev_c'.* empty after applying"),
        (_meta(_child(), **filtered), "'dev'.* empty after applying"),
        (_meta(_child(), **wrong_lens), "'dev'.* has no length"),
    ):
        with pytest.raises(DatasetError, match=words):
            _check(opts)
    _check(_child(**wrong_lens | {"seq_ordering": "random"}))  # not read then
    _check(
        _child(partition_epoch=2, seq_list_filter_file=_list_file(tmp_path, ["b"]))
    )  # the part of epoch 1 may be empty
    _check({"class": "Task12AXDataset"})

    class LateCount(CachedDataset2):
        def get_total_num_seqs(self, *, fast: bool = False) -> int:
            return 0  # before the first epoch

    LateCount().check_corpus()


def _list_file(folder: Path, tags: list[str]) -> str:
    """:return: name of a list file"""
    path = folder / "tags.txt"
    path.write_text("\n".join(tags))
    return str(path)


def test_wrong_types_of_options_end_in_a_sentence() -> None:
    for opts, words in (
        ({"fixed_random_seed": "x"}, '"fixed_random_seed" is invalid.*dev'),
        ({"random_seed_offset": 1.5}, '"random_seed_offset" is invalid.*dev'),
        ({"fixed_random_seed": -3, "seq_ordering": "random"}, "seed of the epoch is out of range.*dev.*got -3"),
        ({"random_seed_offset": 2**32, "seq_ordering": "laplace:2"}, "seed of the epoch is out of range"),
        ({"seq_list_filter_file": 3}, "name of the sequence list file must be a str, got 3"),
        ({"seq_ordering": lambda epoch, **_: 3}, "seq_ordering function must return a str, got 3"),
    ):
        with pytest.raises(DatasetError, match=words):
            dataset = Dataset(name="dev", **opts)  # type: ignore[arg-type]
            dataset.get_seq_order_for_epoch(1, 5, lambda i: i)
