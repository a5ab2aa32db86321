"""TextDictDataset, against what the peer returns, and its mistakes."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from typing import Any

import pytest

from returnn.datasets.basic import init_dataset
from returnn.datasets.text_dict import TextDictDataset
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, UnknownSeqTagError
from tests.datasets.everyday_use import check_everyday_use, read_epoch
from tests.datasets.lm_golden import LM, as_golden, check_bulk, in_folder, load_expected, read_by_tags

_ITEMS = {name: item for name, item in load_expected(LM, "main").items() if name.startswith("TextDict")}


@pytest.mark.parametrize("name", _ITEMS)
def test_golden(name: str) -> None:
    item = _ITEMS[name]
    with in_folder(LM):
        dataset = init_dataset(item["opts"])
        if isinstance(item["res"], str):
            # The same sentence, but for the name of the dataset.
            sentence = re.search(r"expected .*", item["res"])
            assert sentence
            with pytest.raises(AssertionError, match=re.escape(sentence[0])) as info:
                dataset.init_seq_order(epoch=1)
            assert "utt/1" in str(info.value) and "dict_single.txt" in str(info.value)
            return
        seqs = read_epoch(dataset, 1)
    assert list(dataset.get_data_keys()) == item["keys"]
    for got, seq, (_, data) in zip(as_golden(seqs), item["res"], seqs, strict=True):
        if "scores" in got:
            got["scores"] = [str(score) for score in got["scores"]]
        assert got == {key: seq[key] for key in seq if key != "dtypes"}
        assert {key: str(value.dtype) for key, value in data.items()} == seq["dtypes"]


_OPTS: dict[str, Any] = {
    "class": "TextDictDataset",
    "filename": str(LM / "dict_nbest.txt"),
    "vocab": {"class": "Utf8ByteTargets"},
}


def test_bulk(monkeypatch: pytest.MonkeyPatch) -> None:
    dataset = init_dataset({**_OPTS, "seq_ordering": "sorted"})
    check_bulk(dataset)
    check_bulk(init_dataset({**_OPTS, "filename": str(LM / "dict_single.txt"), "item_format": "single"}))
    monkeypatch.setattr("returnn.datasets.text_dict._MAX_BULK_BYTES", 3)
    assert not dataset.supports_bulk() and dataset.get_epoch_seq_lens("data") is None


def test_seq_list() -> None:
    dataset = init_dataset(_OPTS)
    seqs = read_by_tags(dataset, ["utt/2", "utt/1", "utt/2"])
    assert [(tag, data["data_seq_lens"].tolist()) for tag, data in seqs] == [
        ("utt/2", [3, 0]),
        ("utt/1", [5, 5]),
        ("utt/2", [3, 0]),
    ]
    with pytest.raises(UnknownSeqTagError, match="utt/3"):
        dataset.init_seq_order(epoch=1, seq_list=["utt/3"])
    assert dataset.get_all_tags() == ["utt/1", "utt/2"] and dataset.get_total_num_seqs() == 2
    dataset.init_seq_order(epoch=1)
    assert [dataset.get_estimated_seq_length(i) for i in range(2)] == [10, 3]
    assert [dataset.is_data_sparse(key) for key in dataset.get_data_keys()] == [True, True, False, False]
    assert [dataset.get_data_dtype(key) for key in dataset.get_data_keys()] == ["int32", "int32", "int32", "float32"]


def _read(tmp_path: Path, text: str, **opts: Any) -> list[dict[str, Any]]:
    path = tmp_path / "dict.txt"
    path.write_text(text)
    return as_golden(read_epoch(init_dataset({**_OPTS, "filename": str(path), **opts}), 1))


def test_best_is_the_first_maximum(tmp_path: Path) -> None:
    text = "{'a': [(-2, 'x'), (-1, 'y'), (-1.0, 'z')], 'b': [(nan, 'x'), (1.0, 'y')], 'c': [(np.float64(1), 'x')]}"
    seqs = _read(tmp_path, text)
    assert ["".join(map(chr, seq["data"])) for seq in seqs] == ["y", "x", "x"]
    assert seqs[0]["scores"] == [-2, -1, -1]


@pytest.mark.parametrize(
    ("text", "item_format", "match"),
    [
        ("{'a': 'x'}", "list_with_scores", "expected list .*got 'x'.*'a'"),
        ("{'a': [(1.0, 'x')]}", "single", r"expected str .*'a'.*item_format='single'"),
        ("{'b': 'x', 'a': 1}", "single", "expected str .*got 1.*'a'"),
        ("{'a': []}", "list_with_scores", r"at least one text .*got \[\].*'a'"),
        ("{'a': ['x']}", "list_with_scores", r"expected \(score, text\)"),
        ("{'a': [[1.0, 'x']]}", "list_with_scores", r"expected \(score, text\)"),
        ("{'a': [('x', 1.0)]}", "list_with_scores", "expected float as score"),
        ("{'a': [(1.0, 2)]}", "list_with_scores", "expected str as text"),
        ("{}", "single", "is empty"),
        ("['a']", "single", "got list"),
        ("{'a': 'x',\n'b': open('/nonexistent')}", "single", "dict.txt, line 2"),
    ],
)
def test_mistakes(text: str, item_format: str, match: str, tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=match):
        _read(tmp_path, text, item_format=item_format)


def test_options(tmp_path: Path) -> None:
    with pytest.raises(DatasetOptionError, match="item_format"):
        init_dataset({**_OPTS, "item_format": "list"})
    with pytest.raises(DataFileError, match="nofile"):
        init_dataset({**_OPTS, "filename": "nofile"}).init_seq_order(epoch=1)
    vocab = Vocabulary(None, labels=["a"], unknown_label=None)
    with pytest.raises(DatasetError, match=r"'t2' of .*dict.txt': text 'a b' is not in the vocabulary"):
        _read(tmp_path, "{'t1': 'a', 't2': 'a b'}", item_format="single", vocab=vocab)
    path = tmp_path / "d.gz"
    path.write_bytes(gzip.compress(b"{'t': 'a'}"))
    dataset = TextDictDataset(filename=str(path), item_format="single", vocab=vocab)
    assert as_golden(read_epoch(dataset, 1)) == [{"tag": "t", "data": [0]}]


@pytest.mark.slow
@pytest.mark.parametrize("name", ["dict_nbest.txt", "dict_single.txt"])
def test_everyday_use(name: str) -> None:
    item_format = "single" if "single" in name else "list_with_scores"
    check_everyday_use({**_OPTS, "filename": str(LM / name), "item_format": item_format, "seq_ordering": "random"})


@pytest.mark.slow
def test_everyday_use_with_random_draws() -> None:
    vocab = {
        "class": "SamplingBytePairEncoding",
        "vocab_file": str(LM.parent / "vocab" / "demo.vocab"),
        "breadth_prob": 0.5,
        "unknown_label": "<unk>",
    }
    check_everyday_use({**_OPTS, "vocab": vocab}, random_draws=True)
