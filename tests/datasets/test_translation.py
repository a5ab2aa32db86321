"""TranslationDataset and its variants, against what the peers return, and their options."""

from __future__ import annotations

import gzip
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import init_dataset
from returnn.datasets.lm import ConfusionNetworkDataset, TranslationDataset
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, UnknownSeqTagError
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch
from tests.datasets.lm_golden import PEERS, TRANSLATION, as_golden, check_bulk, in_folder, load_expected, read_by_tags

# Both peers fail with a TypeError where the option is used.
_EXCEPTIONS = {"seq_list_file"}


@pytest.mark.parametrize(
    ("peer", "name"),
    [(peer, name) for peer in PEERS for name in load_expected(TRANSLATION, peer) if name not in _EXCEPTIONS],
)
def test_golden(peer: str, name: str) -> None:
    item = load_expected(TRANSLATION, peer)[name]
    expected = item["res"]
    with in_folder(TRANSLATION):
        if isinstance(expected, str):
            with pytest.raises(DataFileError) as info:
                init_dataset(item["opts"])
            assert str(info.value).startswith(expected.partition(": ")[2])
            return
        dataset = init_dataset(item["opts"])
        assert dataset.num_outputs == expected["num_outputs"]
        assert dataset.labels == expected["labels"]
        for epoch, seqs in expected["eps"].items():
            got = read_epoch(dataset, int(epoch))
            assert as_golden(got) == [{key: seq[key] for key in seq if key != "dtypes"} for seq in seqs]
            for (_, data), seq in zip(got, seqs, strict=True):
                assert {key: str(value.dtype) for key, value in data.items()} == seq["dtypes"]
            check_bulk(dataset, int(epoch))


_OPTS: dict[str, Any] = {
    "class": "TranslationDataset",
    "path": str(TRANSLATION / "plain"),
    "file_postfix": "train",
    "unknown_label": "<UNK>",
}


def test_seq_list_file(tmp_path: Path) -> None:
    opts = {**_OPTS, "seq_list_file": str(TRANSLATION / "order.txt")}
    dataset = init_dataset(opts)
    seqs = read_epoch(dataset, 1)
    assert [tag for tag, _ in seqs] == ["line-2", "line-0", "line-0"]
    assert [data["data"].tolist() for _, data in seqs] == [[], [2, 3, 4, 5], [2, 3, 4, 5]]
    assert dataset.get_all_tags() == ["line-2", "line-0", "line-0"] and dataset.get_total_num_seqs() == 3
    check_bulk(dataset)
    assert [tag for tag, _ in read_by_tags(dataset, ["line-0", "line-2"])] == ["line-0", "line-2"]
    with pytest.raises(UnknownSeqTagError, match=r"line-1.*seq_list_file"):
        dataset.init_seq_order(epoch=1, seq_list=["line-1"])
    parts = init_dataset({**opts, "partition_epoch": 3, "seq_ordering": "sorted"})
    assert [[tag for tag, _ in read_epoch(parts, epoch)] for epoch in (1, 2, 3)] == [["line-2"], ["line-0"], ["line-0"]]
    for content in ("0\n4\n", "0\nx\n", "0\n-1\n", "0\n\n"):
        path = tmp_path / "list.txt"
        path.write_text(content)
        with pytest.raises(DataFileError, match=r"list.txt', line 2: expected a line number from 0 to 3"):
            init_dataset({**opts, "seq_list_file": str(path)}).init_seq_order(epoch=1)


def test_seq_list() -> None:
    dataset = init_dataset(_OPTS)
    assert [tag for tag, _ in read_by_tags(dataset, ["line-3", "line-1", "line-3"])] == ["line-3", "line-1", "line-3"]
    for tag in ("line-4", "line--1", "line-x", "1", "line-"):
        with pytest.raises(UnknownSeqTagError, match="line-0 to line-3"):
            dataset.init_seq_order(epoch=1, seq_list=["line-0", tag])
    dataset.init_seq_order(epoch=1, seq_order=[2, 0])
    assert dataset.get_seq_tags(range(2)) == ["line-2", "line-0"]
    assert [dataset.get_estimated_seq_length(i) for i in range(2)] == [0, 4]
    assert dataset.get_seq_length(1) == {"data": 4, "classes": 3}
    with pytest.raises(DatasetError, match="outside of the corpus"):
        dataset.init_seq_order(epoch=1, seq_order=[4])


def _corpus(tmp_path: Path, source: bytes, target: bytes = b"x\n", /, **vocabs: Any) -> dict[str, Any]:
    """:return: options. :param vocabs: data, default a to c"""
    (tmp_path / "source.t").write_bytes(source)
    (tmp_path / "target.t").write_bytes(target)
    defaults = {"source": {"a": 0, "b": 1, "c": 2, "<U>": 3}, "target": {"x": 0, "y": 1}}
    for name, vocab in {**defaults, **vocabs}.items():
        (tmp_path / f"{name}.vocab.pkl").write_bytes(pickle.dumps(vocab))
    return {"class": "TranslationDataset", "path": str(tmp_path), "file_postfix": "t"}


@pytest.mark.parametrize(
    ("source", "target", "match"),
    [
        (b"a\nb d\n", b"x\ny\n", r"source.t, line 2: Can not handle unknown token without unknown_label: 'd'"),
        (b"a\nb\n", b"x\n", r"same number of lines, but .*source.t' has 2, .*target.t' has 1"),
        (b"a\n\xff\n", b"x\nx\n", r"source.t, line 2: the text is not UTF-8"),
        (b"", b"", "no sequences"),
    ],
)
def test_broken_text(source: bytes, target: bytes, match: str, tmp_path: Path) -> None:
    dataset = init_dataset(_corpus(tmp_path, source, target))
    for _ in range(2):  # in the thread of the caller, and each time
        with pytest.raises(DatasetError, match=match):
            dataset.init_seq_order(epoch=1)


def test_broken_gz(tmp_path: Path) -> None:
    opts = _corpus(tmp_path, b"")
    (tmp_path / "source.t").unlink()
    (tmp_path / "source.t.gz").write_bytes(gzip.compress(b"a\n" * 10_000)[:-8])
    with pytest.raises(DataFileError, match="source.t.gz"):
        init_dataset(opts).init_seq_order(epoch=1)


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


@pytest.mark.parametrize(
    ("vocab", "match"),
    [
        (["a"], "got list"),
        ({}, "non-empty"),
        ({"a": 0, "b": 2}, r"1 indices below the largest one .2. have no word, e.g. \[1\]"),
        ({"a": "0"}, "expected word"),
        ({0: 0}, "expected word"),
    ],
)
def test_broken_vocab(vocab: Any, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=match):
        init_dataset(_corpus(tmp_path, b"a\n", source=vocab))


def test_vocab_runs_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    with pytest.raises(DataFileError, match=r"source.vocab.pkl"):
        init_dataset(_corpus(tmp_path, b"a\n", source={"a": 0, "b": _Evil(made)}))
    assert not made.exists()


def test_missing_vocab(tmp_path: Path) -> None:
    opts = _corpus(tmp_path, b"a\n")
    (tmp_path / "target.vocab.pkl").unlink()
    with pytest.raises(DataFileError, match=r"Vocab file not found: '.*target.vocab.pkl'.*source.vocab.pkl"):
        init_dataset(opts)
    assert len(read_epoch(init_dataset({**opts, "source_only": True}), 1)) == 1


def test_unknown_label(tmp_path: Path) -> None:
    opts = _corpus(tmp_path, b"a d\n")
    unknown_label = {"data": "<U>"}
    dataset = init_dataset({**opts, "unknown_label": unknown_label})
    assert as_golden(read_epoch(dataset, 1)) == [{"tag": "line-0", "data": [0, 3], "classes": [0]}]
    assert unknown_label == {"data": "<U>"}  # not changed
    with pytest.raises(DataFileError, match=r"unknown_label: '<U>' of data key 'classes'"):
        init_dataset({**opts, "unknown_label": "<U>"})
    with pytest.raises(DatasetOptionError, match=r"unknown data keys \['source'\]"):
        init_dataset({**opts, "unknown_label": {"source": "<U>"}})


_FACTORS: dict[str, Any] = {
    "class": "TranslationFactorsDataset",
    "path": str(TRANSLATION / "factors"),
    "file_postfix": "train",
    "unknown_label": {"data": "<UNK>", "classes": "<UNK>"},
    "source_factors": "source_casing",
    "target_factors": ["target_casing", "target_num"],
}


def test_wrong_factors(tmp_path: Path) -> None:
    opts = _corpus(tmp_path, b"a|u\na|u b\n", b"x\nx\n", case={"u": 0, "l": 1})
    dataset = init_dataset({**opts, "class": "TranslationFactorsDataset", "source_factors": ["case"]})
    with pytest.raises(
        DataFileError, match=r"source.t, line 2: All words must have all factors. Expected: data\|case, got 'b'"
    ):
        dataset.init_seq_order(epoch=1)
    (tmp_path / "source.t").write_bytes(b"a_u\n\n")
    dataset = init_dataset(
        {**opts, "class": "TranslationFactorsDataset", "source_factors": ["case"], "factor_separator": "_"}
    )
    assert as_golden(read_epoch(dataset, 1))[0] == {"tag": "line-0", "data": [0], "case": [0], "classes": [0]}


def _confusion_network(tmp_path: Path, **opts: Any) -> dict[str, Any]:
    text = b"__ALT__ a|0.75__b|0.25 c|1.0\nplain a b\n\n__ALT__ a|0.5__b|0.25__c|0.125\n"
    base = _corpus(tmp_path, text, b"x\ny x\nx\ny\n")
    return {**base, "class": "ConfusionNetworkDataset", "unknown_label": {"sparse_inputs": "<U>"}, **opts}


def test_confusion_network(tmp_path: Path) -> None:
    dataset = init_dataset(_confusion_network(tmp_path, max_density=2))
    seqs = read_epoch(dataset, 1)
    assert [data["sparse_inputs"].tolist() for _, data in seqs] == [
        [[0, 1], [2, 0]],
        [[3, 0], [0, 0], [1, 0]],
        [],
        [[0, 1]],
    ]
    assert [data["sparse_weights"].tolist() for _, data in seqs] == [
        [[0.75, 0.25], [1, 0]],
        [[1, 0], [1, 0], [1, 0]],
        [],
        [[0.5, 0.25]],
    ]
    assert seqs[2][1]["sparse_inputs"].shape == (0, 2) and seqs[0][1]["classes"].tolist() == [0]
    assert dataset.is_data_sparse("sparse_inputs") and not dataset.is_data_sparse("sparse_weights")
    assert dataset.get_data_dim("sparse_inputs") == 4
    check_bulk(dataset)


def test_confusion_network_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DatasetOptionError, match="unknown_label"):
        init_dataset(_confusion_network(tmp_path, unknown_label=None))
    with pytest.raises(DatasetOptionError, match="max_density"):
        init_dataset(_confusion_network(tmp_path, max_density=0))
    opts = _confusion_network(tmp_path)
    for word in ("a", "a|x", "|1", "a|1__b", "a|nan"):
        (tmp_path / "source.t").write_text(f"a\n__ALT__ {word}\n\n\n")
        with pytest.raises(DataFileError, match="source.t, line 2: expected words and weights"):
            init_dataset(opts).init_seq_order(epoch=1)


@pytest.mark.slow
@pytest.mark.parametrize(
    "opts",
    [
        {**_OPTS, "seq_ordering": "random"},
        {**_OPTS, "seq_list_file": str(TRANSLATION / "order.txt"), "search_without_reference": True},
        {**_FACTORS, "seq_ordering": "sorted_reverse"},
    ],
)
def test_everyday_use(opts: dict[str, Any]) -> None:
    check_everyday_use(opts)


def test_jump(tmp_path: Path) -> None:
    check_jump({**_FACTORS, "seq_ordering": "random"})
    check_jump(_confusion_network(tmp_path, seq_ordering="random"))


@pytest.mark.slow
def test_everyday_use_confusion_network(tmp_path: Path) -> None:
    check_everyday_use(_confusion_network(tmp_path, seq_ordering="random"))


def test_cached_only_once_and_small(tmp_path: Path) -> None:
    """Two flat arrays; nothing is read in the constructor, so that a process which only asks for the dims is quick."""
    opts = _corpus(tmp_path, b"a b c\n" * 1000, b"x\n" * 1000)
    dataset = init_dataset(opts)
    assert isinstance(dataset, TranslationDataset) and not isinstance(dataset, ConfusionNetworkDataset)
    with pytest.raises(NotImplementedError):
        dataset.get_total_num_seqs(fast=True)
    dataset.init_seq_order(epoch=1)
    for name in ("source.t", "target.t"):
        (tmp_path / name).unlink()
    dataset.init_seq_order(epoch=2)
    data = dataset.read_seqs(numpy.arange(1000), ["data", "classes"])
    assert data is not None
    assert data["data"].flat.dtype == numpy.int32 and len(data["data"].flat) == 3000
