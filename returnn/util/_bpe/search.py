"""
Segmentations of a word by the labels in a prefix tree.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from returnn.util._bpe.prefix_tree import PrefixTree

__all__ = ["Hyp", "HypInPos", "CharSyncSearch", "DepthFirstSearch"]

# A word with that many has most likely no segmentation, but exponentially many tries.
_MAX_EXPANSIONS = 20_000


class Hyp(NamedTuple):
    """Partial segmentation: the labels that are complete, and the node of the current label."""

    done_labels: tuple[str, ...]
    position: PrefixTree

    def expand(self, char: str) -> list[Hyp]:
        """
        :param char: next one of the word
        :return: those with a new label first, then the one that continues the current label
        """
        node, result = self.position, []
        opts = node.opts
        restart = node.root.arcs.get(char)
        if restart is not None and node.bpe_finished and opts.label_postfix_merge_symbol is not None:
            label = node.prefix + opts.label_postfix_merge_symbol
            result.append(Hyp((*self.done_labels, label), restart))
        if restart is not None and node.finished and opts.word_prefix_symbol is not None:
            result.append(Hyp((*self.done_labels, node.prefix), restart))
        following = node.arcs.get(char)
        if following is not None:
            result.append(Hyp(self.done_labels, following))
        return result

    def labels(self) -> list[str]:
        """:return: all labels, if the current one ends here"""
        return [*self.done_labels, self.position.prefix]


class HypInPos(NamedTuple):
    """As :class:`Hyp`, with the position of the next character."""

    done_labels: tuple[str, ...]
    position: PrefixTree
    pos: int


class CharSyncSearch:
    """All segmentations of a word, by breadth first search, character by character. Their number can be exponential."""

    def __init__(self, bpe: PrefixTree, word: str, word_pos: int = 0) -> None:
        """
        :param bpe: tree of the labels
        :param word: to be segmented
        :param word_pos: of the first character to be covered
        """
        self.bpe, self.word, self.word_pos = bpe, word, word_pos

    def search(self) -> list[list[str]]:
        """:return: the segmentations; those with short labels at the begin come first; [] if there is none"""
        start = self.bpe.start_node()
        hyps = [Hyp((), start)] if start is not None and self.word_pos < len(self.word) else []
        for char in self.word[self.word_pos :]:
            hyps = [new for hyp in hyps for new in hyp.expand(char)]
        return [hyp.labels() for hyp in hyps if hyp.position.word_finished]


class DepthFirstSearch:
    """One segmentation of a word: longest labels first, or random by the sampler."""

    def __init__(self, bpe: PrefixTree, word: str, sampler: Callable[[], bool] | None = None) -> None:
        """
        :param bpe: tree of the labels
        :param word: to be segmented
        :param sampler: called exactly once per expansion; whether to prefer the shorter label
        """
        self.bpe, self.word, self.sampler = bpe, word, sampler

    def search(self) -> list[str] | None:
        """:return: labels, or None if there is no segmentation"""
        start = self.bpe.start_node()
        if start is None or not self.word:
            return None
        root_arcs, opts = start.root.arcs, start.opts
        post, word_prefix = opts.label_postfix_merge_symbol, opts.word_prefix_symbol
        stack = [HypInPos((), start, 0)]
        result: list[str] | None = None
        # What was expanded before has no solution, or it is on the stack. With a sampler, the number of draws is defined by
        # the search without that knowledge, as far as that is no endless search.
        dead: set[tuple[int, int]] = set()
        num_expanded = 0
        while stack and result is None:
            done_labels, node, pos = stack.pop()
            num_expanded += 1
            if self.sampler is None or num_expanded > _MAX_EXPANSIONS:
                if (id(node), pos) in dead:
                    continue
                dead.add((id(node), pos))
            # As Hyp.expand, but this is called for each character of a text.
            char = self.word[pos]
            pos += 1
            new = []
            restart = root_arcs.get(char)
            if restart is not None:
                if post is not None and node.bpe_finished:
                    new.append(HypInPos((*done_labels, node.prefix + post), restart, pos))
                if word_prefix is not None and node.finished:
                    new.append(HypInPos((*done_labels, node.prefix), restart, pos))
            following = node.arcs.get(char)
            if following is not None:
                new.append(HypInPos(done_labels, following, pos))
            if self.sampler is not None and self.sampler():
                new.reverse()
            if pos < len(self.word):
                stack += new
                continue
            for hyp in new:
                if hyp.position.word_finished:
                    result = [*hyp.done_labels, hyp.position.prefix]
        return result
