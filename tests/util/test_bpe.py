"""returnn.util.bpe: golden segmentations, properties, error texts."""

from __future__ import annotations

import gzip
import json
import pickle
import tempfile
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.errors import DataFileError, DatasetError, NotSupportedError, OptionError
from returnn.util import bpe
from returnn.util._bpe import sampling, standard
from returnn.util.bpe import (
    BpeOpts,
    CharSyncSearch,
    DepthFirstSearch,
    PrefixTree,
    SamplingBytePairEncoder,
    StandardBytePairEncoder,
)
from returnn.util.literal import parse_literal

_DIR = Path(__file__).parent.parent / "golden" / "05-audio-text" / "vocab"
_GOLDEN: dict[str, dict[str, Any]] = {
    name: json.loads((_DIR / f"expected.{name}.json").read_text(encoding="utf8")) for name in ("mini", "main")
}
_VOCAB: dict[str, int] = parse_literal((_DIR / "demo.vocab").read_text(encoding="utf8"))
_PREFIX = "\u2581"


def _tree(labels: Any = _VOCAB, opts: BpeOpts | None = None) -> PrefixTree:
    tree = PrefixTree(opts=opts)
    for label in labels:
        tree.add(label)
    return tree


def _joined(pieces: Any) -> str:
    *first, last = pieces
    assert all(piece.endswith("@@") for piece in first)
    return "".join(piece[:-2] for piece in first) + last


def test_merge_symbols() -> None:
    assert bpe.BpeMergeSymbol == bpe.BpePostMergeSymbol == "@@"


@pytest.mark.parametrize("peer", ["mini", "main"])
@pytest.mark.parametrize("version", ["v1", "v2"])
@pytest.mark.parametrize("with_labels", [False, True])
def test_standard_golden(peer: str, version: str, with_labels: bool) -> None:
    encoder = StandardBytePairEncoder(str(_DIR / f"demo.{version}.codes"), labels=_VOCAB if with_labels else None)
    golden = _GOLDEN[peer][f"std_bpe_{version}_{'labels' if with_labels else 'nolabels'}"]
    assert {sentence: encoder.segment_sentence(sentence) for sentence in golden} == golden
    # Again from the cache, and after pickling.
    encoder = pickle.loads(pickle.dumps(encoder))
    assert {sentence: encoder.segment_sentence(sentence) for sentence in golden} == golden


@pytest.mark.parametrize("peer", ["mini", "main"])
def test_searches_golden(peer: str) -> None:
    tree = pickle.loads(pickle.dumps(_tree()))
    golden = _GOLDEN[peer]["CharSyncSearch"]
    assert {word: CharSyncSearch(tree, word).search() for word in golden} == golden
    golden = _GOLDEN[peer]["DepthFirst"]
    assert {word: DepthFirstSearch(tree, word).search() for word in golden} == golden


@pytest.mark.parametrize("peer", ["mini", "main"])
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_sampling_golden(peer: str, prob: float) -> None:
    rnd = numpy.random.RandomState(0)
    encoder = SamplingBytePairEncoder(list(_VOCAB), prob, rnd, unknown_label="<unk>")
    last_seed = None
    golden = _GOLDEN[peer][f"Sampling_{prob}"]
    for seed, sentence, expected in golden:
        if sentence == "ids":
            rnd.seed(seed)
            pieces = encoder.segment_sentence(golden[0][1])
            assert "+".join(str(_VOCAB[piece]) for piece in pieces) == expected
            continue
        if seed != last_seed:
            rnd.seed(seed)
            last_seed = seed
        assert encoder.segment_sentence(sentence) == expected


def test_word_prefix_golden() -> None:
    golden = _GOLDEN["main"]["Sampling_wordprefix"]
    opts = BpeOpts(word_prefix_symbol=_PREFIX)
    encoder = SamplingBytePairEncoder(golden["labels"], 0.0, numpy.random.RandomState(0), "<unk>", opts)
    assert {sentence: encoder.segment_sentence(sentence) for sentence in golden["out"]} == golden["out"]
    all_of_the = CharSyncSearch(_tree(golden["labels"], opts), "the").search()
    assert [f"{_PREFIX}the"] in all_of_the
    assert [_PREFIX, "t", "h", "e"] in all_of_the
    assert {"".join(pieces) for pieces in all_of_the} == {f"{_PREFIX}the"}
    no_start = _tree(["a"], opts)
    assert CharSyncSearch(no_start, "a").search() == []
    assert DepthFirstSearch(no_start, "a").search() is None


def test_prefix_tree_constructors_and_structure() -> None:
    root = PrefixTree()
    assert (root.prefix, root.root) == ("", root)
    child = PrefixTree("a", root)
    assert (child.prefix, child.root, child.opts) == ("a", root, root.opts)
    opts = BpeOpts(label_postfix_merge_symbol="+")
    assert PrefixTree(prefix="b", opts=opts).opts == opts
    root.add("th@@")
    root.add("@@")
    root.add("")
    node = root.arcs["t"].arcs["h"]
    assert (node.prefix, node.bpe_finished, node.finished) == ("th", True, False)
    assert (node.arcs["@@"].prefix, node.arcs["@@"].finished) == ("th@@", True)
    assert (list(root.arcs), root.finished, root.bpe_finished) == (["t"], False, False)


def test_marker_of_one_char_is_no_end_of_a_word() -> None:
    tree = _tree(["a+", "b"], BpeOpts(label_postfix_merge_symbol="+"))
    assert DepthFirstSearch(tree, "a+").search() is None
    assert CharSyncSearch(tree, "ab").search() == [["a+", "b"]]


def test_search_edge_cases() -> None:
    assert CharSyncSearch(_tree(), "").search() == []
    assert DepthFirstSearch(_tree(), "").search() is None
    assert CharSyncSearch(_tree(), "xxcat", 2).search() == CharSyncSearch(_tree(), "cat").search()
    # Exponentially many partial segmentations without a solution.
    labels = ["a@@", "aa@@", "a"]
    for prob in (0.0, 0.5, 1.0):
        encoder = SamplingBytePairEncoder(labels, prob, numpy.random.RandomState(1))
        assert encoder.get_bpe_split_for_word("a" * 200 + "x") is None
        assert _joined(encoder.get_bpe_split_for_word("a" * 200)) == "a" * 200
    assert DepthFirstSearch(_tree(["a@@", "aa@@", "a"]), "a" * 200 + "x").search() is None


@settings(max_examples=200, deadline=None)
@given(st.text("atheswcnl\u00e4xd", min_size=1, max_size=12))
def test_joined_segmentation_is_the_word(word: str) -> None:
    for version in ("v1", "v2"):
        for labels in (None, _VOCAB):
            encoder = StandardBytePairEncoder(str(_DIR / f"demo.{version}.codes"), labels)
            assert _joined(encoder.segment_sentence(word)) == word
    tree = _tree()
    all_splits = CharSyncSearch(tree, word).search()
    assert all(_joined(pieces) == word and set(pieces) <= set(_VOCAB) for pieces in all_splits)
    assert len({tuple(pieces) for pieces in all_splits}) == len(all_splits)
    single = DepthFirstSearch(tree, word).search()
    assert single in all_splits if all_splits else single is None
    # The shortcut without sampler does not change the result.
    assert DepthFirstSearch(tree, word, lambda: False).search() == single
    sampled = SamplingBytePairEncoder(_VOCAB, 0.5, numpy.random.RandomState(1)).get_bpe_split_for_word(word)
    assert sampled in all_splits if all_splits else sampled is None


def _codes(tmp_path: Path, content: str | bytes) -> str:
    path = tmp_path / "x.codes"
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


def test_codes_file_forms(tmp_path: Path) -> None:
    expected = ["a@@", "bc"]
    for version in ("0.2", "0.2.0", " 0.2.0.0"):
        encoder = StandardBytePairEncoder(_codes(tmp_path, f"#version:{version}\r\n\r\nb c</w>\r\na b\r\n\n"))
        assert encoder.segment_sentence("abc") == expected
    # The first one of duplicated pairs counts.
    encoder = StandardBytePairEncoder(_codes(tmp_path, "#version: 0.2\nb c</w>\na b\nb c</w>\n"))
    assert encoder.segment_sentence("abc") == expected
    path = tmp_path / "x.codes.gz"
    path.write_bytes(gzip.compress(b"#version: 0.2\nb c</w>\n"))
    assert StandardBytePairEncoder(str(path)).segment_sentence("abc") == expected
    path.write_bytes(path.read_bytes()[:-12])
    with pytest.raises(DataFileError, match=r"Cannot read BPE codes .*x\.codes\.gz"):
        StandardBytePairEncoder(str(path))


def test_all_occurrences_are_merged_without_overlap(tmp_path: Path) -> None:
    encoder = StandardBytePairEncoder(_codes(tmp_path, "#version: 0.2\na a\n"))
    assert encoder.segment_sentence("aaaaaab") == ["aa@@", "aa@@", "aa@@", "b"]
    assert encoder.segment_sentence("aaaab") == ["aa@@", "aa@@", "b"]
    assert encoder.segment_sentence("aaab") == ["aa@@", "a@@", "b"]


def _plain_encode(ranks: dict[tuple[str, str], int], symbols: list[str]) -> list[str]:
    """The algorithm as spec 05 section 3.6 describes it."""
    while len(symbols) > 1:
        pairs = [pair for pair in zip(symbols, symbols[1:], strict=False) if pair in ranks]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: ranks[pair])
        result: list[str] = []
        while symbols:
            num = 2 if tuple(symbols[:2]) == best else 1
            result.append("".join(symbols[:num]))
            symbols = symbols[num:]
        symbols = result
    return symbols


_SYMBOL = st.text("ab", min_size=1, max_size=3)
_CODES_LINE = st.tuples(_SYMBOL, _SYMBOL, st.booleans())


@settings(max_examples=300, deadline=None)
@given(st.lists(_CODES_LINE, max_size=15), st.text("ab", min_size=2, max_size=14), st.booleans())
def test_merges_as_described(lines: list[tuple[str, str, bool]], word: str, old_version: bool) -> None:
    # Also codes that no training would give: a pair before the pairs of which it consists.
    pairs = [(a, b + "</w>" * end) for a, b, end in lines]
    with tempfile.TemporaryDirectory() as folder:
        header = "" if old_version else "#version: 0.2\n"
        encoder = StandardBytePairEncoder(_codes(Path(folder), header + "".join(f"{a} {b}\n" for a, b in pairs)))
    ranks = {pair: i for i, pair in reversed(list(enumerate(pairs)))}
    expected = _plain_encode(ranks, [*word, "</w>"] if old_version else [*word[:-1], word[-1] + "</w>"])
    expected = [x for x in (symbol.removesuffix("</w>") for symbol in expected) if x]
    assert encoder.segment_sentence(word) == [x + "@@" for x in expected[:-1]] + expected[-1:]


def test_cache_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(standard, "_MAX_CACHED_WORDS", 3)
    encoder: Any = StandardBytePairEncoder(str(_DIR / "demo.v2.codes"))
    encoder.segment_sentence(" ".join(f"w{i}" for i in range(10)))
    assert encoder._cached.cache_info().currsize == 3
    assert "_cached" not in encoder.__getstate__()
    monkeypatch.setattr(sampling, "_MAX_CACHED_WORDS", 3)
    sampler: Any = SamplingBytePairEncoder(_VOCAB, 0.0, numpy.random.RandomState(0), "<unk>")
    sampler.segment_sentence("cat that rat sat the hat")
    assert sampler._cached.cache_info().currsize == 3
    sampler.get_bpe_split_for_word("cat").clear()
    assert sampler.get_bpe_split_for_word("cat") == ["cat"]


@pytest.mark.parametrize(
    ("content", "exc_type", "text"),
    [
        ("#version: 0.2\na b\nabc\n", DataFileError, r"Broken BPE codes \(in file '.*x\.codes', line 3\): .*'abc'"),
        ("a b c\n", DataFileError, r"line 1\): expected two symbols separated by one blank, got 'a b c'"),
        ("a  b\n", DataFileError, r"line 1\)"),
        ("#version: x\n", DataFileError, r"line 1\): expected a version like 0\.2, got 'x'"),
        ("#version: 0.3\n", NotSupportedError, r"line 1\): expected version 0\.1 or 0\.2, got '0\.3'"),
        (b"a b\n\xff\xfe c\n", DataFileError, r"not UTF-8 \(in file '.*x\.codes'"),
    ],
)
def test_broken_codes(tmp_path: Path, content: str | bytes, exc_type: type[Exception], text: str) -> None:
    with pytest.raises(exc_type, match=text):
        StandardBytePairEncoder(_codes(tmp_path, content))


def test_user_mistakes(tmp_path: Path) -> None:
    with pytest.raises(DataFileError, match=r"Cannot open file .*nope"):
        StandardBytePairEncoder(str(tmp_path / "nope"))
    with pytest.raises(NotImplementedError):
        StandardBytePairEncoder(_codes(tmp_path, "#version: 0.3\n"))
    with pytest.raises(OptionError, match='"labels"'):
        StandardBytePairEncoder(str(_DIR / "demo.v2.codes"), labels="abc")
    rnd = numpy.random.RandomState(0)
    with pytest.raises(DatasetError, match=r"^no BPE-split for word 'x'\. Set the option unknown_label"):
        SamplingBytePairEncoder(_VOCAB, 0.5, rnd).segment_sentence("the x")
    with pytest.raises(OptionError, match='"breadth_prob"'):
        SamplingBytePairEncoder(_VOCAB, 1.5, rnd)
    with pytest.raises(OptionError, match='"breadth_prob"'):
        SamplingBytePairEncoder(_VOCAB, "0.5", rnd)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match='"labels"'):
        SamplingBytePairEncoder([1, 2], 0.5, rnd)  # type: ignore[list-item]
    with pytest.raises(OptionError, match=r"None, since word_prefix_symbol is '_', got '@@'"):
        BpeOpts(label_postfix_merge_symbol="@@", word_prefix_symbol="_")
    with pytest.raises(OptionError, match='"word_prefix_symbol"'):
        BpeOpts(word_prefix_symbol="")
