"""Mistakes of users with text datasets and vocabularies: files with a byte order mark, wrong types of options, typos."""

from __future__ import annotations

import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets._vocabulary.huggingface import HuggingFaceTokenizer
from returnn.datasets.basic import init_dataset
from returnn.datasets.lm import Lexicon, StateTying
from returnn.datasets.util.vocabulary import Vocabulary
from returnn.errors import UserError
from tests.datasets.everyday_use import read_epoch
from tests.datasets.lm_golden import LM

_BOM = b"\xef\xbb\xbf"
_BYTES = {"class": "Utf8ByteTargets"}


def _write(path: Path, content: bytes) -> str:
    path.write_bytes(content)
    return str(path)


def _lm(tmp_path: Path, **opts: Any) -> dict[str, Any]:
    return {"class": "LmDataset", "corpus_file": _write(tmp_path / "text.txt", b"a b\nb\n"), **opts}


def _data(opts: dict[str, Any]) -> list[dict[str, list[Any]]]:
    return [{key: value.tolist() for key, value in data.items()} for _, data in read_epoch(init_dataset(opts), 1)]


# ---- byte order marks


@pytest.mark.parametrize("option", ["orth_symbols_file", "orth_symbols_map_file"])
@pytest.mark.parametrize("content", [b"a\nb\n[END]\n", b"a 0\nb 1\n[END] 2\n", b"{'a':0,'b':1,'[END]':2}"])
def test_symbols_with_byte_order_mark(option: str, content: bytes, tmp_path: Path) -> None:
    if (option == "orth_symbols_file") != (content == b"a\nb\n[END]\n"):
        return
    opts = _lm(tmp_path, word_based=True, **{option: _write(tmp_path / "symbols", _BOM + content)})
    assert _data(opts) == [{"data": [0, 1, 2]}, {"data": [1, 2]}]


def test_replace_map_with_byte_order_mark(tmp_path: Path) -> None:
    symbols = _write(tmp_path / "symbols", b"a\nb\n[END]\n")
    replace = _write(tmp_path / "replace.json", _BOM + b'{"b": "a a"}')
    opts = _lm(tmp_path, word_based=True, orth_symbols_file=symbols, orth_replace_map_file=replace)
    assert _data(opts) == [{"data": [0, 0, 0, 2]}, {"data": [0, 0, 2]}]


def test_translation_with_byte_order_mark(tmp_path: Path) -> None:
    for name in ("source", "target"):
        (tmp_path / f"{name}.vocab.pkl").write_bytes(pickle.dumps({"<unk>": 0, "a": 1, "b": 2}))
        (tmp_path / f"{name}.txt").write_bytes(_BOM + b"a b\nb\n")
    (tmp_path / "order").write_bytes(_BOM + b"1\n0\n")
    opts = {"class": "TranslationDataset", "path": str(tmp_path), "file_postfix": "txt", "unknown_label": "<unk>"}
    expected = [{"data": [1, 2], "classes": [1, 2]}, {"data": [2], "classes": [2]}]
    assert _data(opts) == expected
    assert _data({**opts, "seq_list_file": str(tmp_path / "order")}) == expected[::-1]


def test_text_dict_with_byte_order_mark(tmp_path: Path) -> None:
    name = _write(tmp_path / "dict.txt", _BOM + b"{'a': 'x'}")
    opts = {"class": "TextDictDataset", "filename": name, "item_format": "single", "vocab": _BYTES}
    assert _data(opts) == [{"data": [120]}]


def test_lexicon_files_with_byte_order_mark(tmp_path: Path) -> None:
    def with_mark(name: str) -> str:
        return _write(tmp_path / name, _BOM + (LM / name).read_bytes())

    assert Lexicon(with_mark("lexicon.xml")).lemmas == Lexicon(str(LM / "lexicon.xml")).lemmas
    tying, expected = StateTying(with_mark("state_tying.txt")), StateTying(str(LM / "state_tying.txt"))
    assert tying.allo_map == expected.allo_map


# ---- wrong values


@pytest.mark.parametrize(
    ("opts", "match"),
    [
        ({"corpus_file": []}, r'"corpus_file".*expected.*got \[\]'),
        ({"corpus_file": None}, r'"corpus_file".*got None'),
        ({"corpus_file": [None]}, r'"corpus_file".*got \[None\]'),
        ({"corpus_file": lambda: 3}, r'"corpus_file".*got 3'),
        ({"seq_list_file": 3}, r'"seq_list_file".*got 3'),
        ({"orth_vocab": "vocab.txt"}, r'"orth_vocab".*dict of options.*got \'vocab.txt\''),
        ({"dtype": "intt"}, r'"dtype".*got \'intt\''),
        ({"orth_vocab": None, "phone_info": "x"}, r'"phone_info".*expected a dict.*got \'x\''),
        ({"orth_vocab": None, "phone_info": {}}, "PhoneSeqGenerator needs lexicon_file"),
        ({"orth_vocab": None, "phone_info": {"lexicon_fil": "x"}}, "Did you mean lexicon_file"),
        ({"orth_vocab": None, "orth_symbols_file": "S", "parse_orth_opts": "x"}, r'"parse_orth_opts".*expected a dict'),
        ({"orth_vocab": None, "orth_symbols_file": "S", "parse_orth_opts": {"remove_char": ""}}, "remove_chars"),
        ({"orth_vocab": None, "orth_symbols_file": "S", "parse_orth_opts": {"remove_chars": 3}}, "parse_orth_opts"),
        ({"orth_vocab": {"vocab_file": 3}}, r'"vocab_file".*got 3'),
        ({"orth_vocab": {"class": "Utf8ByteTarget"}}, "'Utf8ByteTargets'"),
        (
            {"orth_vocab": {"bpe_file": None, "vocab_file": str(LM / "words.syms.pydict"), "unknown_label": None}},
            "bpe_file",
        ),
        ({"orth_vocab": {"bpe_file": "S"}}, "BytePairEncoding needs vocab_file"),
    ],
)
def test_wrong_options_of_lm_dataset(opts: dict[str, Any], match: str, tmp_path: Path) -> None:
    symbols = _write(tmp_path / "symbols", b"a\nb\n[END]\nUNK\n")
    opts = {key: symbols if value == "S" else value for key, value in opts.items()}
    with pytest.raises(UserError, match=match):
        read_epoch(init_dataset({**_lm(tmp_path), "orth_vocab": _BYTES, **opts}), 1)


@pytest.mark.parametrize("content", [b"", b"\n \n"])
def test_corpus_without_text(content: bytes, tmp_path: Path) -> None:
    opts = {"class": "LmDataset", "corpus_file": _write(tmp_path / "empty.txt", content), "orth_vocab": _BYTES}
    with pytest.raises(UserError, match=r"no sequences.*empty.txt"):
        read_epoch(init_dataset(opts), 1)


@pytest.mark.parametrize("encoding", [b"unheard-of", b"utf-7"])
def test_xml_in_unknown_encoding(encoding: bytes, tmp_path: Path) -> None:
    name = _write(tmp_path / "corpus.xml", b'<?xml version="1.0" encoding="' + encoding + b'"?><corpus name="c"/>')
    with pytest.raises(UserError, match=r"corpus.xml.*encoding"):
        read_epoch(init_dataset({"class": "LmDataset", "corpus_file": name, "orth_vocab": _BYTES}), 1)


@pytest.mark.parametrize("option", ["vocab", "filename"])
def test_wrong_options_of_text_dict(option: str, tmp_path: Path) -> None:
    opts = {"class": "TextDictDataset", "filename": str(LM / "dict_nbest.txt"), "vocab": _BYTES, option: 3}
    with pytest.raises(UserError, match=f'"{option}".*got 3'):
        init_dataset(opts)


@pytest.mark.parametrize("option", ["path", "source_postfix", "target_postfix"])
def test_wrong_options_of_translation(option: str, tmp_path: Path) -> None:
    opts = {"class": "TranslationDataset", "path": str(tmp_path), "file_postfix": "txt", option: None}
    with pytest.raises(UserError, match=f'"{option}".*got None'):
        init_dataset(opts)


def test_vocabulary_changed_before_a_worker_starts(tmp_path: Path) -> None:
    vocab = _write(tmp_path / "vocab", b"UNK\na\nb\n")
    dataset = init_dataset(_lm(tmp_path, orth_vocab={"vocab_file": vocab}))
    read_epoch(pickle.loads(pickle.dumps(dataset)), 1)
    pickled = pickle.dumps(dataset)
    _write(tmp_path / "vocab", b"UNK\nmore\na\nb\n")
    with pytest.raises(UserError, match="labels are not those .* vocabulary was changed"):
        read_epoch(pickle.loads(pickled), 2)
    assert len(read_epoch(dataset, 2)) == 2  # has read it before


# ---- random functions must be called in each epoch


class _DrawingTokenizer:
    """As a tokenizer of the package transformers, but the ids tell how often it was called."""

    unk_token = eos_token = bos_token = pad_token = None
    unk_token_id = eos_token_id = bos_token_id = pad_token_id = None

    class backend_tokenizer:  # noqa: N801
        class model:  # noqa: N801
            dropout = 0.0

    def __init__(self) -> None:
        self.num_calls = 0

    def __len__(self) -> int:
        return 100

    def __call__(self, text: str) -> dict[str, list[int]]:
        self.num_calls += 1
        return {"input_ids": [self.num_calls]}

    def convert_ids_to_tokens(self, ids: list[int]) -> list[str]:
        return [str(idx) for idx in ids]

    def get_vocab(self) -> dict[str, int]:
        return {str(idx): idx for idx in range(100)}


def _bulk_or_single(opts: dict[str, Any]) -> list[list[int]]:
    """:return: data of epochs 1 and 2, read at once if that is possible"""
    dataset = init_dataset(opts)
    result = []
    for epoch in (1, 2):
        dataset.init_seq_order(epoch=epoch)
        data = dataset.read_seqs(numpy.arange(dataset.num_seqs), ["data"])
        if data is not None:
            result.append(data["data"].flat.tolist())
            continue
        dataset.load_seqs(0, dataset.num_seqs)
        result.append([x for i in range(dataset.num_seqs) for x in dataset.get_data(i, "data").tolist()])
    return result


@pytest.mark.parametrize("class_name", ["LmDataset", "TextDictDataset"])
def test_dropout_of_tokenizer_in_each_epoch(class_name: str, tmp_path: Path) -> None:
    vocab = HuggingFaceTokenizer(tokenizer=_DrawingTokenizer(), bpe_dropout=0.5)
    if class_name == "LmDataset":
        opts = _lm(tmp_path, orth_vocab=vocab)
    else:
        name = _write(tmp_path / "dict", b"{'a': 'x', 'b': 'y'}")
        opts = {"class": class_name, "filename": name, "item_format": "single", "vocab": vocab}
    first, second = _bulk_or_single(opts)
    assert first != second


def test_own_post_process_function_in_each_epoch(tmp_path: Path) -> None:
    calls: list[str] = []

    def random_case(text: str) -> str:
        calls.append(text)
        return text.upper() if len(calls) % 3 else text

    first, second = _bulk_or_single(_lm(tmp_path, orth_vocab=_BYTES, orth_post_process=["lowercase", random_case]))
    assert first != second
    # Named cleaners always do the same, so that batches can be made in bulk.
    for cleaners in ("lowercase", ["lowercase", "get_replace('a', 'b')"]):
        dataset = init_dataset(_lm(tmp_path, orth_vocab=_BYTES, orth_post_process=cleaners))
        dataset.init_seq_order(epoch=1)
        assert dataset.supports_bulk()


def test_model_without_sampling_in_bulk(tmp_path: Path) -> None:
    pytest.importorskip("sentencepiece")
    model = str(LM.parent / "vocab" / "spm_demo.model")
    for sampling in (False, True):
        opts: dict[str, Any] = {"class": "SentencePieces", "model_file": model}
        if sampling:
            opts.update(enable_sampling=True, alpha=0.1, nbest_size=-1)
        dataset = init_dataset(_lm(tmp_path, orth_vocab=opts))
        dataset.init_seq_order(epoch=1)
        assert dataset.supports_bulk() == (not sampling)
        assert Vocabulary.create_vocab(**opts).is_random == sampling
