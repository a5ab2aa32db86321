"""Word error rate of hypotheses against references, both as texts per tag."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from returnn.cli._dataset_tools.lengths import LengthTable
from returnn.errors import DataFileError, UnknownSeqTagError, describe
from returnn.util.edit_distance import EditCounts, edit_counts
from returnn.util.stats import Stats

__all__ = ["WerResult", "best_text", "compute_wer"]


@dataclasses.dataclass
class WerResult:
    """
    Sums over all sequences.

    :param counts: edits and reference words
    :param num_seqs: number of sequences
    :param num_wrong_seqs: those with any edit
    :param ref_chars: statistics of the lengths of the references in characters
    :param unused_tags: hypotheses without a reference
    """

    counts: EditCounts
    num_seqs: int
    num_wrong_seqs: int
    ref_chars: Stats
    unused_tags: list[str]

    @property
    def wer_percent(self) -> float:
        """
        :return: errors per 100 words of the references
        :raises DataFileError: there are no words
        """
        if not self.counts.num_ref:
            raise DataFileError(
                describe(
                    f"The references have no words ({self.num_seqs} sequences), so there is no word error rate",
                    todo="Check the references, --startseq and --endseq",
                )
            )
        return self.counts.error_rate * 100.0


def best_text(value: Any, *, where: str) -> str:
    """
    :param value: text; or n-best list [(score, text), ...], of which the first entry counts; an empty list is an empty text.
        Any: of a file
    :param where: for the error
    :raises DataFileError: something else
    """
    if isinstance(value, str):
        return value
    if isinstance(value, (list, tuple)):
        if not value:
            return ""
        first = value[0]
        if isinstance(first, str):
            return first
        if isinstance(first, (list, tuple)) and len(first) == 2 and isinstance(first[1], str):
            return first[1]
    raise DataFileError(
        describe("The entry is no text", where=where, expected="text, or n-best list [(score, text), ...]", got=value)
    )


def compute_wer(
    refs: Iterable[tuple[str, str]],
    hyps: Mapping[str, Any],
    *,
    hyps_name: str,
    on_seq: Callable[[str, EditCounts], None] | None = None,
) -> WerResult:
    """
    Words are what is between white space.

    :param refs: tag and text
    :param hyps: tag -> text or n-best list. Any: of a file
    :param hyps_name: where they come from, for errors
    :param on_seq: gets tag and counts of each sequence
    :raises UnknownSeqTagError: references without hypothesis
    """
    total = EditCounts()
    chars = LengthTable(["ref"])
    unused = dict.fromkeys(hyps)
    missing: list[str] = []
    num_wrong = num_seqs = 0
    for tag, ref in refs:
        num_seqs += 1
        if tag not in hyps:
            missing.append(tag)
            continue
        unused.pop(tag, None)
        counts = edit_counts(ref.split(), best_text(hyps[tag], where=f"{hyps_name}, tag {tag!r}").split())
        total += counts
        num_wrong += bool(counts.num_errors)
        chars.add({"ref": len(ref)})
        if on_seq is not None:
            on_seq(tag, counts)
    if missing:
        raise UnknownSeqTagError(
            f"{hyps_name} has no hypothesis for {len(missing)} of {num_seqs} references, e.g. {missing[:3]}. "
            f"It has {len(hyps)} tags, e.g. {list(hyps)[:3]}. Both must use the same tags."
        )
    return WerResult(total, num_seqs, num_wrong, chars.stats("ref"), list(unused))
