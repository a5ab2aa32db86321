"""
Byte pair encoding of words: by a codes file of subword-nmt, or all or random segmentations by a list of labels.

Codes: Sennrich, Haddow, Birch 2016, "Neural Machine Translation of Rare Words with Subword Units".
Random segmentation: by depth first search in the prefix tree of the labels.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from typing import NamedTuple

import numpy

from returnn.errors import DataFileError, DatasetError, NotSupportedError, OptionError, describe
from returnn.util.fs import open_text

__all__ = [
    "BpeMergeSymbol",
    "BpePostMergeSymbol",
    "StandardBytePairEncoder",
    "BpeOpts",
    "PrefixTree",
    "Hyp",
    "HypInPos",
    "CharSyncSearch",
    "DepthFirstSearch",
    "SamplingBytePairEncoder",
]

#: At the end of a label: the word goes on with the next label. Name of mainline
BpePostMergeSymbol = "@@"
#: The same, name of Mini
BpeMergeSymbol = BpePostMergeSymbol

# In the codes: the end of a word.
_END = "</w>"
_VERSION_PREFIX = "#version:"
_MAX_CACHED_WORDS = 200_000


class StandardBytePairEncoder:
    """Segments words by the merges of a codes file (subword-nmt, versions 0.1 and 0.2). Can be pickled."""

    def __init__(self, codes_file: str, labels: Collection[str] | None = None) -> None:
        """
        :param codes_file: text, ``.gz`` allowed. Optional first line ``#version: 0.2``, then two symbols per line
        :param labels: the vocabulary. If given, merges that lead to pieces outside of it are undone
        :raises DataFileError: missing or broken file, with line number
        :raises NotSupportedError: other version
        """
        self._labels = None if labels is None else _checked_labels(labels)
        self._version, self._ranks = _read_codes(codes_file)
        # The pair nearest to the file start wins, so insert that last.
        self._merged_to_pair = {a + b: (a, b) for a, b in reversed(self._ranks)}
        self._cache: dict[str, tuple[str, ...]] = {}

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
        :param word: without whitespace
        :return: pieces with the marker ``@@``
        """
        result = self._cache.get(word)
        if result is None:
            *first, last = self._encode(word)
            result = (*(piece + BpePostMergeSymbol for piece in first), last)
            if len(self._cache) >= _MAX_CACHED_WORDS:
                self._cache = {}
            self._cache[word] = result
        return result

    def _encode(self, word: str) -> list[str]:
        """:return: pieces without marker, at least one"""
        if self._version == (0, 1):
            symbols = [*word, _END]
        else:
            symbols = [*word[:-1], word[-1:] + _END]
        if len(symbols) == 1:
            return [word]
        while len(symbols) > 1:
            known = [pair for pair in zip(symbols[:-1], symbols[1:], strict=True) if pair in self._ranks]
            if not known:
                break
            symbols = _merge(symbols, min(known, key=self._ranks.__getitem__))
        if symbols[-1] == _END and len(symbols) > 1:
            symbols.pop()
        else:
            symbols[-1] = symbols[-1].removesuffix(_END)
        return symbols if self._labels is None else self._split_unknown(symbols, self._labels)

    def _split_unknown(self, symbols: list[str], labels: frozenset[str]) -> list[str]:
        """Undo the merges of the pieces that are not in the vocabulary. What cannot be split stays."""
        result = []
        todo = [(piece, i == len(symbols) - 1) for i, piece in enumerate(symbols)][::-1]
        while todo:
            piece, final = todo.pop()
            pair = None
            if (piece if final else piece + BpePostMergeSymbol) not in labels:
                pair = self._merged_to_pair.get(piece + _END if final else piece)
            if pair is None:
                result.append(piece)
            else:
                left, right = pair
                todo.append((right[: -len(_END)] if final else right, final))
                todo.append((left, False))
        return result


def _merge(symbols: list[str], pair: tuple[str, str]) -> list[str]:
    """:return: with all occurrences of the pair merged, from left to right"""
    result = []
    i = 0
    while i < len(symbols):
        if symbols[i] == pair[0] and i + 1 < len(symbols) and symbols[i + 1] == pair[1]:
            result.append(pair[0] + pair[1])
            i += 2
        else:
            result.append(symbols[i])
            i += 1
    return result


def _read_codes(filename: str) -> tuple[tuple[int, ...], dict[tuple[str, str], int]]:
    """:return: version, pair -> rank, in the order of the file"""
    version: tuple[int, ...] = (0, 1)
    ranks: dict[tuple[str, str], int] = {}
    line_idx = -1
    with open_text(filename, encoding="utf-8-sig") as f:
        try:
            for line_idx, line in enumerate(f):
                line = line.strip("\r\n ")
                if line_idx == 0 and line.startswith(_VERSION_PREFIX):
                    version = _parse_version(line, filename)
                    continue
                if not line:
                    continue
                symbols = line.split(" ")
                if len(symbols) != 2 or not all(symbols):
                    where = f"file {filename!r}, line {line_idx + 1}"
                    text = describe(
                        "Broken BPE codes", where=where, expected="two symbols separated by one blank", got=line
                    )
                    raise DataFileError(text)
                ranks.setdefault((symbols[0], symbols[1]), line_idx)
        except UnicodeDecodeError as exc:
            raise DataFileError(
                f"BPE codes are not UTF-8 (in file {filename!r}, after line {line_idx + 1}): {exc}."
            ) from exc
        except DataFileError:
            raise
        except (OSError, EOFError, zlib.error) as exc:
            raise DataFileError(
                f"Cannot read BPE codes (in file {filename!r}, after line {line_idx + 1}): {exc}."
            ) from exc
    return version, ranks


def _parse_version(line: str, filename: str) -> tuple[int, ...]:
    """:return: e.g. (0, 2), also for 0.2.0"""
    text = line[len(_VERSION_PREFIX) :].strip()
    where = f"file {filename!r}, line 1"
    if not re.fullmatch(r"[0-9]+(\.[0-9]+)*", text):
        raise DataFileError(describe("Broken BPE codes", where=where, expected="a version like 0.2", got=text))
    version = tuple(int(part) for part in re.sub(r"(\.0+)*$", "", text).split("."))
    if version not in ((0, 1), (0, 2)):
        raise NotSupportedError(
            describe("BPE codes of unknown version", where=where, expected="version 0.1 or 0.2", got=text)
        )
    return version


def _checked_labels(labels: Iterable[str]) -> frozenset[str]:
    """:raises OptionError: not a collection of str"""
    if isinstance(labels, (str, bytes)):
        raise OptionError("labels", expected="a list or dict of labels", got=labels)
    result = frozenset(labels)
    for label in result:
        if not isinstance(label, str):
            raise OptionError("labels", expected="labels of type str", got=label)
    return result


@dataclass(frozen=True)
class BpeOpts:
    """
    How labels tell the borders of words. At most one is set; with none, each word must be a label.

    :param label_postfix_merge_symbol: at the end of a label: the word goes on, e.g. ``@@``
    :param word_prefix_symbol: at the begin of a label: here a word starts, e.g. U+2581 (as SentencePiece does)
    :raises OptionError: empty symbol, or both set
    """

    label_postfix_merge_symbol: str | None = None
    word_prefix_symbol: str | None = None

    def __post_init__(self) -> None:
        for name in ("label_postfix_merge_symbol", "word_prefix_symbol"):
            value = getattr(self, name)
            if value is not None and not (isinstance(value, str) and value):
                raise OptionError(name, expected="a str which is not empty, or None", got=value)
        if self.word_prefix_symbol is not None and self.label_postfix_merge_symbol is not None:
            raise OptionError(
                "label_postfix_merge_symbol",
                expected=f"None, since word_prefix_symbol is {self.word_prefix_symbol!r}",
                got=self.label_postfix_merge_symbol,
            )


_DEFAULT_OPTS = BpeOpts(label_postfix_merge_symbol=BpePostMergeSymbol)


class PrefixTree:
    """
    Node of a trie over the characters of labels; the tree is known by its root.

    ``arcs``: character (or marker symbol) -> node. ``finished``: a label ends here.
    ``bpe_finished``: a label that consists of this prefix and the postfix marker exists.
    """

    __slots__ = ("prefix", "root", "opts", "arcs", "finished", "bpe_finished")

    def __init__(self, prefix: str = "", root: PrefixTree | None = None, *, opts: BpeOpts | None = None) -> None:
        """
        :param prefix: text from the root to this node
        :param root: None if this is the root
        :param opts: default: those of the root, else the postfix marker ``@@``
        """
        self.prefix = prefix
        self.root: PrefixTree = self if root is None else root
        self.opts: BpeOpts = opts or (root.opts if root is not None else _DEFAULT_OPTS)
        self.arcs: dict[str, PrefixTree] = {}
        self.finished = False
        self.bpe_finished = False

    def add(self, label: str) -> None:
        """
        :param label: added below this node, normally the root. Without text (empty or only the postfix marker): ignored
        """
        post, word_prefix = self.opts.label_postfix_merge_symbol, self.opts.word_prefix_symbol
        arcs: list[str] = []
        if word_prefix is not None and label.startswith(word_prefix):
            arcs.append(word_prefix)
            label = label[len(word_prefix) :]
        is_inner = post is not None and label.endswith(post)
        if post is not None and is_inner:
            label = label[: -len(post)]
        arcs.extend(label)
        if not arcs:
            return
        node = self
        for arc in arcs:
            node = node._add_arc(arc)
        if post is not None and is_inner:
            node.bpe_finished = True
            node = node._add_arc(post)
        node.finished = True

    def _add_arc(self, arc: str) -> PrefixTree:
        node = self.arcs.get(arc)
        if node is None:
            node = self.arcs[arc] = PrefixTree(self.prefix + arc, self.root, opts=self.opts)
        return node

    def start_node(self) -> PrefixTree | None:
        """:return: where a word starts: the root, or its arc for the word prefix; None if there is none"""
        word_prefix = self.opts.word_prefix_symbol
        return self.root if word_prefix is None else self.root.arcs.get(word_prefix)

    def is_word_end(self) -> bool:
        """:return: whether a label ends here that ends a word, i.e. has no postfix marker"""
        post = self.opts.label_postfix_merge_symbol
        return self.finished and not (post is not None and self.prefix.endswith(post))


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
        return [hyp.labels() for hyp in hyps if hyp.position.is_word_end()]


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
        stack = [HypInPos((), start, 0)]
        result: list[str] | None = None
        # Without sampler: what was expanded before has no solution. With it, the number of draws is defined by the search.
        dead: set[tuple[int, int]] = set()
        while stack and result is None:
            history, node, pos = stack.pop()
            if self.sampler is None:
                if (id(node), pos) in dead:
                    continue
                dead.add((id(node), pos))
            new = Hyp(history, node).expand(self.word[pos])
            if self.sampler is not None and self.sampler():
                new.reverse()
            for hyp in new:
                if pos + 1 < len(self.word):
                    stack.append(HypInPos(*hyp, pos + 1))
                elif hyp.position.is_word_end():
                    result = hyp.labels()
        return result


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
        :param rnd: one draw per expansion of the search; the owner may seed it anew
        :param unknown_label: for a word without segmentation; None: error
        :param opts: default: postfix marker ``@@``
        :raises OptionError: labels or breadth_prob invalid
        """
        if not isinstance(breadth_prob, (int, float)) or not 0.0 <= breadth_prob <= 1.0:
            raise OptionError("breadth_prob", expected="float in 0..1", got=breadth_prob)
        self.breadth_prob = breadth_prob
        self.rnd = rnd
        self.unknown_label = unknown_label
        self._tree = PrefixTree(opts=opts)
        for label in _checked_labels(labels):
            self._tree.add(label)

    def _sampler(self) -> bool:
        return bool(self.rnd.random_sample() <= self.breadth_prob)

    def get_bpe_split_for_word(self, word: str) -> list[str] | None:
        """:return: labels, or None if the word has no segmentation"""
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
