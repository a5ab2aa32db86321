"""Vocabulary of given labels, strings."""

from __future__ import annotations

import numpy
import pytest

from returnn.datasets.util.strings import str_to_numpy_array
from returnn.datasets.util.vocabulary import CharacterTargets, Utf8ByteTargets, Vocabulary
from returnn.errors import DatasetError, NotSupportedError


def test_words() -> None:
    vocab = Vocabulary.create_vocab_from_labels(["a", "bb", "<unk>"], unknown_label="<unk>")
    assert type(vocab) is Vocabulary and vocab.num_labels == 3
    assert vocab.get_seq("bb a foo") == [1, 0, 2]
    assert vocab.get_seq_labels(numpy.array([1, 0])) == "bb a"
    assert (vocab.id_to_label(1), vocab.id_to_label(9), vocab.label_to_id("bb")) == ("bb", None, 1)
    assert vocab.serialize_labels(numpy.array([[0, 1], [1, 1]])) == "[a bb],[bb bb]"
    with pytest.raises(KeyError, match="label 'x' not found"):
        Vocabulary(labels=["a"]).label_to_id("x")
    assert Vocabulary(labels=["a"]).label_to_id("x", default=5) == 5


def test_characters_and_bytes() -> None:
    chars = Vocabulary.create_vocab_from_labels(list("abc "))
    assert isinstance(chars, CharacterTargets)
    assert chars.get_seq("a c") == [0, 3, 2] and chars.get_seq_labels([0, 3, 2]) == "a c"
    utf8 = Vocabulary.create_vocab_from_labels([chr(i) for i in range(256)])
    assert isinstance(utf8, Utf8ByteTargets)
    assert utf8.get_seq_labels(numpy.array(utf8.get_seq("für"), dtype="int32")) == "für"


def test_errors() -> None:
    with pytest.raises(NotSupportedError, match="vocab.txt"):
        Vocabulary("vocab.txt")
    with pytest.raises(DatasetError, match="labels"):
        Vocabulary()
    with pytest.raises(DatasetError, match="unknown_label"):
        Vocabulary(labels=["a"], unknown_label="b")


def test_str_to_numpy_array() -> None:
    array = str_to_numpy_array("abc")
    assert array.ndim == 0 and array.dtype.kind == "U" and str(array) == "abc"
