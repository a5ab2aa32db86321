"""
Edit distance of sequences, with counts of substitutions, insertions and deletions; word error rates are made of it.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Sequence

from returnn.errors import MissingDependencyError
from returnn.util.optional_import import optional_import

__all__ = ["EditCounts", "edit_counts", "edit_distance"]

#: (reference, hypothesis, weights of insertion, deletion, substitution) -> weighted distance.
_WeightedDistance = Callable[[Sequence[int], Sequence[int], tuple[int, int, int]], int]


@dataclasses.dataclass(frozen=True)
class EditCounts:
    """
    Edits that turn references into hypotheses.

    :param substitutions: symbols of the reference that are others in the hypothesis
    :param insertions: symbols of the hypothesis that the reference does not have
    :param deletions: symbols of the reference that the hypothesis does not have
    :param num_ref: number of symbols of the reference
    """

    substitutions: int = 0
    insertions: int = 0
    deletions: int = 0
    num_ref: int = 0

    @property
    def num_errors(self) -> int:
        """:return: the edit distance"""
        return self.substitutions + self.insertions + self.deletions

    @property
    def error_rate(self) -> float:
        """:return: edits per symbol of the reference; without reference symbols 0 if there are no edits, else inf"""
        if not self.num_ref:
            return float("inf") if self.num_errors else 0.0
        return self.num_errors / self.num_ref

    def __add__(self, other: EditCounts) -> EditCounts:
        return EditCounts(
            self.substitutions + other.substitutions,
            self.insertions + other.insertions,
            self.deletions + other.deletions,
            self.num_ref + other.num_ref,
        )


def edit_counts(ref: Sequence[Hashable], hyp: Sequence[Hashable]) -> EditCounts:
    """
    Levenshtein distance (all edits cost 1) as counts. Among the alignments with the fewest edits, one with the fewest
    substitutions is counted, so that the counts are unique: the others follow from the lengths.

    :param ref: reference, e.g. words
    :param hyp: hypothesis
    """
    ids: dict[Hashable, int] = {}
    ref_ids = [ids.setdefault(symbol, len(ids)) for symbol in ref]
    hyp_ids = [ids.setdefault(symbol, len(ids)) for symbol in hyp]
    # One edit costs more than all substitutions together, and a substitution 1 more than other edits: then the
    # cheapest alignment has the fewest edits, and of these the fewest substitutions, and its cost tells both.
    cost = min(len(ref), len(hyp)) + 1
    weighted = _weighted_distance()(ref_ids, hyp_ids, (cost, cost, cost + 1))
    num_errors, substitutions = divmod(weighted, cost)
    rest = num_errors - substitutions  # insertions + deletions; insertions - deletions is the difference of lengths
    insertions = (rest + len(hyp) - len(ref)) // 2
    return EditCounts(substitutions, insertions, rest - insertions, len(ref))


def edit_distance(ref: Sequence[Hashable], hyp: Sequence[Hashable]) -> int:
    """
    :param ref: any symbols
    :param hyp: likewise
    :return: smallest number of substitutions, insertions and deletions
    """
    return edit_counts(ref, hyp).num_errors


@functools.lru_cache(maxsize=1)
def _weighted_distance() -> _WeightedDistance:
    """:return: of rapidfuzz if it is installed, else our own, which is slower by far"""
    try:
        levenshtein = optional_import("rapidfuzz.distance.Levenshtein", needed_by="edit distances")
    except MissingDependencyError:
        return _weighted_distance_in_python

    def distance(ref: Sequence[int], hyp: Sequence[int], weights: tuple[int, int, int]) -> int:
        return levenshtein.distance(ref, hyp, weights=weights)  # type: ignore[no-any-return]

    return distance


def _weighted_distance_in_python(ref: Sequence[int], hyp: Sequence[int], weights: tuple[int, int, int]) -> int:
    """
    The dynamic program of Wagner and Fischer (The String-to-String Correction Problem, 1974), row by row.

    :param ref: reference
    :param hyp: hypothesis
    :param weights: of insertion, deletion, substitution
    """
    insertion, deletion, substitution = weights
    num = min(len(ref), len(hyp))
    start = next((i for i in range(num) if ref[i] != hyp[i]), num)  # equal ends cost nothing
    end = next((i for i in range(num - start) if ref[-1 - i] != hyp[-1 - i]), num - start)
    ref, hyp = ref[start : len(ref) - end], hyp[start : len(hyp) - end]
    row = [i * insertion for i in range(len(hyp) + 1)]
    for ref_symbol in ref:
        diagonal = row[0]
        left = row[0] = diagonal + deletion
        for i, hyp_symbol in enumerate(hyp, start=1):
            above = row[i]
            left = min(
                diagonal if ref_symbol == hyp_symbol else diagonal + substitution, above + deletion, left + insertion
            )
            diagonal, row[i] = above, left
    return row[-1]
