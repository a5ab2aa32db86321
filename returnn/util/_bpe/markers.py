"""
Markers at the borders of labels, and the check of a collection of labels.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from returnn.errors import OptionError

__all__ = ["BpeMergeSymbol", "BpePostMergeSymbol", "BpeOpts", "checked_labels"]

#: At the end of a label: the word goes on with the next label. Name of mainline
BpePostMergeSymbol = "@@"
#: The same, name of Mini
BpeMergeSymbol = BpePostMergeSymbol


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


def checked_labels(labels: Iterable[str]) -> frozenset[str]:
    """:raises OptionError: not a collection of str"""
    if isinstance(labels, (str, bytes)):
        raise OptionError("labels", expected="a list or dict of labels", got=labels)
    result = frozenset(labels)
    for label in result:
        if not isinstance(label, str):
            raise OptionError("labels", expected="labels of type str", got=label)
    return result
