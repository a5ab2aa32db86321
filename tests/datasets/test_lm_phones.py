"""Lexicon, state tying, allophone states and sequences of phonemes."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets.lm import AllophoneState, Lexicon, PhoneSeqGenerator, StateTying
from returnn.errors import DataFileError, DatasetError, DatasetOptionError
from tests.datasets.lm_golden import LM, PEERS, load_expected

_LEXICON = str(LM / "lexicon.xml")
_NO_REPETITION: dict[str, Any] = {"repetition": 0.0, "silence_repetition": 0.0}


@pytest.mark.parametrize("peer", PEERS)
def test_golden(peer: str) -> None:
    expected = load_expected(LM, peer)
    generator = PhoneSeqGenerator(_LEXICON, **_NO_REPETITION)
    generator.set_random_seed(1)
    assert [str(a) for a in generator.generate_seq("Hello world Hello")] == expected["phone_gen_allos"]
    generator.set_random_seed(1)
    assert [generator.orth_to_phones("Hello world Hello") for _ in range(3)] == expected["phone_gen_orth_to_phones"]
    generator = PhoneSeqGenerator(
        _LEXICON, allo_num_states=2, repetition=0.3, state_tying_file=str(LM / "state_tying.txt")
    )
    generator.set_random_seed(5)
    allophones = generator.generate_seq("Hello world Hello")
    assert [str(a) for a in allophones] == expected["phone_gen_2states"]
    assert generator.seq_to_class_idxs(allophones).tolist() == expected["phone_gen_tied"]
    assert generator.seq_to_class_idxs(allophones, dtype="int8").dtype == "int8"
    assert generator.get_class_labels() == expected["phone_gen_tied_labels"]
    lexicon = Lexicon(_LEXICON)
    assert lexicon.phoneme_list == expected["lexicon"]["phoneme_list"]
    assert lexicon.phonemes == expected["lexicon"]["phonemes"]
    assert lexicon.lemmas == expected["lexicon"]["lemmas"]


def test_golden_index() -> None:
    item = load_expected(LM, "mini")["allo_index"]
    allophone = AllophoneState("AH", state=1)
    allophone.context_history, allophone.context_future, allophone.boundary = ("HH",), ("L",), AllophoneState.INITIAL
    assert str(allophone) == item["repr"]
    assert allophone.index(item["phone_idxs"]) == item["index"]
    # The peers give L{HH+AH}@i.1 here, which is a mistake.
    phone_ids = {idx: phone for phone, idx in item["phone_idxs"].items()}
    assert AllophoneState.from_index(item["index"], phone_ids) == allophone


@given(
    phones=st.lists(st.sampled_from(["a", "b", "c"]), max_size=4),
    future=st.integers(0, 2),
    boundary=st.integers(0, 3),
    state=st.integers(0, 2),
)
def test_index_round_trip(phones: list[str], future: int, boundary: int, state: int) -> None:
    allophone = AllophoneState("b", state=state)
    allophone.context_future = tuple(phones[:future])
    allophone.context_history = tuple(phones[future : future + 2])
    allophone.boundary = boundary
    index = allophone.index({"a": 0, "b": 1, "c": 2}, num_states=3, context_length=2)
    assert 0 <= index < 4**5 * 3 * 4
    back = AllophoneState.from_index(index, {0: "a", 1: "b", 2: "c"}, num_states=3, context_length=2)
    assert back == allophone and hash(back) == hash(allophone) and str(back) == str(allophone)


def test_index_mistakes() -> None:
    with pytest.raises(DatasetError, match="phoneme 'x' is not in the phoneme set"):
        AllophoneState("x", state=0).index({"a": 0})
    with pytest.raises(DatasetError, match="expected state < 3, got 3"):
        AllophoneState("a", state=3).index({"a": 0})
    with pytest.raises(DatasetError, match="out of range"):
        AllophoneState.from_index(2**3 * 3 * 4, {0: "a"})


def test_classic_index() -> None:
    allophones = [AllophoneState("a"), AllophoneState("b")]
    assert str(AllophoneState.from_classic_index(1 + 2 * 2**26, allophones)) == "b{#+#}.2"
    assert allophones[1].state is None
    with pytest.raises(DatasetError, match="state 6"):
        AllophoneState.from_classic_index(6 * 2**26, allophones)


# ---- options of the generator


def _phones(orth: str = "Hello world", **opts: Any) -> str:
    silence = {"add_silence_beginning": 0.0, "add_silence_between_words": 0.0, "add_silence_end": 0.0}
    generator = PhoneSeqGenerator(_LEXICON, **{**silence, **_NO_REPETITION, **opts})
    return generator.orth_to_phones(orth)


def test_pick_first() -> None:
    assert {_phones(phon_pick_strategy="first", orth="Hello " * 20)} == {" ".join(["HH AH L OW"] * 20)}
    assert "HH OW" in _phones(orth="Hello " * 20)


def test_extra_lemmas_and_silence() -> None:
    extra = {"phons": [{"phon": "D D"}]}
    opts: dict[str, Any] = {"phon_pick_strategy": "first", "extra_begin_lemma": extra, "extra_end_lemma": extra}
    assert _phones("world", **opts) == "D D W ER L D D D"
    assert _phones("world", **opts, add_extra_end_lemma=0.0, add_silence_end=1.0) == "D D W ER L D si"
    assert _phones("world", **opts, add_extra_begin_lemma=0.0, add_silence_beginning=1.0) == "si W ER L D D D"
    assert _phones("", **opts) == "D D D D"
    with pytest.raises(DatasetOptionError, match=r"phonemes \['Q'\] are not in the lexicon"):
        _phones(extra_begin_lemma={"phons": [{"phon": "Q"}]})
    with pytest.raises(DatasetOptionError, match="extra_end_lemma"):
        _phones(extra_end_lemma={"phons": []})


def test_words_with_parts() -> None:
    opts: dict[str, Any] = {"phon_pick_strategy": "first"}
    assert _phones("world-Hello/world", **opts) == "W ER L D HH AH L OW W ER L D"
    for word in ("nope", "world-nope", "-", "/"):
        with pytest.raises(KeyError):
            _phones(word)


def test_phoneme_vocab(tmp_path: Path) -> None:
    vocab = tmp_path / "phonemes.txt"
    vocab.write_text("\n".join(["<s>", *reversed(Lexicon(_LEXICON).phoneme_list)]) + "\n")
    generator = PhoneSeqGenerator(_LEXICON, phoneme_vocab_file=str(vocab), allo_num_states=1, **_NO_REPETITION)
    assert generator.get_class_labels()[:3] == ["<s>", "D", "ER"]
    assert generator.seq_to_class_idxs([AllophoneState("D"), AllophoneState("si")]).tolist() == [1, 8]
    vocab.write_text("D\n")
    with pytest.raises(DatasetOptionError, match=r"'si' of the lexicon is not in the phoneme_vocab_file"):
        PhoneSeqGenerator(_LEXICON, phoneme_vocab_file=str(vocab))
    with pytest.raises(DatasetOptionError, match="only one of phoneme_vocab_file and state_tying_file"):
        PhoneSeqGenerator(_LEXICON, phoneme_vocab_file=str(vocab), state_tying_file="x")


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        ({"phon_pick_strategy": "last"}, "phon_pick_strategy"),
        ({"silence_lemma_orth": "Hello"}, "lemma 'Hello' for silence, with one phoneme"),
        ({"silence_lemma_orth": "[SIL]"}, "silence_lemma_orth"),
        ({"repetition": 1.0}, "repetition"),
        ({"silence_repetition": -0.1}, "silence_repetition"),
    ],
)
def test_invalid_options(opts: dict[str, Any], match: str) -> None:
    with pytest.raises(DatasetOptionError, match=match):
        PhoneSeqGenerator(_LEXICON, **opts)


def test_garbage() -> None:
    generator = PhoneSeqGenerator(_LEXICON)
    for length in (0, 1, 100):
        assert len(generator.generate_garbage_seq(length)) == length


def test_untied_state() -> None:
    generator = PhoneSeqGenerator(_LEXICON, state_tying_file=str(LM / "state_tying.txt"))
    with pytest.raises(DatasetOptionError, match=r"no class for the allophone state '.*@i\.0'.*allo_num_states"):
        generator.seq_to_class_idxs(generator.generate_garbage_seq(1000))


# ---- files


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("", "Cannot read the lexicon"),
        ("<lexicon><lemma>", "Cannot read the lexicon"),
        ("<corpus/>", "0 phonemes and 0 lemmas"),
        ("<lexicon><phoneme-inventory><phoneme/></phoneme-inventory></lexicon>", "no <symbol>"),
        (
            "<lexicon><phoneme-inventory><phoneme><symbol>a</symbol></phoneme><phoneme><symbol>a</symbol></phoneme>"
            "</phoneme-inventory></lexicon>",
            "'a' of an earlier one",
        ),
        (
            "<lexicon><phoneme-inventory><phoneme><symbol>a</symbol><variation>x</variation></phoneme>"
            "</phoneme-inventory></lexicon>",
            "variation context or none, got 'x'",
        ),
        (
            "<lexicon><lemma><orth>w</orth><phon>a</phon></lemma><lemma><orth>w</orth><phon>b</phon></lemma></lexicon>",
            r"'w' has two different lemmas, with pronunciations \['a'\] and \['b'\]",
        ),
        ("<lexicon><lemma><orth>w</orth><phon score='x'>a</phon></lemma></lexicon>", "number as score"),
    ],
)
def test_broken_lexicon(content: str, match: str, tmp_path: Path) -> None:
    path = tmp_path / "lexicon.xml"
    path.write_text(content)
    with pytest.raises(DataFileError, match=match):
        Lexicon(str(path))


def test_lexicon_gz_and_equal_lemmas(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "lexicon.gz"
    text = (LM / "lexicon.xml").read_text().replace("</lexicon>", "<lemma><orth>two</orth><phon>D</phon></lemma>" * 2)
    path.write_bytes(gzip.compress((text + "</lexicon>").encode()))
    lexicon = Lexicon(str(path))
    assert lexicon.lemmas["two"] == {"orth": "two", "phons": [{"phon": "D", "score": 0.0}]}
    out = capsys.readouterr().out
    assert "lemma 'two' is there twice" in out and "Finished whole lexicon, 6 lemmas" in out
    with pytest.raises(DataFileError, match="nofile"):
        Lexicon("nofile")


def test_state_tying(tmp_path: Path) -> None:
    path = tmp_path / "tying"
    path.write_text("a{#+#}.0 1\nb{#+#}.0 0\n\nc{#+#}.0 1\n")
    tying = StateTying(str(path))
    assert tying.num_classes == 2 and tying.class_map == {1: {"a{#+#}.0", "c{#+#}.0"}, 0: {"b{#+#}.0"}}
    for content, match in [
        ("a 0\na 1\n", "line 2: a has class 1, and 0"),
        ("a 0\nb\n", "line 2: expected '<allophone state> <class>'"),
        ("a 0\nb x\n", "line 2"),
        ("a 0\nb 2\n", "without gaps, got 2 classes, the largest is 2"),
        ("", "got 0 classes"),
    ]:
        path.write_text(content)
        with pytest.raises(DataFileError, match=match):
            StateTying(str(path))
