"""
Random segmentation of text by a SentencePiece model, with random numbers that can be seeded.

The package sentencepiece has one generator per thread, which takes a seed at its first use only
(https://github.com/google/sentencepiece/issues/635), and its version 0.2.3 draws differently in each process, whatever
the seed. So the draws are made here, from the same distributions: Kudo 2018, "Subword Regularization" (unigram models), and
Provilkov et al. 2020, "BPE-Dropout" (BPE models). Segmentation as in the package, so that only the draws are others.
"""

from __future__ import annotations

import heapq
import itertools
import math
import random
from collections.abc import Callable, Iterator, Sequence

from returnn.datasets._vocabulary.sentencepiece_model import PieceType, SentencePieceModel
from returnn.errors import NotSupportedError

__all__ = ["SentencePieceSampler"]

# A character that no piece covers has the score of the worst piece, minus this.
_UNKNOWN_PENALTY = 10.0

# A piece at a place of a text: where it begins, id, score.
_Arc = tuple[int, int, float]
# A piece of a text: id, text.
_Token = tuple[int, str]


class SentencePieceSampler:
    """Draws segmentations."""

    def __init__(self, model: SentencePieceModel, normalize: Callable[[str], str], *, source: str) -> None:
        """
        :param model: unigram or BPE
        :param normalize: of the model; its result is what gets segmented
        :param source: model, for the error
        :raises NotSupportedError: a model of words or characters, with nothing to draw
        """
        if model.model_type not in ("unigram", "bpe"):
            raise NotSupportedError(
                f"option enable_sampling: the SentencePiece model {source} has the type {model.model_type!r}, whose "
                "segmentation is unique. Remove the option."
            )
        self._normalize = normalize
        self._is_bpe = model.model_type == "bpe"
        self._byte_fallback = model.byte_fallback
        self._unknown_id = 0
        self._ids: dict[str, int] = {}
        self._scores: list[float] = []
        self._unused: set[str] = set()
        self._user_defined: set[str] = set()
        self._byte_ids: dict[str, int] = {}
        normal = [score for _, score, kind in model.pieces if kind == PieceType.NORMAL] or [0.0]
        self._unknown_score = min(normal) - _UNKNOWN_PENALTY
        for idx, (piece, score, kind) in enumerate(model.pieces):
            if kind == PieceType.USER_DEFINED:
                self._user_defined.add(piece)
                score = len(piece) * max(0.0, *normal) - 0.1  # better than most other ways to cover it
            elif kind == PieceType.UNUSED:
                self._unused.add(piece)
            elif kind == PieceType.BYTE:
                self._byte_ids[piece] = idx
            elif kind == PieceType.UNKNOWN:
                self._unknown_id = idx
            self._scores.append(score)
            # An unused piece of a BPE model can be merged further.
            if kind in (PieceType.NORMAL, PieceType.USER_DEFINED) or (kind == PieceType.UNUSED and self._is_bpe):
                self._ids[piece] = idx
        self._prefixes = {piece[:i] for piece in self._ids for i in range(1, len(piece) + 1)}
        self._user_prefixes = {piece[:i] for piece in self._user_defined for i in range(1, len(piece) + 1)}

    def sample(self, text: str, *, alpha: float, nbest_size: int, rnd: random.Random) -> list[int]:
        """
        :param text: any
        :param alpha: unigram model: exponent of the probabilities; BPE model: probability that a merge is left out
        :param nbest_size: unigram model: draw among that many best segmentations; < 0: among all
        :param rnd: for the draws
        :return: ids
        """
        text = self._normalize(text)
        if not text:
            return []
        if self._is_bpe:
            pieces = self._merge_at_random(text, alpha, rnd)
            return self._as_ids((self._ids.get(piece, self._unknown_id), piece) for piece in pieces)
        arcs = self._find_arcs(text)
        if nbest_size < 0:
            path = _draw_path(arcs, alpha, rnd)
        else:
            paths = list(itertools.islice(_iter_best_paths(arcs), max(nbest_size, 1)))
            weights = [math.exp(alpha * (score - paths[0][0])) for score, _ in paths]
            path = rnd.choices(paths, weights)[0][1]
        ends = [*(begin for begin, _, _ in path[1:]), len(text)]
        return self._as_ids((idx, text[begin:end]) for (begin, idx, _), end in zip(path, ends, strict=True))

    def _as_ids(self, tokens: Iterator[_Token]) -> list[int]:
        """:return: successive unknown ones are one, or bytes"""
        ids: list[int] = []
        was_unknown = False
        for idx, text in tokens:
            is_unknown = idx == self._unknown_id
            if is_unknown and self._byte_fallback:
                ids += [self._byte_ids[f"<0x{byte:02X}>"] for byte in text.encode()]
            elif not (is_unknown and was_unknown):
                ids.append(idx)
            was_unknown = is_unknown
        return ids

    def _pieces_at(self, text: str, begin: int, prefixes: set[str]) -> Iterator[str]:
        """:return: what begins there, as long as it begins a piece"""
        for end in range(begin + 1, len(text) + 1):
            piece = text[begin:end]
            if piece not in prefixes:
                return
            yield piece

    # ---- unigram

    def _find_arcs(self, text: str) -> list[list[_Arc]]:
        """:return: for each end (0 to length) the pieces that end there. Every position can be reached"""
        arcs: list[list[_Arc]] = [[] for _ in range(len(text) + 1)]
        for begin in range(len(text)):
            if text[begin] not in self._ids:
                arcs[begin + 1].append((begin, self._unknown_id, self._unknown_score))
            for piece in self._pieces_at(text, begin, self._prefixes):
                idx = self._ids.get(piece)
                if idx is not None:
                    arcs[begin + len(piece)].append((begin, idx, self._scores[idx]))
        return arcs

    # ---- BPE

    def _merge_at_random(self, text: str, dropout: float, rnd: random.Random) -> list[str]:
        """:return: pieces"""
        symbols, frozen = self._first_symbols(text)
        # Linked list: the symbol before and after each.
        before, after = list(range(-1, len(symbols) - 1)), [*range(1, len(symbols)), -1]
        merges: list[tuple[float, int, int, str]] = []
        parts_of_unused: dict[str, tuple[str, str]] = {}

        def add_merge(left: int, right: int) -> None:
            if left < 0 or right < 0 or left in frozen or right in frozen:
                return
            merged = symbols[left] + symbols[right]
            idx = self._ids.get(merged)
            if idx is not None:
                heapq.heappush(merges, (-self._scores[idx], left, right, merged))
                if merged in self._unused:
                    parts_of_unused[merged] = symbols[left], symbols[right]

        for left in range(len(symbols) - 1):
            add_merge(left, left + 1)
        while merges:
            _, left, right, merged = heapq.heappop(merges)
            if not symbols[left] or not symbols[right] or symbols[left] + symbols[right] != merged:
                continue
            if dropout > 0 and rnd.random() < dropout:
                continue
            symbols[left], symbols[right] = merged, ""
            after[left] = after[right]
            if after[right] >= 0:
                before[after[right]] = left
            add_merge(before[left], left)
            add_merge(left, after[left])
        return list(self._split_unused([symbol for symbol in symbols if symbol], parts_of_unused))

    def _first_symbols(self, text: str) -> tuple[list[str], set[int]]:
        """:return: characters and user-defined pieces; which of them are the latter"""
        symbols: list[str] = []
        frozen: set[int] = set()
        begin = 0
        while begin < len(text):
            found = [p for p in self._pieces_at(text, begin, self._user_prefixes) if p in self._user_defined]
            if found:
                frozen.add(len(symbols))
            symbols.append(found[-1] if found else text[begin])
            begin += len(symbols[-1])
        return symbols, frozen

    def _split_unused(self, symbols: Sequence[str], parts: dict[str, tuple[str, str]]) -> Iterator[str]:
        todo = list(symbols)[::-1]
        while todo:
            symbol = todo.pop()
            if symbol in parts:
                todo += parts[symbol][::-1]
            else:
                yield symbol


def _draw_path(arcs: list[list[_Arc]], alpha: float, rnd: random.Random) -> list[_Arc]:
    """
    Forward filtering, backward sampling.

    :param arcs: for each end
    :param alpha: probability of a path: exp(alpha * sum of its scores), normalized
    :return: the pieces of the whole text
    """
    forward = [0.0]  # log of the sum over all paths up to there
    for ending in arcs[1:]:
        scores = [forward[begin] + alpha * score for begin, _, score in ending]
        best = max(scores)
        forward.append(best + math.log(sum(math.exp(score - best) for score in scores)))
    path: list[_Arc] = []
    end = len(arcs) - 1
    while end:
        weights = [math.exp(forward[begin] + alpha * score - forward[end]) for begin, _, score in arcs[end]]
        path.append(rnd.choices(arcs[end], weights)[0])
        end = path[-1][0]
    return path[::-1]


def _iter_best_paths(arcs: list[list[_Arc]]) -> Iterator[tuple[float, list[_Arc]]]:
    """
    A* search from the end, with the exact score of the best way from the begin.

    :param arcs: for each end
    :return: score and pieces of the whole text, best first
    """
    best = [0.0]
    for ending in arcs[1:]:
        best.append(max(best[begin] + score for begin, _, score in ending))
    counter = itertools.count()  # equal scores: first in, first out
    last = len(arcs) - 1
    todo: list[tuple[float, int, int, float, tuple[_Arc, ...]]] = [(-best[last], next(counter), last, 0.0, ())]
    while todo:
        _, _, end, score_behind, behind = heapq.heappop(todo)
        if not end:
            yield score_behind, list(behind)
            continue
        for arc in arcs[end]:
            begin, _, score = arc
            score += score_behind
            heapq.heappush(todo, (-(best[begin] + score), next(counter), begin, score, (arc, *behind)))
