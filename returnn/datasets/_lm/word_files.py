"""
Text files of a translation corpus as columns of word indices, and their pickled vocabularies.
"""

from __future__ import annotations

import array
import os
import zlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy

from returnn.errors import DataFileError
from returnn.util import restricted_pickle
from returnn.util.fs import open_binary

__all__ = ["find_file", "load_word_vocab", "labels_of_words", "WordIds", "iter_text_lines", "read_word_columns"]

Cached = Callable[[str], str] | None


def find_file(path: str, *, what: str, gz: bool) -> str:
    """
    :param path: wanted file
    :param what: for the message
    :param gz: it may also be compressed, then the name ends with ``.gz``
    :return: the one that exists
    :raises DataFileError: there is none
    """
    for name in (path, path + ".gz") if gz else (path,):
        if os.path.exists(name):
            return name
    folder = os.path.dirname(path) or "."
    hint = f" In {folder!r} there is: {sorted(os.listdir(folder))[:10]}." if os.path.isdir(folder) else ""
    raise DataFileError(f"{what} file not found: {path!r}{' (.gz)?' if gz else '.'}{hint}")


def load_word_vocab(filename: str, *, cached: Cached = None) -> dict[str, int]:
    """
    :param filename: pickled dict word -> index
    :param cached: gives a local copy
    :raises DataFileError: broken, anything else than such a dict, or with gaps between the indices
    """
    with open_binary(filename, cached=cached) as file:
        vocab: Any = restricted_pickle.load(file, filename=filename)
    if not isinstance(vocab, dict) or not vocab:
        raise DataFileError(
            f"Vocab file {filename!r}: expected a non-empty dict word -> index, got {type(vocab).__name__} {vocab!r:.60}."
        )
    result: dict[str, int] = {}
    for word, idx in vocab.items():
        if not isinstance(word, str) or not isinstance(idx, (int, numpy.integer)) or idx < 0:
            raise DataFileError(f"Vocab file {filename!r}: expected word (str) -> index (int), got {word!r}: {idx!r}.")
        result[word] = int(idx)
    missing = set(range(max(result.values()) + 1)).difference(result.values())
    if missing:
        raise DataFileError(
            f"Vocab file {filename!r}: {len(missing)} indices below the largest one ({max(result.values())}) have no "
            f"word, e.g. {sorted(missing)[:5]}. Number the words without gaps."
        )
    return result


def labels_of_words(vocab: dict[str, int]) -> list[str]:
    """
    :param vocab: word -> index, without gaps
    :return: word per index; of several the lexicographically last
    """
    word_of_idx = dict(sorted((idx, word) for word, idx in vocab.items()))
    return list(word_of_idx.values())


class WordIds(dict[str, int]):
    """Word -> index, also for unknown words, if there is an index for these."""

    def __init__(self, vocab: dict[str, int], *, unknown_label: str | None, key: str, filename: str) -> None:
        """
        :param vocab: word -> index
        :param unknown_label: stands for all other words
        :param key: data key, for messages
        :param filename: of the vocabulary, for messages
        :raises DataFileError: the unknown_label is not in the vocabulary
        """
        super().__init__(vocab)
        self._unknown_id: int | None = None
        if unknown_label is not None:
            if unknown_label not in vocab:
                raise DataFileError(
                    f"option unknown_label: {unknown_label!r} of data key {key!r} is not in the vocab file {filename!r} "
                    f"({len(vocab)} words, e.g. {list(vocab)[:5]})."
                )
            self._unknown_id = vocab[unknown_label]

    def __missing__(self, word: str) -> int:
        if self._unknown_id is None:
            raise KeyError(word)
        return self._unknown_id


def iter_text_lines(filename: str, *, cached: Cached = None) -> Iterator[str]:
    """
    :param filename: UTF-8, ``.gz`` or not
    :param cached: gives a local copy
    :return: lines
    :raises DataFileError: with file and line
    """
    number = 0
    with open_binary(filename, cached=cached) as file:
        try:
            for line in file:
                number += 1
                yield line.decode("utf-8-sig" if number == 1 else "utf8")
        except UnicodeDecodeError as exc:
            raise DataFileError(
                f"{filename}, line {number}: the text is not UTF-8 ({exc.reason}). Convert the file to UTF-8."
            ) from exc
        except (OSError, EOFError, zlib.error) as exc:
            if isinstance(exc, DataFileError):
                raise
            raise DataFileError(f"{filename}, after line {number}: cannot read: {exc}.") from exc


def read_word_columns(
    filename: str,
    *,
    postfix: str,
    vocabs: Sequence[WordIds],
    keys: Sequence[str],
    separator: str,
    cached: Cached = None,
) -> tuple[list[numpy.ndarray], numpy.ndarray]:
    """
    Read a text file once.

    :param filename: one sequence per line
    :param postfix: appended to the text of each line, before it is split into words
    :param vocabs: one per factor
    :param keys: data keys of the factors, for messages
    :param separator: between the factors of a word, if there are several
    :param cached: gives a local copy
    :return: flat int32 indices of each factor; int64 [lines + 1] where the lines begin in them
    :raises DataFileError: an unknown word without unknown_label, or a word without all factors: with file and line
    """
    flats = [array.array("i") for _ in vocabs]
    ends = array.array("q", [0])
    for line in iter_text_lines(filename, cached=cached):
        try:
            if len(vocabs) == 1:
                flats[0].extend(map(vocabs[0].__getitem__, (line.strip() + postfix).split()))
            else:
                _add_factors(flats, vocabs, line.split(), postfix.split(), separator)
        except KeyError as exc:
            raise DataFileError(
                f"{filename}, line {len(ends)}: Can not handle unknown token without unknown_label: {exc.args[0]!r} "
                f"(data keys {list(keys)}). Set unknown_label to a word of the vocabulary, e.g. '<UNK>'."
            ) from None
        except _WrongFactors as exc:
            raise DataFileError(
                f"{filename}, line {len(ends)}: All words must have all factors. Expected: {separator.join(keys)}, "
                f"got {exc.args[0]!r}."
            ) from None
        ends.append(len(flats[0]))
    return [_as_int32(flat) for flat in flats], numpy.frombuffer(ends, dtype=numpy.int64)


class _WrongFactors(Exception):
    """Argument: the word."""


def _add_factors(
    flats: Sequence[array.array[int]],
    vocabs: Sequence[WordIds],
    words: list[str],
    postfix_words: list[str],
    separator: str,
) -> None:
    """
    :param flats: one per factor, get the indices
    :param vocabs: one per factor
    :param words: with all factors
    :param postfix_words: come after these, with every factor the same
    :param separator: between the factors
    """
    rows = [word.split(separator) for word in words]
    for word, row in zip(words, rows, strict=True):
        if len(row) != len(vocabs):
            raise _WrongFactors(word)
    for factor, (flat, vocab) in enumerate(zip(flats, vocabs, strict=True)):
        flat.extend([vocab[row[factor]] for row in rows])
        flat.extend([vocab[word] for word in postfix_words])


def _as_int32(values: array.array[int]) -> numpy.ndarray:
    return (
        numpy.frombuffer(values, dtype=numpy.intc).astype(numpy.int32, copy=False)
        if values
        else numpy.zeros(0, numpy.int32)
    )
