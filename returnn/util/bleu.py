"""
BLEU score of tokenized text.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence

__all__ = ["compute_bleu"]


def _ngram_counts(segment: Sequence[str], max_order: int) -> Counter[tuple[str, ...]]:
    return Counter(
        tuple(segment[i : i + order]) for order in range(1, max_order + 1) for i in range(len(segment) - order + 1)
    )


def compute_bleu(
    reference_corpus: Sequence[Sequence[str]],
    translation_corpus: Sequence[Sequence[str]],
    max_order: int = 4,
    use_bp: bool = True,
) -> float:
    """
    Corpus BLEU with one reference (Papineni et al. 2002, https://aclanthology.org/P02-1040), without smoothing.

    :param reference_corpus: tokens of each segment
    :param translation_corpus: likewise, as many segments
    :param max_order: longest n-gram
    :param use_bp: with brevity penalty
    :return: 0 to 1
    """
    if len(reference_corpus) != len(translation_corpus):
        raise ValueError(
            f"compute_bleu: expected as many translations as references, got {len(translation_corpus)}"
            f" and {len(reference_corpus)}"
        )
    matches, possible = [0] * max_order, [0] * max_order
    for reference, translation in zip(reference_corpus, translation_corpus, strict=True):
        counts = _ngram_counts(translation, max_order)
        clipped = counts & _ngram_counts(reference, max_order)
        for ngram, count in counts.items():
            possible[len(ngram) - 1] += count
            matches[len(ngram) - 1] += clipped[ngram]
    if not all(matches):
        return 0.0
    score = math.exp(sum(math.log(m / p) for m, p in zip(matches, possible, strict=True)) / max_order)
    if use_bp:
        reference_len, translation_len = sum(map(len, reference_corpus)), sum(map(len, translation_corpus))
        if translation_len < reference_len:
            score *= math.exp(1 - reference_len / translation_len)
    return score
