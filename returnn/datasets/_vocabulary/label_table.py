"""
The labels of a vocabulary: list by id, and dict from label to id.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from returnn.errors import DataFileError, DatasetError, OptionError, describe

__all__ = ["LabelTable", "ids_from_labels"]

_NUM_SHOWN = 10


class LabelTable:
    """
    Labels by id, and ids by label. Never changed after creation, so that vocabularies and their copies share it.

    Several labels can share one id; ``labels`` then has the lexicographically last one, ``ids`` has all.
    """

    __slots__ = ("labels", "ids")

    def __init__(self, labels: list[str], ids: dict[str, int]) -> None:
        """
        :param labels: by id
        :param ids: label -> id
        """
        self.labels = labels
        self.ids = ids

    @classmethod
    def from_list(cls, labels: Iterable[str]) -> LabelTable:
        """
        :param labels: by id. Of duplicates, the last one counts for encoding
        :raises OptionError: not labels of type str
        """
        if isinstance(labels, (str, bytes)) or not isinstance(labels, Iterable):
            raise OptionError("labels", expected="list of str, or a function that returns one", got=labels)
        labels = list(labels)
        for i, label in enumerate(labels):
            if not isinstance(label, str):
                raise OptionError(f"labels[{i}]", expected="str", got=label)
        return cls(labels, dict(zip(labels, range(len(labels)), strict=True)))

    @classmethod
    def from_dict(cls, ids: Mapping[Any, Any], *, source: str) -> LabelTable:
        """
        :param ids: label -> id, as read. Any: not checked yet
        :param source: what it was read from, for the error text
        :raises DataFileError: other types; or the ids are not 0..n-1
        """
        checked: dict[str, int] = {}
        for label, idx in ids.items():
            # numpy integers come from pickles.
            if not isinstance(label, str) or isinstance(idx, bool) or not hasattr(idx, "__index__"):
                raise DataFileError(
                    describe("Broken vocabulary", where=source, expected="dict of str to int", got={label: idx})
                )
            checked[label] = idx.__index__()
        if not checked:
            raise DataFileError(describe("The vocabulary has no labels", where=source))
        used = set(checked.values())
        if used != set(range(len(used))):
            raise DataFileError(_not_all_used(used, num_labels=len(checked), source=source))
        labels: list[str] = [""] * len(used)
        for label, idx in checked.items():
            labels[idx] = max(labels[idx], label)
        return cls(labels, checked)

    def __len__(self) -> int:
        """:return: number of ids"""
        return len(self.labels)

    def __copy__(self) -> LabelTable:
        return self

    def __deepcopy__(self, memo: dict[int, Any]) -> LabelTable:
        return self

    def __reduce__(self) -> tuple[Any, ...]:
        # Any: as object.__reduce__. Most tables are known by their list alone.
        if len(self.ids) == len(self.labels) and all(self.ids.get(x) == i for i, x in enumerate(self.labels)):
            return LabelTable.from_list, (self.labels,)
        return LabelTable, (self.labels, self.ids)


def _not_all_used(used: set[int], *, num_labels: int, source: str) -> str:
    """:return: error text; the first sentence is the one of the peers"""
    low, high = min(used), max(used)
    # The range can be huge; only the first ones are shown.
    unused: list[int] = []
    for idx in range(0, high + 1):
        if idx not in used:
            unused.append(idx)
            if len(unused) > _NUM_SHOWN:
                break
    shown = ", ".join(map(str, unused[:_NUM_SHOWN])) + (", ..." if len(unused) > _NUM_SHOWN else "")
    text = (
        f"Vocab error: not all indices used? min label idx {low}, max label idx {high}, num labels {num_labels},"
        f" unused labels: [{shown}] (in {source}). The ids must be 0, 1, ..., n-1."
    )
    if num_labels > len(used):
        text += f" {num_labels - len(used)} labels share their id with another one."
    return text


def ids_from_labels(labels: Iterable[str]) -> dict[str, int]:
    """
    :param labels: by id
    :return: label -> id
    :raises DatasetError: duplicates
    """
    labels = list(labels)
    result = {label: i for i, label in enumerate(labels)}
    if len(result) != len(labels):
        duplicates = sorted({label for i, label in enumerate(labels) if result[label] != i})
        shown = ", ".join(map(repr, duplicates[:_NUM_SHOWN])) + (", ..." if len(duplicates) > _NUM_SHOWN else "")
        raise DatasetError(f"some labels are provided multiple times: {shown}. Each label must occur once.")
    return result
