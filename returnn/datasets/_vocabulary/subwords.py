"""
Vocabularies of byte pair encoding: with merges of a codes file, or with random segmentation.
"""

from __future__ import annotations

import functools
import itertools
import os
from collections.abc import Callable, Sequence
from typing import Any

import numpy

from returnn.datasets._vocabulary.base import Vocabulary
from returnn.errors import OptionError
from returnn.util.bpe import BpeOpts, BpePostMergeSymbol, SamplingBytePairEncoder, StandardBytePairEncoder
from returnn.util.markers import NotSpecified

__all__ = ["BytePairEncoding", "SamplingBytePairEncoding"]

# About 20 MB.
_MAX_CACHED_WORDS = 100_000


class BytePairEncoding(Vocabulary):
    """Words are split into pieces by the merges of a codes file (subword-nmt)."""

    def __init__(
        self,
        vocab_file: str | None,
        bpe_file: str | os.PathLike[str],
        seq_postfix: Sequence[int] | numpy.ndarray | None = None,
        **kwargs: Any,
    ) -> None:
        """
        :param vocab_file: as for Vocabulary. Merges that lead to pieces outside of it are undone
        :param bpe_file: merges, see :class:`returnn.util.bpe.StandardBytePairEncoder`
        :param seq_postfix: ids that get_seq appends
        :param kwargs: as for Vocabulary. Any: each option has its own type
        """
        super().__init__(vocab_file, seq_postfix, **kwargs)
        if not isinstance(bpe_file, (str, os.PathLike)):
            raise OptionError("bpe_file", expected="name of the codes file", got=bpe_file, where=self._source)
        self.bpe = StandardBytePairEncoder(os.fspath(bpe_file), labels=self._vocab)

    @functools.cached_property
    def _ids_of_word(self) -> Callable[[str], list[int]]:
        """Remembers the words used last. The lists are not to be changed."""
        return functools.lru_cache(maxsize=_MAX_CACHED_WORDS)(self._compute_ids_of_word)

    def _compute_ids_of_word(self, word: str) -> list[int]:
        return self.get_seq_indices(self.bpe.encode_word(word))

    def __getstate__(self) -> dict[str, Any]:
        """Without the cache of words. Any: attributes."""
        return {name: value for name, value in vars(self).items() if name != "_ids_of_word"}

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: words separated by whitespace
        :return: ids of the pieces, with seq_postfix
        :raises LabelError: (also KeyError) a piece is not in the vocabulary, and no unknown_label
        """
        if "$" in sentence:  # maybe a category, which is more than one word
            return self.get_seq_indices(self.bpe.segment_sentence(sentence)) + self.seq_postfix
        return [*itertools.chain.from_iterable(map(self._ids_of_word, sentence.split())), *self.seq_postfix]


class SamplingBytePairEncoding(Vocabulary):
    """Words are split into pieces at random, by the labels alone. Draws random numbers: see set_random_seed."""

    def __init__(
        self,
        vocab_file: str | None,
        breadth_prob: float,
        seq_postfix: Sequence[int] | numpy.ndarray | None = None,
        label_postfix_merge_symbol: str | None | type[NotSpecified] = NotSpecified,
        word_prefix_symbol: str | None | type[NotSpecified] = NotSpecified,
        **kwargs: Any,
    ) -> None:
        """
        :param vocab_file: as for Vocabulary
        :param breadth_prob: 0.0: longest label first, without randomness; 1.0: shortest first; between: random
        :param seq_postfix: ids that get_seq appends
        :param label_postfix_merge_symbol: at the end of a label: the word goes on. "@@" if both symbols are not given
        :param word_prefix_symbol: at the begin of a label: a word starts. Not together with label_postfix_merge_symbol
        :param kwargs: as for Vocabulary. Any: each option has its own type
        """
        super().__init__(vocab_file, seq_postfix, **kwargs)
        if label_postfix_merge_symbol is NotSpecified and word_prefix_symbol is NotSpecified:
            label_postfix_merge_symbol = BpePostMergeSymbol
        opts = BpeOpts(
            label_postfix_merge_symbol=_none_if_not_specified(label_postfix_merge_symbol),
            word_prefix_symbol=_none_if_not_specified(word_prefix_symbol),
        )
        self._rnd = numpy.random.RandomState(0)
        self.bpe = SamplingBytePairEncoder(
            self.labels, breadth_prob, self._rnd, unknown_label=self.unknown_label, opts=opts
        )

    def set_random_seed(self, seed: int) -> None:
        """
        :param seed: 0..2**32-1
        """
        if not 0 <= seed < 2**32:
            raise OptionError("seed", expected="int in 0..2**32-1", got=seed)
        self._rnd.seed(seed)

    def get_seq(self, sentence: str) -> list[int]:
        """
        :param sentence: words separated by whitespace
        :return: ids of the pieces, with seq_postfix
        :raises DatasetError: a word has no segmentation, and no unknown_label
        """
        return self.get_seq_indices(self.bpe.segment_sentence(sentence)) + self.seq_postfix


def _none_if_not_specified(symbol: str | None | type[NotSpecified]) -> str | None:
    return symbol if isinstance(symbol, str) else None
