"""
Random segmentation of words by a list of labels.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Collection
from typing import Any

import numpy

from returnn.errors import DatasetError, OptionError
from returnn.util._bpe.markers import BpeOpts, checked_labels
from returnn.util._bpe.prefix_tree import PrefixTree
from returnn.util._bpe.search import DepthFirstSearch

__all__ = ["SamplingBytePairEncoder"]

_MAX_CACHED_WORDS = 100_000


class SamplingBytePairEncoder:
    """Random segmentation by a list of labels."""

    def __init__(
        self,
        labels: Collection[str],
        breadth_prob: float,
        rnd: numpy.random.RandomState,
        unknown_label: str | None = None,
        opts: BpeOpts | None = None,
    ) -> None:
        """
        :param labels: the vocabulary
        :param breadth_prob: 0.0: longest label first; 1.0: shortest first; between: random per character
        :param rnd: one draw per expansion of the search, none if breadth_prob is 0.0 or 1.0. The owner may seed it anew
        :param unknown_label: for a word without segmentation; None: error
        :param opts: default: postfix marker ``@@``
        :raises OptionError: labels or breadth_prob invalid
        """
        if not isinstance(breadth_prob, (int, float)) or not 0.0 <= breadth_prob <= 1.0:
            raise OptionError("breadth_prob", expected="float in 0..1", got=breadth_prob)
        self.breadth_prob = breadth_prob
        self.rnd = rnd
        self.unknown_label = unknown_label
        self._labels = checked_labels(labels)
        self._opts = opts

    @functools.cached_property
    def _tree(self) -> PrefixTree:
        tree = PrefixTree(opts=self._opts)
        for label in self._labels:
            tree.add(label)
        return tree

    @functools.cached_property
    def _cached(self) -> Callable[[str], list[str] | None]:
        return functools.lru_cache(maxsize=_MAX_CACHED_WORDS)(self._split_without_draws)

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be computed again. Any: attributes."""
        return {name: value for name, value in vars(self).items() if name not in ("_tree", "_cached")}

    def _split_without_draws(self, word: str) -> list[str] | None:
        return DepthFirstSearch(self._tree, word, sampler=(lambda: True) if self.breadth_prob else None).search()

    def _sampler(self) -> bool:
        return bool(self.rnd.random_sample() <= self.breadth_prob)

    def get_bpe_split_for_word(self, word: str) -> list[str] | None:
        """:return: labels, or None if the word has no segmentation"""
        if self.breadth_prob in (0.0, 1.0):
            labels = self._cached(word)
            return None if labels is None else list(labels)
        return DepthFirstSearch(self._tree, word, sampler=self._sampler).search()

    def segment_sentence(self, sentence: str) -> list[str]:
        """
        :param sentence: words separated by whitespace
        :return: labels
        :raises DatasetError: a word has no segmentation and there is no unknown label
        """
        result = []
        for word in sentence.split():
            labels = self.get_bpe_split_for_word(word)
            if labels is None:
                if self.unknown_label is None:
                    raise DatasetError(
                        f"no BPE-split for word {word!r}. Set the option unknown_label, or add its characters to the vocabulary."
                    )
                labels = [self.unknown_label]
            result.extend(labels)
        return result
