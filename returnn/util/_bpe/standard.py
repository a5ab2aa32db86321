"""
Segmentation of words by the merges of a codes file.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

from returnn.util._bpe.codes import END, BpeCodes
from returnn.util._bpe.markers import BpePostMergeSymbol, checked_labels

__all__ = ["StandardBytePairEncoder"]

# About 20 MB.
_MAX_CACHED_WORDS = 100_000
# Higher than each rank.
_NO_RANK = 1 << 62


class StandardBytePairEncoder:
    """Segments words by the merges of a codes file (subword-nmt, versions 0.1 and 0.2). Can be pickled."""

    def __init__(self, codes_file: str, labels: Collection[str] | None = None) -> None:
        """
        :param codes_file: text, ``.gz`` allowed. Optional first line ``#version: 0.2``, then two symbols per line
        :param labels: the vocabulary. If given, merges that lead to pieces outside of it are undone
        :raises DataFileError: missing or broken file, with line number
        :raises NotSupportedError: other version
        """
        self._labels = None if labels is None else checked_labels(labels)
        self._codes = BpeCodes.read(codes_file)

    @functools.cached_property
    def _cached(self) -> Callable[[str], tuple[str, ...]]:
        return functools.lru_cache(maxsize=_MAX_CACHED_WORDS)(self.encode_word)

    def __getstate__(self) -> dict[str, Any]:
        """Without the cache of words. Any: attributes."""
        return {name: value for name, value in vars(self).items() if name != "_cached"}

    def segment_sentence(self, sentence: str) -> list[str]:
        """
        :param sentence: words separated by whitespace. A category as ``$num { one two }`` is not segmented
        :return: pieces; all but the last one of a word end with ``@@``
        """
        pieces: list[str] = []
        in_category = skip = False
        for word in sentence.split():
            if len(word) > 1 and word.startswith("$"):
                in_category = True
                pieces.append(word)
            elif in_category and word.startswith("{"):
                skip = True
                pieces.append(word)
            elif skip and not word.startswith("}"):
                pieces.append(word)
            else:
                in_category = skip = False
                pieces.extend(self.segment_word(word))
        return pieces

    def segment_word(self, word: str) -> tuple[str, ...]:
        """
        As :func:`encode_word`, but words which were asked for lately are remembered.

        :param word: without whitespace
        :return: pieces with the marker ``@@``
        """
        return self._cached(word)

    def encode_word(self, word: str) -> tuple[str, ...]:
        """
        :param word: without whitespace
        :return: pieces with the marker ``@@``
        """
        *first, last = self._pieces(word)
        return (*[piece + BpePostMergeSymbol for piece in first], last)

    def _pieces(self, word: str) -> list[str]:
        """:return: pieces without marker, at least one"""
        if self._codes.version == (0, 1):
            symbols = [*word, END]
        else:
            symbols = [*word[:-1], word[-1:] + END]
        if len(symbols) == 1:
            return [word]
        self._merge(symbols)
        if symbols[-1] == END and len(symbols) > 1:
            symbols.pop()
        else:
            symbols[-1] = symbols[-1].removesuffix(END)
        return symbols if self._labels is None else self._split_unknown(symbols, self._labels)

    def _merge(self, symbols: list[str]) -> None:
        """Merge in place: again and again all occurrences of the pair with the lowest rank, from left to right."""
        get_rank = self._codes.ranks.get
        # Of each symbol with the next one. Each rank stands for one pair.
        ranks = [get_rank(pair, _NO_RANK) for pair in zip(symbols, symbols[1:], strict=False)]
        while ranks:
            rank = min(ranks)
            if rank == _NO_RANK:
                break
            i = 0
            for _ in range(ranks.count(rank)):
                try:
                    i = ranks.index(rank, i)
                except ValueError:  # it overlapped with the one before, as in "a a a"
                    break
                symbols[i] += symbols.pop(i + 1)
                del ranks[i]
                if i > 0:
                    ranks[i - 1] = get_rank((symbols[i - 1], symbols[i]), _NO_RANK)
                if i < len(ranks):
                    ranks[i] = get_rank((symbols[i], symbols[i + 1]), _NO_RANK)

    def _split_unknown(self, symbols: list[str], labels: frozenset[str]) -> list[str]:
        """Undo the merges of the pieces that are not in the vocabulary. What cannot be split stays."""
        result = []
        todo = [(piece, i == len(symbols) - 1) for i, piece in enumerate(symbols)][::-1]
        while todo:
            piece, final = todo.pop()
            pair = None
            if (piece if final else piece + BpePostMergeSymbol) not in labels:
                pair = self._codes.merged_to_pair.get(piece + END if final else piece)
            if pair is None:
                result.append(piece)
            else:
                left, right = pair
                todo.append((right[: -len(END)] if final else right, final))
                todo.append((left, False))
        return result
