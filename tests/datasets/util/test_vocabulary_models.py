"""Vocabularies of SentencePiece models and HuggingFace tokenizers; skipped where the packages are not installed."""

from __future__ import annotations

import ast
import importlib
import json
import pickle
import sys
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets.util.vocabulary import HuggingFaceTokenizer, SentencePieces, Vocabulary
from returnn.errors import DataFileError, DatasetOptionError, MissingDependencyError, OptionError

_DIR = Path(__file__).parents[2] / "golden" / "05-audio-text" / "vocab"
_GOLDEN: dict[str, Any] = json.loads((_DIR / "expected.spm.json").read_text(encoding="utf8"))


@pytest.fixture(autouse=True)
def _in_golden_dir(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(_DIR)


def _spm(**opts: Any) -> SentencePieces:
    pytest.importorskip("sentencepiece")
    vocab = Vocabulary.create_vocab(**{"class": "SentencePieces"}, model_file="spm_demo.model", **opts)
    assert isinstance(vocab, SentencePieces)
    return vocab


@pytest.mark.parametrize("opts", [key for key in _GOLDEN if key.startswith("{")])
def test_sentencepieces_golden(opts: str) -> None:
    vocab, golden = _spm(**ast.literal_eval(opts)), _GOLDEN[opts]
    assert {
        "num": vocab.num_labels,
        "bos": vocab.bos_label_id,
        "eos": vocab.eos_label_id,
        "unk": vocab.unknown_label_id,
        "pad": vocab.pad_label_id,
        "seqs": {sentence: vocab.get_seq(sentence) for sentence in golden["seqs"]},
        "repr": repr(vocab),
    } == golden
    vocab = pickle.loads(pickle.dumps(vocab))
    assert {sentence: vocab.get_seq(sentence) for sentence in golden["seqs"]} == golden["seqs"]


def test_sentencepieces_labels_golden() -> None:
    vocab = _spm(user_defined_symbols={"blank": "<blank>"})
    assert vocab.labels == _GOLDEN["labels"]
    assert vocab.user_defined_symbol_ids == _GOLDEN["usr"]
    assert vocab.get_seq_labels(vocab.get_seq("hello world")) == _GOLDEN["get_seq_labels"]
    that, nope, unk, default = _GOLDEN["label_to_id"]
    assert (vocab.label_to_id("\u2581that"), vocab.label_to_id("<unk>")) == (that, unk)
    with pytest.raises(KeyError, match=ast.literal_eval(nope.removeprefix("ERR KeyError: "))):
        vocab.label_to_id("nope")
    assert vocab.label_to_id("nope", None) is default
    assert [vocab.id_to_label(0), vocab.id_to_label(3)] == _GOLDEN["id_to_label"][:2]
    for idx in (60, -1):
        with pytest.raises(IndexError, match="out of range"):
            vocab.id_to_label(idx)
    # The peers raise also here; a default is there to be returned.
    assert _GOLDEN["id_to_label"][4].startswith("ERR IndexError")
    assert vocab.id_to_label(60, None) is None
    assert [vocab.is_id_valid(idx) for idx in (0, 59, 60, -1)] == [True, True, False, False]
    assert vocab.to_id(60, None) is None
    assert vocab.serialize_labels(numpy.array(14)) == "\u2581t"
    assert set(_GOLDEN) - {key for key in _GOLDEN if key.startswith("{")} == {
        "labels", "usr", "get_seq_labels", "label_to_id", "id_to_label",
    }  # fmt: skip


def test_sentencepieces_other_options() -> None:
    assert _spm(seq_postfix=[2]).get_seq("hello world") == [38, 12, 49, 53, 50, 54, 2]
    with pytest.raises(OptionError, match="seq_postfix"):
        _spm(seq_postfix=[60])
    with pytest.raises(OptionError, match="num_labels"):
        _spm(num_labels=61)
    with pytest.raises(KeyError, match="control_symbols"):
        _spm(control_symbols={"x": "zzz"})
    proto = SentencePieces(model_proto=(_DIR / "spm_demo.model").read_bytes())
    assert proto.get_seq("hello world") == [38, 12, 49, 53, 50, 54]
    assert "bytes>" in repr(proto) and len(repr(proto)) < 100
    assert pickle.loads(pickle.dumps(proto)).get_seq("hello") == [38]
    assert SentencePieces(model_file=_DIR / "spm_demo.model").vocab_file == str(_DIR / "spm_demo.model")


def test_sentencepieces_mistakes(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    with pytest.raises(TypeError, match=r"has no option 'bos_label', it has model_file, .* are those of the model"):
        _spm(bos_label=1)
    with pytest.raises(DatasetOptionError, match="model_file and model_proto, got \\[\\]"):
        SentencePieces()
    with pytest.raises(DataFileError, match=r"Cannot load the SentencePiece model '/nope'"):
        SentencePieces(model_file="/nope")
    broken = tmp_path / "x.model"
    broken.write_bytes(b"abc")
    with pytest.raises(DataFileError, match=r"x\.model"):
        SentencePieces(model_file=str(broken))


def test_sentencepieces_sampling_depends_on_the_seed_only() -> None:
    vocab = _spm(enable_sampling=True, nbest_size=-1, alpha=0.5)
    sentences = ["the widest model", "lowest newest", "hello and that rat"]

    def draw(v: Vocabulary, order: list[int]) -> dict[int, list[list[int]]]:
        result = {}
        for i in order:
            v.set_random_seed(i)
            result[i] = [v.get_seq(sentences[i]), v.get_seq(sentences[i])]
        return result

    expected = draw(vocab, [0, 1, 2])
    assert draw(vocab, [2, 1, 0, 1]) == expected
    assert draw(pickle.loads(pickle.dumps(vocab)), [1, 0, 2]) == expected
    drawn = set()
    for seed in range(20):
        vocab.set_random_seed(seed)
        drawn.add(tuple(vocab.get_seq(sentences[0])))
        assert vocab.get_seq_labels(vocab.get_seq(sentences[0])).replace(" ", "") == "\u2581the\u2581widest\u2581model"
    assert len(drawn) > 5
    with pytest.raises(OptionError, match='"seed"'):
        vocab.set_random_seed(-1)


@pytest.fixture(scope="module")
def tokenizer_dir(tmp_path_factory: pytest.TempPathFactory) -> str:
    tokenizers = pytest.importorskip("tokenizers")
    transformers = pytest.importorskip("transformers")
    tokenizer = tokenizers.Tokenizer(tokenizers.models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = tokenizers.pre_tokenizers.Whitespace()
    trainer = tokenizers.trainers.BpeTrainer(special_tokens=["<unk>", "</s>", "<pad>"], show_progress=False)
    tokenizer.train_from_iterator(["the cat sat on the mat", "lower lowest newest"], trainer)
    folder = str(tmp_path_factory.mktemp("tokenizer"))
    fast = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, unk_token="<unk>", eos_token="</s>", pad_token="<pad>"
    )
    fast.save_pretrained(folder)
    return folder


def _upper_to_lower(text: str) -> str:
    return text.lower()


def test_huggingface_tokenizer(tokenizer_dir: str) -> None:
    vocab: Any = Vocabulary.create_vocab(**{"class": "HuggingFaceTokenizer"}, huggingface_repo_dir=tokenizer_dir)
    assert (vocab.unknown_label, vocab.unknown_label_id) == ("<unk>", 0)
    assert (vocab.bos_label_id, vocab.eos_label_id, vocab.pad_label_id) == (None, 1, 2)
    assert vocab.num_labels == len(vocab.labels) == len(vocab.tokenizer)
    assert vocab.labels[:3] == ["<unk>", "</s>", "<pad>"] and "the" in vocab.labels
    assert vocab.label_to_id("the") == vocab.labels.index("the") == vocab.to_id("the")
    assert vocab.label_to_id("nope") == 0
    assert vocab.id_to_label(1) == "</s>" and not vocab.is_id_valid(vocab.num_labels)
    ids = vocab.get_seq("the cat")
    assert [vocab.id_to_label(idx) for idx in ids] == ["the", "cat"]
    assert vocab.get_seq_labels(numpy.array([*ids, 1, 2])) == "the cat"
    assert repr(vocab).endswith("unknown_label='<unk>', eos_label='</s>', pad_label='<pad>')")
    other = pickle.loads(pickle.dumps(vocab))
    assert other.get_seq("lowest mat") == vocab.get_seq("lowest mat")
    assert len(pickle.dumps(vocab)) < 2000


def test_huggingface_tokenizer_options(tokenizer_dir: str) -> None:
    plain = HuggingFaceTokenizer(huggingface_repo_dir=tokenizer_dir)
    ids = plain.get_seq("the cat sat")
    lower = HuggingFaceTokenizer(tokenizer=plain.tokenizer, text_preprocessing=_upper_to_lower, map_bos_to_eos=True)
    assert lower.get_seq("The CAT sat") == ids
    assert lower.bos_label_id == lower.eos_label_id == 1
    assert pickle.loads(pickle.dumps(lower)).get_seq("THE cat sat") == ids
    dropped = HuggingFaceTokenizer(tokenizer=plain.tokenizer, bpe_dropout=1.0)
    assert len(dropped.get_seq("the cat sat")) == 9
    assert pickle.loads(pickle.dumps(dropped)).get_seq("the cat sat") == dropped.get_seq("the cat sat")
    assert plain.get_seq("the cat sat") == ids, "the dropout is that of a copy"


def test_huggingface_tokenizer_mistakes(tokenizer_dir: str, tmp_path: Path) -> None:
    for opts in ({}, {"huggingface_repo_dir": tokenizer_dir, "tokenizer": 1}):
        with pytest.raises(AssertionError, match="expected one of the options huggingface_repo_dir and tokenizer"):
            HuggingFaceTokenizer(**opts)  # type: ignore[arg-type]
    with pytest.raises(DataFileError, match="'nope' is no folder"):
        HuggingFaceTokenizer(huggingface_repo_dir="nope")
    with pytest.raises(DataFileError, match="Cannot load the tokenizer of huggingface_repo_dir"):
        HuggingFaceTokenizer(huggingface_repo_dir=str(tmp_path))
    with pytest.raises(OptionError, match="bpe_dropout"):
        HuggingFaceTokenizer(huggingface_repo_dir=tokenizer_dir, bpe_dropout=2)
    tokenizers, transformers = importlib.import_module("tokenizers"), importlib.import_module("transformers")
    words = tokenizers.Tokenizer(tokenizers.models.WordLevel({"a": 0}))
    with pytest.raises(OptionError, match="none of byte pair encoding"):
        HuggingFaceTokenizer(tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=words), bpe_dropout=0.1)
    no_unknown = HuggingFaceTokenizer(tokenizer=transformers.PreTrainedTokenizerFast(tokenizer_object=words))
    assert no_unknown.label_to_id("x", None) is None
    with pytest.raises(KeyError, match="no unknown label"):
        no_unknown.label_to_id("x")


def test_code_of_a_tokenizer_folder_is_not_run(tokenizer_dir: str, tmp_path: Path) -> None:
    folder = tmp_path / "tokenizer"
    folder.mkdir()
    config = {"auto_map": {"AutoTokenizer": ["mine.Mine", None]}, "tokenizer_class": "Mine"}
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "mine.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w').close()\n")
    with pytest.raises(DataFileError, match="trust_remote_code"):
        HuggingFaceTokenizer(huggingface_repo_dir=str(folder))
    assert not (tmp_path / "ran").exists()


def test_missing_packages(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setitem(sys.modules, "sentencepiece", None)
    monkeypatch.setitem(sys.modules, "transformers", None)
    with pytest.raises(MissingDependencyError, match=r"'sentencepiece'.*SentencePieces.*pip install sentencepiece"):
        SentencePieces(model_file="spm_demo.model")
    with pytest.raises(MissingDependencyError, match=r"'transformers'.*HuggingFaceTokenizer.*pip install transformers"):
        HuggingFaceTokenizer(huggingface_repo_dir=str(tmp_path))
