"""Vocabularies: all golden cases of the peers, except those of the searches (tests/util/test_bpe.py) and SentencePiece."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.util.strings import str_to_numpy_array
from returnn.datasets.util.vocabulary import CharacterTargets, Utf8ByteTargets, Vocabulary

_DIR = Path(__file__).parents[2] / "golden" / "05-audio-text" / "vocab"
_GOLDEN: dict[str, dict[str, Any]] = {
    name: json.loads((_DIR / f"expected.{name}.json").read_text(encoding="utf8")) for name in ("mini", "main")
}
_PEERS = pytest.mark.parametrize("peer", ["mini", "main"])
_EXCEPTIONS: dict[str, type[Exception]] = {
    "KeyError": KeyError,
    "TypeError": TypeError,
    "AssertionError": AssertionError,
    "Exception": Exception,
    "IndexError": IndexError,
    "UnicodeDecodeError": UnicodeDecodeError,
}
#: Where the peers differ from each other we do as mainline. Keys of mini's golden data that therefore do not hold here:
#: duplicated lines are accepted, .gz is read, bytes are recognised only if there are 256 of them, and bytes of other
#: integer types are read.
_MINI_DIFFERS = {"vocab_dupl", "vocab_gz", "create_from_labels", "utf8_labels"}


@pytest.fixture(autouse=True)
def _in_golden_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_DIR)


def _result_or_error(func: Any, *args: Any) -> Any:
    try:
        return func(*args)
    except Exception as exc:  # noqa: BLE001
        return exc


def _check(expected: Any, func: Any, *args: Any) -> None:
    """The golden value, or an exception that is caught as the one of the peer, and which is one sentence more."""
    result = _result_or_error(func, *args)
    if isinstance(expected, str) and expected.startswith("ERR "):
        name, _, text = expected.removeprefix("ERR ").partition(": ")
        assert isinstance(result, _EXCEPTIONS[name]), (expected, result)
        if name == "KeyError":
            assert text.strip("'") in str(result)
        assert len(str(result)) > 20, f"no sentence: {result!r}"
    else:
        assert not isinstance(result, Exception), result
        assert result == expected


def _vocab_items(peer: str) -> list[str]:
    return sorted(key for key in _GOLDEN[peer] if key.startswith("vocab_"))


@pytest.mark.parametrize(("peer", "key"), [(peer, key) for peer in _GOLDEN for key in _vocab_items(peer)])
def test_options_and_files_golden(peer: str, key: str) -> None:
    if peer == "mini" and key in _MINI_DIFFERS:
        assert _GOLDEN["mini"][key]["res"].startswith("ERR") and not isinstance(_GOLDEN["main"][key]["res"], str)
        return
    opts, expected = _GOLDEN[peer][key]["opts"], _GOLDEN[peer][key]["res"]
    if isinstance(expected, str):
        _check(expected, lambda: Vocabulary.create_vocab(**opts))
        return
    vocab = Vocabulary.create_vocab(**opts)
    assert {
        "class": type(vocab).__name__,
        "repr": repr(vocab),
        "num_labels": vocab.num_labels,
        "labels": vocab.labels,
        "unk": [vocab.unknown_label, vocab.unknown_label_id],
        "bos": vocab.bos_label_id,
        "eos": vocab.eos_label_id,
        "pad": vocab.pad_label_id,
        "ctl": vocab.control_symbol_ids,
        "usr": vocab.user_defined_symbol_ids,
    } == {name: value for name, value in expected.items() if name != "seqs"}
    for sentence, ids in expected["seqs"].items():
        _check(ids, vocab.get_seq, sentence)


@_PEERS
def test_byte_pair_encoding_golden(peer: str) -> None:
    golden = _GOLDEN[peer]
    opts: dict[str, Any] = {"bpe_file": "demo.v2.codes", "vocab_file": "demo.vocab"}
    for sentence, ids in golden["BytePairEncoding_nounk"].items():
        _check(ids, Vocabulary.create_vocab(**opts, unknown_label=None).get_seq, sentence)
    vocab = Vocabulary.create_vocab(**opts, unknown_label="<unk>", bos_label="<s>", eos_label="</s>", seq_postfix=[0])
    for sentence, ids in golden["BytePairEncoding_unk"].items():
        _check(ids, vocab.get_seq, sentence)
    assert vocab.get_seq_labels(vocab.get_seq("the hatter")) == golden["BytePairEncoding_unk_labels"]
    assert {
        "labels": vocab.labels,
        "num_labels": vocab.num_labels,
        "bos": vocab.bos_label_id,
        "eos": vocab.eos_label_id,
        "pad": vocab.pad_label_id,
        "unk": vocab.unknown_label_id,
        "repr": repr(vocab),
    } == golden["BytePairEncoding_unk_meta"]


@_PEERS
@pytest.mark.parametrize("prob", [0.0, 0.5, 1.0])
def test_sampling_golden(peer: str, prob: float) -> None:
    vocab: Any = Vocabulary.create_vocab(
        **{"class": "SamplingBytePairEncoding"}, vocab_file="demo.vocab", breadth_prob=prob, unknown_label="<unk>"
    )
    last_seed = None
    golden = _GOLDEN[peer][f"Sampling_{prob}"]
    for seed, sentence, expected in golden:
        if sentence == "ids":
            vocab.set_random_seed(seed)
            assert "+".join(map(str, vocab.get_seq(golden[0][1]))) == expected
            continue
        if seed != last_seed:
            vocab.set_random_seed(seed)
            last_seed = seed
        assert vocab.get_seq_labels(vocab.get_seq(sentence)).split() == expected


def test_sampling_word_prefix_golden() -> None:
    golden = _GOLDEN["main"]["Sampling_wordprefix"]
    vocab: Any = Vocabulary.create_vocab(
        **{"class": "SamplingBytePairEncoding"},
        vocab_file=None,
        labels=golden["labels"],
        breadth_prob=0.0,
        word_prefix_symbol="\u2581",
        unknown_label="<unk>",
    )
    assert {text: vocab.get_seq_labels(vocab.get_seq(text)).split() for text in golden["out"]} == golden["out"]


@_PEERS
def test_creation_golden(peer: str) -> None:
    golden = _GOLDEN[peer]
    _check(golden["bad_class"], lambda: Vocabulary.create_vocab(**{"class": "Nope"}))
    _check(golden["bad_class2"], lambda: Vocabulary.create_vocab(**{"class": "os"}))
    _check(golden["default_unk_missing"], lambda: Vocabulary.create_vocab(vocab_file="words.txt"))
    _check(golden["create_vocab_dict"], Vocabulary.create_vocab_dict_from_labels, ["a", "b"])
    _check(golden["create_vocab_dict_dup"], Vocabulary.create_vocab_dict_from_labels, ["a", "a"])
    # We do as mainline.
    golden = _GOLDEN["main"]["create_from_labels"]
    created = {
        "aab": ["aa", "b"],
        "ab": ["a", "b"],
        "bytes255": [chr(i) for i in range(255)],
        "bytes256": [chr(i) for i in range(256)],
        "nul_only": ["\0"],
    }
    assert {name: type(Vocabulary.create_vocab_from_labels(x)).__name__ for name, x in created.items()} == golden


@_PEERS
def test_ids_golden(peer: str) -> None:
    golden = _GOLDEN[peer]["to_id"]
    vocab = Vocabulary.create_vocab(vocab_file="words.txt", unknown_label="<unk>")
    calls: dict[str, tuple[Any, ...]] = {
        "str": (vocab.to_id, "hello"),
        "int": (vocab.to_id, 3),
        "bad": (vocab.to_id, "nope"),
        "bad_default_none": (vocab.to_id, "nope", None),
        "int_bad": (vocab.to_id, 77),
        "int_bad_default": (vocab.to_id, 77, None),
        "m1": (vocab.to_id, -1),
        "m1_allow": (vocab.to_id, -1, KeyError, True),
        "none": (vocab.to_id, None),
        "none_allow": (vocab.to_id, None, KeyError, True),
        "float": (vocab.to_id, 1.0),
        "np": (vocab.to_id, numpy.int64(3)),
        "id_to_label_bad": (vocab.id_to_label, 77),
        "id_to_label_def": (vocab.id_to_label, 77, None),
        "is_id_valid": (lambda: [vocab.is_id_valid(i) for i in (0, 77, -1)],),
    }
    assert set(calls) == set(golden)
    for key, call in calls.items():
        _check(golden[key], *call)


@_PEERS
def test_labels_of_ids_golden(peer: str) -> None:
    vocab = Vocabulary.create_vocab(vocab_file="words.txt", unknown_label="<unk>")
    args: list[Any] = [[3, 4], numpy.array([3, 4]), [8], [-1], []]
    for ids, expected in zip(args, _GOLDEN[peer]["get_seq_labels"], strict=True):
        _check(expected, vocab.get_seq_labels, ids)
    assert CharacterTargets(labels=["a", " ", "b", "@"]).get_seq_labels([0, 1, 2]) == _GOLDEN[peer]["char_labels"]
    text = "aä".encode()
    args = [numpy.array(list(text), dtype="int32"), numpy.array(list(text), dtype="uint8"), [0xC3]]
    for ids, expected in zip(args, _GOLDEN["main"]["utf8_labels"], strict=True):
        _check(expected, Utf8ByteTargets().get_seq_labels, ids)


def test_serialize_labels_golden() -> None:
    vocab = Vocabulary.create_vocab(vocab_file="words.txt", unknown_label="<unk>")
    ids = numpy.array([[3, 4], [0, 1]])
    assert {
        "0d": vocab.serialize_labels(ids[0, 0]),
        "1d": vocab.serialize_labels(ids[0]),
        "2d": vocab.serialize_labels(ids),
        "3d": vocab.serialize_labels(ids[None]),
    } == _GOLDEN["main"]["serialize_labels"]


def test_all_golden_cases_are_tested() -> None:
    here = {
        "BytePairEncoding_nounk", "BytePairEncoding_unk", "BytePairEncoding_unk_labels", "BytePairEncoding_unk_meta",
        "Sampling_0.0", "Sampling_0.5", "Sampling_1.0", "Sampling_wordprefix", "bad_class", "bad_class2", "char_labels",
        "create_from_labels", "create_vocab_dict", "create_vocab_dict_dup", "default_unk_missing", "get_seq_labels",
        "to_id", "utf8_labels", "serialize_labels",
    }  # fmt: skip
    in_test_bpe = {"CharSyncSearch", "DepthFirst", *(f"std_bpe_v{i}_{x}labels" for i in (1, 2) for x in ("", "no"))}
    for peer, golden in _GOLDEN.items():
        assert set(golden) - set(_vocab_items(peer)) <= here | in_test_bpe
    assert os.path.samefile(".", _DIR)


def test_str_to_numpy_array() -> None:
    array = str_to_numpy_array("abc")
    assert array.ndim == 0 and array.dtype.kind == "U" and str(array) == "abc"
