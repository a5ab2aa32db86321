"""LmDataset, against what the peers return, and its options."""

from __future__ import annotations

import gzip
import json
import pickle
import tracemalloc
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.lm import LmDataset, _is_bliss, _iter_bliss, _iter_txt, iter_corpus, read_corpus
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, UnknownSeqTagError
from tests.datasets.everyday_use import check_everyday_use, read_epoch
from tests.datasets.lm_golden import LM, PEERS, as_golden, check_bulk, in_folder, load_expected, read_by_tags

# Items with other results here, and why. Spec 05, section 4.1.
_EXCEPTIONS = {
    ("mini", "orth_symbols_file_only"): "never worked there",
    ("mini", "odd"): "skips the line '</s>'",
    ("mini", "odd_sorted"): "likewise",
    ("mini", "both_files"): "ignores one of the two files",
    ("main", "odd"): "keeps blank lines",
    ("main", "odd_sorted"): "likewise, and sorts by bytes of the unstripped line",
    ("main", "word_skip"): "crashes at the end",
    ("main", "phone_oov_skip"): "likewise",
    ("main", "latin1"): "no Latin-1",
    ("main", "nonl"): "loses the last line without newline",
}
# main has uint8 for 129 to 256 labels, mini int32, which torch takes as indices.
_OTHER_DTYPE = {"orth_vocab", "seq_list_file", "seq_list_file_list", "post"}

_LM_ITEMS = [
    (peer, name)
    for peer in PEERS
    for name, item in load_expected(LM, peer).items()
    if isinstance(item, dict) and isinstance(item.get("opts"), dict) and item["opts"]["class"] == "LmDataset"
]


@pytest.mark.parametrize(("peer", "name"), [item for item in _LM_ITEMS if item not in _EXCEPTIONS])
def test_golden(peer: str, name: str) -> None:
    item = load_expected(LM, peer)[name]
    expected = item["res"]
    with in_folder(LM):
        if isinstance(expected, str):
            message = expected.partition(": ")[2]
            with pytest.raises((DatasetError, DatasetOptionError)) as info:
                read_epoch(init_dataset(item["opts"]), 1)
            assert message in str(info.value)
            return
        dataset = init_dataset(item["opts"])
        for epoch, seqs in expected["eps"].items():
            if item["seq_list"]:
                got = read_by_tags(dataset, item["seq_list"])
            else:
                got = read_epoch(dataset, int(epoch))
            assert as_golden(got) == seqs
    assert dataset.get_data_dtype("data") == ("int32" if name in _OTHER_DTYPE else expected["dtype"])
    assert dataset.get_data_dim("data") == expected["dim"]
    assert list(dataset.labels["data"])[: len(expected["labels"])] == expected["labels"]
    assert sorted(dataset.get_data_keys()) == sorted(expected["keys"])


def _read(epoch: int = 1, **opts: Any) -> list[dict[str, Any]]:
    with in_folder(LM):
        return as_golden(read_epoch(init_dataset({"class": "LmDataset", **opts}), epoch))


_WORDS: dict[str, Any] = {"word_based": True, "orth_symbols_file": "words.syms"}


def test_exceptions() -> None:
    opts = {**_WORDS, "auto_replace_unknown_symbol": True}
    seqs = _read(corpus_file="odd.txt", **opts)
    assert seqs == [
        {"tag": f"line-{i}", "data": data} for i, data in enumerate([[4, 0], [1, 0], [5, 5, 0], [1, 1, 0], [6, 0]])
    ]
    by_chars = _read(corpus_file="odd.txt", seq_ordering="sorted", **opts)
    assert [seq["tag"] for seq in by_chars] == ["line-1", "line-4", "line-0", "line-3", "line-2"]
    assert [seq["data"] for seq in _read(corpus_file="nonl.txt", **_WORDS)] == [[4, 0], [5, 0]]
    latin1 = _read(corpus_file="latin1.txt", orth_symbols_file="chars.syms", auto_replace_unknown_symbol=True)
    assert latin1 == load_expected(LM, "mini")["latin1"]["res"]["eps"]["1"]
    with pytest.raises(DatasetOptionError, match="only one of the options orth_symbols_file, orth_symbols_map_file"):
        _read(corpus_file="corpus.txt", orth_symbols_map_file="words.map", **_WORDS)


def test_skipped_seqs_at_every_place() -> None:
    """The number of sequences is not known before; the end comes also after a skipped last one."""
    opts = {"corpus_file": ["phon_oov.txt", "phon.txt", "phon_oov.txt"], "error_on_invalid_seq": False}
    for ordering in ("default", "reverse", "random", "sorted"):
        with in_folder(LM):
            dataset = init_dataset({"class": "LmDataset", **opts, **_WORDS, "seq_ordering": ordering})
            for epoch in (1, 2):
                seqs = read_epoch(dataset, epoch)
                assert sorted(tag for tag, _ in seqs) == ["line-1", "line-2", "line-6"], ordering
                assert dataset.num_seqs == 3
            dataset.init_seq_order(epoch=1)
            with pytest.raises(NotImplementedError):
                dataset.num_seqs  # noqa: B018


def test_given_order_does_not_skip() -> None:
    with in_folder(LM):
        dataset = init_dataset(
            {"class": "LmDataset", "corpus_file": "corpus.txt", "error_on_invalid_seq": False, **_WORDS}
        )
        assert [tag for tag, _ in read_by_tags(dataset, ["line-3", "line-0", "line-3"])] == [
            "line-3",
            "line-0",
            "line-3",
        ]
        with pytest.raises(DatasetError, match=r"missing orth symbol 'käse'.*'line-2', corpus.txt, line 4"):
            read_by_tags(dataset, ["line-3", "line-2"])
        with pytest.raises(UnknownSeqTagError, match=r"2 of 3 tags.*line-4.*line-0 to line-3"):
            dataset.init_seq_order(epoch=1, seq_list=["line-0", "line-4", "seg"])
        with pytest.raises(DatasetError, match="outside of the corpus"):
            dataset.init_seq_order(epoch=1, seq_order=[0, 4])
        assert len(read_epoch(dataset, 1)) == 3  # and it skips again


@pytest.mark.parametrize(
    "opts",
    [
        {"corpus_file": "corpus.txt", "auto_replace_unknown_symbol": True, **_WORDS},
        {"corpus_file": "corpus.txt", "auto_replace_unknown_symbol": True, "add_delayed_seq_data": True, **_WORDS},
        {
            "corpus_file": ["corpus.txt.gz", "corpus.xml"],
            "seq_end_symbol": None,
            "skip_empty_lines": False,
            "add_delayed_seq_data": True,
            "auto_replace_unknown_symbol": True,
            "seq_ordering": "laplace:.2",
            "partition_epoch": 2,
            **_WORDS,
        },
        {"corpus_file": "corpus.txt", "orth_vocab": {"class": "Utf8ByteTargets"}, "seq_list_file": "tags.txt"},
    ],
)
def test_bulk(opts: dict[str, Any]) -> None:
    with in_folder(LM):
        dataset = init_dataset({"class": "LmDataset", **opts})
        for epoch in (1, 2):
            check_bulk(dataset, epoch)


def test_no_bulk_for_large_random_or_skipped(monkeypatch: pytest.MonkeyPatch) -> None:
    def supports_bulk(**opts: Any) -> bool:
        dataset = init_dataset({"class": "LmDataset", **opts})
        dataset.init_seq_order(epoch=1)
        assert (dataset.get_epoch_seq_lens("data") is not None) == dataset.supports_bulk()
        assert (dataset.read_seqs(numpy.array([0]), ["data"]) is not None) == dataset.supports_bulk()
        return dataset.supports_bulk()

    words = {**_WORDS, "auto_replace_unknown_symbol": True, "corpus_file": "corpus.txt"}
    with in_folder(LM):
        assert supports_bulk(**words)
        assert not supports_bulk(**words, error_on_invalid_seq=False)
        assert not supports_bulk(corpus_file="phon.txt", phone_info={"lexicon_file": "lexicon.xml"})
        monkeypatch.setattr("returnn.datasets._lm.lm_dataset._MAX_BULK_BYTES", 10)
        assert not supports_bulk(**words)


def _opts(**opts: Any) -> dict[str, Any]:
    """:return: with absolute file names"""

    def absolute(value: Any) -> Any:
        if isinstance(value, str) and (LM / value).is_file():
            return str(LM / value)
        if isinstance(value, dict):
            return {key: absolute(item) for key, item in value.items()}
        return [absolute(item) for item in value] if isinstance(value, list) else value

    return {"class": "LmDataset", **absolute(opts)}


@pytest.mark.slow
@pytest.mark.parametrize(
    "opts",
    [
        _opts(corpus_file="corpus.txt", auto_replace_unknown_symbol=True, seq_ordering="random", **_WORDS),
        _opts(corpus_file="corpus.txt", error_on_invalid_seq=False, seq_ordering="random", **_WORDS),
    ],
)
def test_everyday_use(opts: dict[str, Any]) -> None:
    check_everyday_use(opts)


@pytest.mark.slow
@pytest.mark.parametrize(
    "opts",
    [
        _opts(corpus_file="phon.txt", phone_info={"lexicon_file": "lexicon.xml"}, add_random_phone_seqs=1),
        _opts(
            corpus_file=["phon.txt", "corpus.xml"],
            orth_vocab={
                "class": "SamplingBytePairEncoding",
                "vocab_file": str(LM.parent / "vocab" / "demo.vocab"),
                "breadth_prob": 0.5,
                "unknown_label": "<unk>",
            },
        ),
    ],
)
def test_everyday_use_with_random_draws(opts: dict[str, Any]) -> None:
    check_everyday_use({**opts, "seq_ordering": "random"}, random_draws=True)


def test_random_state_per_seq() -> None:
    opts = _opts(corpus_file="phon.txt", phone_info={"lexicon_file": "lexicon.xml", "repetition": 0.5})
    whole = as_golden(read_epoch(init_dataset({**opts, "random_state_per_seq": True}), 1))
    dataset = init_dataset({**opts, "random_state_per_seq": True})
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(2, 3)  # without the others before
    assert dataset.get_data(2, "data").tolist() == whole[2]["data"]
    stream = as_golden(read_epoch(init_dataset({**opts, "random_state_per_seq": False}), 1))
    assert stream == as_golden(read_epoch(init_dataset(opts), 1)) != whole
    by_loader = init_dataset({**opts, "random_state_per_seq": False})
    by_loader.set_random_per_seq(True)
    assert as_golden(read_epoch(by_loader, 1)) == stream


# ---- options


def test_orth_vocab_object_and_unknown() -> None:
    vocab = Vocabulary(None, labels=["Hello", "world", "next"], unknown_label=None)
    opts = {"class": "LmDataset", "corpus_file": str(LM / "corpus.txt"), "orth_vocab": vocab}
    with pytest.raises(DatasetError, match=r"'next   line \[noise\]', missing in orth_vocab.*line-1.*unknown_label"):
        read_epoch(init_dataset(opts), 1)
    dataset = init_dataset({**opts, "error_on_invalid_seq": False})
    assert as_golden(read_epoch(dataset, 1)) == [{"tag": "line-0", "data": [0, 1]}]
    assert as_golden(read_epoch(pickle.loads(pickle.dumps(dataset)), 1)) == [{"tag": "line-0", "data": [0, 1]}]


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        ({}, "need orth_vocab or orth_symbols_file or orth_symbols_map_file or phone_info"),
        ({"orth_vocab": {"class": "Utf8ByteTargets"}, "phone_info": {}}, "only one of .* orth_vocab, phone_info"),
        ({"orth_vocab": {"class": "Utf8ByteTargets"}, "parse_orth_opts": {"prefix": ["x"]}}, "have no meaning"),
        ({**_WORDS, "add_random_phone_seqs": 1}, "needs phone_info"),
        ({**_WORDS, "dtype": "float32"}, "dtype"),
        ({"orth_vocab": {"class": "Utf8ByteTargets"}, "dtype": "int8"}, "an integer type for 256 labels"),
        ({**_WORDS, "add_delayed_seq_data": True, "delayed_seq_data_start_symbol": "x"}, "'x' is not one of the 8"),
        ({**_WORDS, "orth_post_process": "lower"}, "no text cleaner 'lower'"),
    ],
)
def test_invalid_options(opts: dict[str, Any], match: str) -> None:
    with in_folder(LM), pytest.raises(DatasetOptionError, match=match) as info:
        LmDataset(corpus_file="corpus.txt", **opts)
    assert isinstance(info.value, (ValueError, AssertionError))


def test_unknown_symbol_must_be_known() -> None:
    with pytest.raises(DatasetOptionError, match=r"unknown_symbol '\?' is not one of the 8"):
        _read(corpus_file="corpus.txt", auto_replace_unknown_symbol=True, unknown_symbol="?", **_WORDS)


def test_logs_are_limited(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    corpus = tmp_path / "c.txt"
    corpus.write_text("".join(f"x{i} Hello\n" for i in range(30)))
    _read(corpus_file=str(corpus), auto_replace_unknown_symbol=True, log_auto_replace_unknown_symbols=3, **_WORDS)
    out = capsys.readouterr().out
    assert out.count("is replaced by") == 3
    assert out.count("LmDataset: will stop logging about auto-replace with unknown symbol now") == 1
    _read(corpus_file=str(corpus), error_on_invalid_seq=False, log_skipped_seqs=2, **_WORDS)
    out = capsys.readouterr().out
    assert out.count("skipping sequence") == 2 and out.count("reached end, skipped 30 sequences") == 1


def test_corpus_file_forms() -> None:
    expected = _read(corpus_file="nonl.txt", **_WORDS)
    assert _read(corpus_file=lambda: "nonl.txt", **_WORDS) == expected
    assert _read(corpus_file=lambda: ["nonl.txt"], **_WORDS) == expected
    assert _read(corpus_file=Path("nonl.txt"), **_WORDS) == expected
    assert [seq["tag"] for seq in _read(corpus_file=["nonl.txt", "nonl.txt"], tag_prefix="x", **_WORDS)] == [
        "x0", "x1", "x2", "x3",
    ]  # fmt: skip


def test_seq_list_files(tmp_path: Path) -> None:
    first, second = tmp_path / "a.pkl", tmp_path / "b.gz"
    first.write_bytes(pickle.dumps(["a", "b"]))
    second.write_bytes(gzip.compress(b"c\nd\n"))
    opts = {"corpus_file": ["nonl.txt", "nonl.txt"], **_WORDS}
    assert [seq["tag"] for seq in _read(seq_list_file=[str(first), str(second)], **opts)] == ["a", "b", "c", "d"]
    with pytest.raises(DataFileError, match=r"a.pkl' has 2 tags.*has 4 texts"):
        _read(seq_list_file=str(first), **opts)
    with pytest.raises(DataFileError, match="one for each of the 2 corpus files"):
        _read(seq_list_file=[str(first)] * 3, **opts)


def test_filter_file(tmp_path: Path) -> None:
    wanted = tmp_path / "wanted.txt"
    wanted.write_text("line-3\nline-0\n")
    seqs = _read(corpus_file="corpus.txt", seq_list_filter_file=str(wanted), **_WORDS)
    assert [seq["tag"] for seq in seqs] == ["line-0", "line-3"]  # and the invalid line-2 does not matter


def test_information() -> None:
    with in_folder(LM):
        dataset = init_dataset({"class": "LmDataset", "corpus_file": "corpus.txt", "seq_ordering": "sorted", **_WORDS})
        assert dataset.get_target_list() == ["data"]
        assert dataset.supports_seq_order_sorting() and dataset.have_corpus_seq_idx()
        dataset.init_seq_order(epoch=1)
        assert dataset.get_all_tags() == ["line-0", "line-1", "line-2", "line-3"]
        assert dataset.get_total_num_seqs() == dataset.num_seqs == 4
        assert [dataset.get_corpus_seq_idx(i) for i in range(4)] == [3, 0, 2, 1]
        assert [dataset.get_estimated_seq_length(i) for i in range(4)] == [4, 11, 17, 19]
        assert list(dataset.get_current_seq_order()) == [3, 0, 2, 1]
        assert dataset.serialize_data("data", numpy.array([4, 5, 0])) == "Hello world [END]"


def test_random_access() -> None:
    with in_folder(LM):
        opts = {"class": "LmDataset", "corpus_file": "corpus.txt", **_WORDS}
        dataset = init_dataset(opts)
        assert dataset.have_get_corpus_seq()
        seq = dataset.get_corpus_seq(3)
        assert (seq.seq_idx, seq.seq_tag, seq.get_data("data").tolist()) == (3, "line-3", [7, 0])
        with pytest.raises(DatasetError, match="corpus sequence 4 does not exist, there are 4"):
            dataset.get_corpus_seq(4)
        dataset = init_dataset({**opts, "error_on_invalid_seq": False})
        assert not dataset.have_get_corpus_seq()  # which ones are skipped is not known
        read_epoch(dataset, 1)
        with pytest.raises(DatasetError, match=r"missing orth symbol 'käse'.*'line-2', corpus.txt, line 4"):
            dataset.get_corpus_seq(2)
        with pytest.raises(NotImplementedError, match="positions are not known"):
            dataset.get_estimated_seq_length(0)


# ---- symbol files


class _Evil:
    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return open, (str(self.path), "w")


def test_symbol_files_run_no_code(tmp_path: Path) -> None:
    made = tmp_path / "made"
    evil = tmp_path / "evil.pkl"
    evil.write_bytes(pickle.dumps({"a": 0, "b": _Evil(made)}))
    literal = tmp_path / "evil.txt"
    literal.write_text(f"{{'a':0,'b': open({str(made)!r}, 'w')}}")
    for path in (evil, literal):
        with pytest.raises(DataFileError, match="evil"):
            _read(corpus_file="nonl.txt", orth_symbols_map_file=str(path))
    assert not made.exists()


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.syms", b"", "empty"),
        ("a.syms", b"x\ny\nx\n", "a.syms, line 3: symbol 'x' is also in line 1"),
        ("a.syms", b"x\n\xff\n", "a.syms, line 2: the text is not UTF-8"),
        ("a.map", b"x 0\ny\n", "a.map, line 2: expected '<symbol> <index>', got 'y'"),
        ("a.map", b"x 0\ny one\n", "a.map, line 2"),
        ("a.map", b"x 0\nx 1\n", "a.map, line 2: symbol 'x' was there"),
        ("a.map", b"x 1\ny 2\n", "smallest index must be 0, it is 1"),
        ("a.map", b"", "non-empty"),
        ("a.map", b"{'x':0,\n'y':z}", "a.map, line 2"),
        ("a.map", b"{'x':0,'y':-1}", "index .int >= 0., got 'y': -1"),
        ("a.pkl", pickle.dumps(["x"]), "got list"),
        ("a.pkl", b"no pickle", "a.pkl"),
    ],
)
def test_broken_symbol_files(name: str, content: bytes, match: str, tmp_path: Path) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    option = "orth_symbols_file" if name == "a.syms" else "orth_symbols_map_file"
    with pytest.raises(DataFileError, match=match):
        opts: dict[str, Any] = {option: str(path)}
        _read(corpus_file="nonl.txt", **opts)


@pytest.mark.parametrize(
    "option", ["orth_symbols_file", "orth_symbols_map_file", "orth_replace_map_file", "corpus_file"]
)
def test_missing_files(option: str) -> None:
    opts = {"corpus_file": "nonl.txt", **_WORDS, option: "nofile"}
    if option == "orth_symbols_map_file":
        del opts["orth_symbols_file"]
    with pytest.raises(DataFileError, match="nofile"):
        _read(**opts)


@pytest.mark.parametrize("content", ["[1]", '{"a": 1}', "{"])
def test_broken_replace_map(content: str, tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(content)
    with pytest.raises(DataFileError, match=r"map.json.*Expected|map.json.*expected"):
        _read(corpus_file="nonl.txt", orth_replace_map_file=str(path), **_WORDS)


def test_symbol_map_with_gap_and_shared_ids(tmp_path: Path) -> None:
    path = tmp_path / "a.map"
    path.write_text("b 0\r\na 0\r\nc 3\r\n")
    corpus = tmp_path / "c"
    corpus.write_text("a\nb c\n")
    dataset = LmDataset(corpus_file=str(corpus), orth_symbols_map_file=str(path), word_based=True, seq_end_symbol=None)
    assert dataset.labels["data"] == ["b", "<unused 1>", "<unused 2>", "c"]
    assert [seq["data"] for seq in as_golden(read_epoch(dataset, 1))] == [[0], [0, 3]]


def test_replace_map_with_comments(tmp_path: Path) -> None:
    path = tmp_path / "map.json"
    path.write_text(json.dumps({"Hello": "[noise] world"}) + " // a comment\n")
    (seq, _) = _read(corpus_file="nonl.txt", orth_replace_map_file=str(path), **_WORDS)
    assert seq["data"] == [3, 5, 0]


# ---- corpus files


def test_corpus_functions() -> None:
    with in_folder(LM):
        assert [_is_bliss(name) for name in ("corpus.xml", "corpus.xml.gz", "corpus.txt", "corpus.txt.gz", "lexicon.xml")] == [
            True, True, False, False, False,
        ]  # fmt: skip
        texts = ["Hello world", "next line", ""]
        for name in ("corpus.xml", "corpus.xml.gz"):
            assert read_corpus(name) == texts
            found: list[str] = []
            _iter_bliss(name, found.append)
            iter_corpus(name, found.append)
            assert found == texts * 2
        lines = ["Hello world", "next   line [noise]", "Hello (next) käse", "line"]
        assert read_corpus("corpus.txt") == lines
        assert read_corpus("corpus.txt.gz", skip_empty_lines=False) == [lines[0], "", *lines[1:]]
        found = []
        _iter_txt("corpus.txt", found.append)
        iter_corpus("corpus.txt", found.append, skip_empty_lines=False)
        assert found == [*lines, lines[0], "", *lines[1:]]
        for function in (_is_bliss, read_corpus):
            with pytest.raises(DataFileError, match="nofile"):
                function("nofile")


def test_broken_corpora(tmp_path: Path) -> None:
    broken = tmp_path / "a.gz"
    broken.write_bytes(gzip.compress(b"Hello\n" * 1000)[:-10])
    with pytest.raises(DataFileError, match=r"a.gz"):
        _read(corpus_file=str(broken), **_WORDS)
    xml = tmp_path / "a.xml"
    xml.write_text("<corpus name='a'><recording>")
    with pytest.raises(DataFileError, match=r"a.xml.*XML"):
        _read(corpus_file=str(xml), **_WORDS)
    empty = tmp_path / "empty.txt"
    empty.write_text("")
    with pytest.raises(DatasetError, match="no sequences"):
        _read(corpus_file=str(empty), **_WORDS)


def test_nothing_per_line_is_kept(tmp_path: Path) -> None:
    """Only two numbers per line: the text stays in the file."""

    path = tmp_path / "big.txt"
    num = 100_000
    path.write_text("Hello world next line\n" * num)
    dataset: Dataset = LmDataset(corpus_file=str(path), **{**_WORDS, "orth_symbols_file": str(LM / "words.syms")})
    tracemalloc.start()
    dataset.init_seq_order(epoch=1)
    used, _peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert dataset.num_seqs == num
    assert used < 40 * num
