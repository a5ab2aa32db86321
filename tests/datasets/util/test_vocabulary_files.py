"""Vocabulary files: formats, broken and hostile ones, the cache; options of the constructor; pickling and copies."""

from __future__ import annotations

import copy
import gzip
import json
import os
import pickle
import re
from pathlib import Path
from typing import Any

import numpy
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from returnn._state import process_state_ctx, state
from returnn.datasets._vocabulary import files
from returnn.datasets.util.vocabulary import (
    BytePairEncoding,
    CharacterTargets,
    SamplingBytePairEncoding,
    Utf8ByteTargets,
    Vocabulary,
)
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, LabelError, OptionError, UnknownClassError

_DIR = Path(__file__).parents[2] / "golden" / "05-audio-text" / "vocab"


def _write(path: Path, content: str | bytes) -> str:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return str(path)


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("v.txt", "b\nä\na\n"),
        ("v.txt", "\ufeffb\r\nä\r\na"),
        ("v.vocab", "{'b': 0, 'ä': 1, 'a': 2}"),
        ("v.vocab", "{\n'b': 0,\n'\\xe4': 1,\n'a': 2,\n}\n"),
        ("v.json", '{"b": 0, "\\u00e4": 1, "a": 2}'),
        ("v.json", '["b", "ä", "a"]'),
        ("v.pkl", pickle.dumps({"b": 0, "ä": numpy.int64(1), "a": 2})),
        ("v", pickle.dumps({"b": 0, "ä": 1, "a": 2})),
        ("v.pkl", pickle.dumps({"b": 0, "ä": 1, "a": 2}, protocol=0)),
    ],
)
@pytest.mark.parametrize("compress", [False, True])
def test_formats(tmp_path: Path, name: str, content: str | bytes, compress: bool) -> None:
    data = content.encode() if isinstance(content, str) else content
    filename = _write(tmp_path / (name + ".gz" * compress), gzip.compress(data, mtime=0) if compress else data)
    for path in (filename, Path(filename)):
        vocab = Vocabulary(path, unknown_label=None)
        assert vocab.labels == ["b", "ä", "a"]
        assert vocab._vocab == {"b": 0, "ä": 1, "a": 2}
        assert vocab.vocab_file == filename


class _RunsOnLoad:
    def __init__(self, target: str) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (self.target,)


def test_hostile_files_run_nothing(tmp_path: Path) -> None:
    target = tmp_path / "made"
    code = f"__import__('os').mkdir({str(target)!r})"
    hostile: list[tuple[str, str | bytes]] = [
        ("v.pkl", pickle.dumps({"a": 0, "b": _RunsOnLoad(str(target))})),
        ("v", pickle.dumps(_RunsOnLoad(str(target)))),
        ("v.txt", f"{{'a': {code}}}"),
        ("v.py", f"{{{code}: 0}}"),
        ("v.py.gz", gzip.compress(f"{{'a': 0, **{code}}}".encode())),
        ("v.json", f"{{'a': {code}}}"),
    ]
    for i, (name, content) in enumerate(hostile):
        filename = _write(tmp_path / f"{i}{name}", content)
        with pytest.raises(DataFileError, match=re.escape(filename)):
            Vocabulary(filename, unknown_label=None)
    words = _write(tmp_path / "words", "a\nb\n")
    with pytest.raises(DataFileError, match=r"special\.py"):
        Vocabulary(words, special_symbols_via_file=_write(tmp_path / "special.py", f"{{'bos_label': {code}}}"))
    assert not target.exists()


@pytest.mark.parametrize(
    ("name", "content", "text"),
    [
        ("v.txt", "", "has no labels"),
        ("v.txt", "{}", "has no labels"),
        ("v.txt", b"\xff\xfea", "is not UTF-8"),
        ("v.txt", gzip.compress(b"a", mtime=0), "a name that ends with .gz"),
        ("v.txt.gz", gzip.compress(b"abcdef" * 100, mtime=0)[:-20], "Cannot read file"),
        ("v.txt.gz", b"a\nb\n", "Cannot read file"),
        ("v.txt", "{\n'a': 0,\n'b': 1,,\n}", "line 3"),
        ("v.txt", "{'a'}", "expected a Python dict"),
        ("v.txt", "{'a': '0'}", "expected dict of str to int"),
        ("v.txt", "{1: 0}", "expected dict of str to int"),
        ("v.txt", "{'a': True}", "expected dict of str to int"),
        ("v.txt", "{'a': 0, 'b': 0, 'c': 10**3}", "v.txt"),
        ("v.txt", "{'a': 0, 'b': 0, 'c': 3}", r"unused labels: \[1, 2\].*1 labels share their id"),
        ("v.txt", "{'a': -1, 'b': 0}", "min label idx -1"),
        ("v.txt", "{'a': 0, 'b': 999999999999}", r"unused labels: \[1, 2, .*, \.\.\.\]"),
        ("v.pkl", pickle.dumps(["a"]), "expected a pickled dict"),
        ("v.pkl", b"abc", "as pickled plain data"),
        ("v.json", "[1, 2]", "expected a dict label to id, or a list of labels"),
        ("v.json", "[", "not JSON"),
    ],
)
def test_broken_files(tmp_path: Path, name: str, content: str | bytes, text: str) -> None:
    with pytest.raises(DataFileError, match=text) as info:
        Vocabulary(_write(tmp_path / name, content), unknown_label=None)
    assert name in str(info.value)


def test_missing_file() -> None:
    with pytest.raises(DataFileError, match=r"'/nope/x\.vocab'.* Check the path"):
        Vocabulary("/nope/x.vocab")


def test_cache_sees_changes_and_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with process_state_ctx(vocab_files={}):
        name = _write(tmp_path / "v", "a\nb\n")
        first, again = Vocabulary(name, unknown_label=None), Vocabulary(name, unknown_label=None)
        assert first.labels is again.labels and len(state.vocab_files) == 1
        _write(tmp_path / "v", "a\nb\nc\n")
        assert Vocabulary(name, unknown_label=None).labels == ["a", "b", "c"]
        _write(tmp_path / "v", "a\nb\nd\n")
        os.utime(name, (1, 1))
        assert Vocabulary(name, unknown_label=None).labels == ["a", "b", "d"]
        assert first.labels == ["a", "b"]
        monkeypatch.setattr(files, "_MAX_CACHED_FILES", 3)
        for i in range(5):
            Vocabulary(_write(tmp_path / f"v{i}", "a\n"), unknown_label=None)
            Vocabulary(name, unknown_label=None)
        assert len(state.vocab_files) == 3
        assert any(key[0] == name for key in state.vocab_files), "the one used last stays"


def test_labels_given() -> None:
    assert Vocabulary(labels=("a", "b"), unknown_label=None).labels == ["a", "b"]
    assert Vocabulary(None, labels=lambda: ["a", "b"], unknown_label=1).unknown_label == "b"
    vocab = Vocabulary(labels=["a", "b", "a"], unknown_label=None)
    assert (vocab.labels, vocab.get_seq("a b")) == (["a", "b", "a"], [2, 1])
    for labels in ("abc", [1, 2], 5):
        with pytest.raises(OptionError, match="labels"):
            Vocabulary(labels=labels)  # type: ignore[arg-type]
    with pytest.raises(DatasetOptionError, match="vocab_file and labels, got none"):
        Vocabulary()
    with pytest.raises(DatasetOptionError, match="vocab_file and labels, got both"):
        Vocabulary("x", labels=["a"])


def test_missing_unknown_label_names_option_and_file() -> None:
    name = str(_DIR / "words.txt")
    with pytest.raises(LabelError) as info:
        Vocabulary(name)
    text = str(info.value)
    assert text.startswith("option \"unknown_label\" is invalid: label 'UNK' is not in the vocabulary")
    assert name in text and "to None if all words are known" in text
    with pytest.raises(LabelError, match=r"control_symbols\['x'\].*'zzz'"):
        Vocabulary(name, unknown_label=None, control_symbols={"x": "zzz"})
    with pytest.raises(DatasetOptionError, match="invalid label type"):
        Vocabulary(name, unknown_label=1.5)  # type: ignore[arg-type]


@pytest.mark.parametrize("seq_postfix", [[8], [-1], ["a"], 0, [True], [0.0]])
def test_seq_postfix_is_checked(seq_postfix: Any) -> None:
    with pytest.raises(OptionError, match=r'"seq_postfix".*words\.txt.*each in 0\.\.7'):
        Vocabulary(str(_DIR / "words.txt"), seq_postfix, None)


def test_seq_postfix_forms() -> None:
    for seq_postfix in ([1, 2], (1, 2), numpy.array([1, 2])):
        assert Vocabulary(str(_DIR / "words.txt"), seq_postfix, None).get_seq("hello") == [3, 1, 2]
    assert Vocabulary(str(_DIR / "words.txt"), [], None).get_seq("hello") == [3]


def test_other_user_mistakes(tmp_path: Path) -> None:
    words = str(_DIR / "words.txt")
    with pytest.raises(AssertionError, match=r'"num_labels".*expected 8.*got 7'):
        Vocabulary(words, num_labels=7, unknown_label=None)
    with pytest.raises(OptionError, match='"user_defined_symbols"'):
        Vocabulary(words, unknown_label=None, user_defined_symbols=["a"])  # type: ignore[arg-type]
    special = _write(tmp_path / "special.py", "{'nope': 1}")
    with pytest.raises(AssertionError, match=r"special\.py.*expected one of \['unknown_label'.*got 'nope'"):
        Vocabulary(words, special_symbols_via_file=special)
    with pytest.raises(DataFileError, match="expected a Python dict"):
        Vocabulary(words, special_symbols_via_file=_write(tmp_path / "special2.py", "[1]"))
    with pytest.raises(TypeError, match=r"Vocabulary has no argument unknown_labels\. Did you mean unknown_label\?"):
        Vocabulary.create_vocab(vocab_file=words, unknown_labels=None)
    with pytest.raises(TypeError, match=r"BytePairEncoding needs bpe_file"):
        Vocabulary.create_vocab(**{"class": "BytePairEncoding"}, vocab_file=words, unknown_label=None)
    with pytest.raises(UnknownClassError, match=r"expected one of \['BytePairEncoding', .*got 'os'"):
        Vocabulary.create_vocab(**{"class": "os"}, vocab_file=words)
    with pytest.raises(DatasetError, match="some labels are provided multiple times: 'a'"):
        Vocabulary.create_vocab_dict_from_labels(["a", "b", "a"])
    vocab = Vocabulary(words, unknown_label=None)
    with pytest.raises(KeyError, match=r"label 'nope' is not in the .*words\.txt.*unknown_label is None"):
        vocab.get_seq("hello nope")
    with pytest.raises(IndexError, match=r"id 8 is out of range.*0 to 7"):
        vocab.get_seq_labels(numpy.array([3, 8]))
    with pytest.raises(IndexError, match=r"id 256 is out of range"):
        Utf8ByteTargets().get_seq_labels([256])


def test_special_symbols_file_and_direct_options(tmp_path: Path) -> None:
    special = _write(tmp_path / "s.py", "{'control_symbols': {'a': 0, 'b': 1}, 'pad_label': 2}")
    vocab = Vocabulary(
        str(_DIR / "words.txt"), unknown_label=None, control_symbols={"b": 3}, special_symbols_via_file=special
    )
    assert vocab.control_symbol_ids == {"a": 0, "b": 3}
    assert (vocab.pad_label_id, vocab.unknown_label_id, vocab.bos_label_id) == (2, None, None)


def test_creation_by_class() -> None:
    assert type(CharacterTargets.create_vocab(labels=["@", "a"])) is CharacterTargets
    assert type(Vocabulary.create_vocab(**{"class": CharacterTargets}, labels=["@", "a"])) is CharacterTargets

    class MyVocabulary(Vocabulary):
        pass

    assert type(Vocabulary.create_vocab(**{"class": "MyVocabulary"}, labels=["UNK"])) is MyVocabulary
    vocab = Vocabulary.create_vocab_from_labels(["aa", "b", "?"], unknown_label="?", eos_label=1)
    assert (vocab.get_seq("aa x"), vocab.eos_label_id) == ([0, 2], 1)
    vocab = Vocabulary.create_vocab_from_labels(["?", "b"], unknown_label="?", eos_label="b")
    assert (type(vocab), vocab.get_seq("bx"), vocab.eos_label_id) == (CharacterTargets, [1, 0], 1)


def _vocabs() -> dict[str, Vocabulary]:
    demo = str(_DIR / "demo.vocab")
    return {
        "words": Vocabulary(str(_DIR / "words.py.vocab"), unknown_label="<unk>"),
        "dupl": Vocabulary(str(_DIR / "dupl.txt")),
        "chars": CharacterTargets(labels=["@", *"abcdehlost "]),
        "bytes": Utf8ByteTargets(seq_postfix=[10]),
        "bpe": BytePairEncoding(demo, str(_DIR / "demo.v2.codes"), [0], unknown_label="<unk>"),
        "sampling": SamplingBytePairEncoding(demo, 0.5, unknown_label="<unk>", eos_label="</s>"),
        "ws": Vocabulary(labels=["a", " ", "the cat", "UNK"], single_whitespace_split=True),
    }


@pytest.mark.parametrize("name", list(_vocabs()))
def test_pickle_and_copy(name: str) -> None:
    vocab = _vocabs()[name]
    sentence = "the cat sat a"
    vocab.get_seq(sentence)
    for other in (pickle.loads(pickle.dumps(vocab)), copy.deepcopy(vocab), copy.copy(vocab)):
        assert repr(other) == repr(vocab)
        assert (other.labels, other._vocab) == (vocab.labels, vocab._vocab)
        for v in (vocab, other):
            v.set_random_seed(3)
        if name == "sampling" and other.__dict__["_rnd"] is vocab.__dict__["_rnd"]:
            continue  # copy.copy shares the generator, as of any object
        assert other.get_seq(sentence) == vocab.get_seq(sentence)
    assert copy.deepcopy(vocab).labels is vocab.labels


def test_pickle_of_words_is_small() -> None:
    labels = [f"word{i}" for i in range(10_000)]
    vocab = Vocabulary(labels=labels, unknown_label=None)
    assert len(pickle.dumps(vocab)) < 1.5 * len(pickle.dumps(labels))


def test_sampling_can_be_seeded_per_sequence() -> None:
    vocab = _vocabs()["sampling"]
    sentences = ["the cat sat", "lower newest", "that rat ate near"]

    def draw(order: list[int]) -> dict[int, list[int]]:
        result = {}
        for i in order:
            vocab.set_random_seed(100 + i)
            result[i] = vocab.get_seq(sentences[i])
        return result

    assert draw([0, 1, 2]) == draw([2, 0, 1])
    with pytest.raises(OptionError, match='"seed"'):
        vocab.set_random_seed(-1)


_WS_LABELS = st.lists(st.text("ab \t\n", max_size=4), min_size=1, max_size=6)


@settings(max_examples=300, deadline=None)
@given(_WS_LABELS, st.text("ab \t\n", max_size=12))
@example(["a", "a\n"], "a\n")
def test_single_whitespace_split_is_the_regex_of_all_labels(labels: list[str], sentence: str) -> None:
    vocab = Vocabulary(labels=[*labels, "UNK"], single_whitespace_split=True)
    full = re.compile("(" + "|".join([*map(re.escape, vocab.labels), r"\S+"]) + ")(?: |$)")
    assert vocab.get_seq(sentence) == vocab.get_seq_indices(full.findall(sentence))


@settings(max_examples=100, deadline=None)
@given(st.dictionaries(st.text(max_size=5), st.integers(0, 3), min_size=1, max_size=12))
def test_dict_form(ids: dict[str, int]) -> None:
    ids = {label: sorted(set(ids.values())).index(idx) for label, idx in ids.items()}
    table = files.LabelTable.from_dict(ids, source="x")
    assert table.ids == ids and len(table) == len(set(ids.values()))
    assert table.labels == [max(x for x in ids if ids[x] == i) for i in range(len(table))]
    again = pickle.loads(pickle.dumps(table))
    assert (again.labels, again.ids) == (table.labels, table.ids)


@settings(max_examples=100, deadline=None)
@given(st.text())
def test_text_goes_back_and_forth(text: str) -> None:
    text = text.encode("utf8", errors="ignore").decode("utf8")
    utf8 = Utf8ByteTargets()
    assert utf8.get_seq_labels(utf8.get_seq(text)) == text
    chars = CharacterTargets(labels=sorted({*text, "@"}))
    assert chars.get_seq_labels(chars.get_seq(text)) == text
    words = Vocabulary(labels=sorted({*text.split(), "x"}), unknown_label=None)
    assert words.get_seq_labels(words.get_seq(text)) == " ".join(text.split())


def test_json_of_special_characters(tmp_path: Path) -> None:
    labels = ["\n", "\u2028", "'", '"', "{", "\U0001f600"]
    name = _write(tmp_path / "v.json", json.dumps(labels))
    assert CharacterTargets(name, unknown_label=None).labels == labels
