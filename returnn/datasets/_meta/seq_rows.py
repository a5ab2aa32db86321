"""Which sequences of the children of a MetaDataset belong together: tables of tags, and index arrays."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from returnn._state import state
from returnn.datasets._basic.shared_corpus import SharedPart, find_part, part_key
from returnn.datasets._hdf.shared_files import find_tags, get_signature
from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets.basic import Dataset
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.errors import DatasetError, NotSupportedError, UnknownSeqTagError, describe

__all__ = [
    "SeqListFile",
    "load_row_tables",
    "get_tag_table",
    "get_tag_key",
    "forget_tag_table",
    "Join",
    "join_key",
    "find_join",
    "map_rows",
    "rows_to_corpus",
    "check_control_list",
    "takes_corpus_order",
]

#: One file for all, or one file per child.
SeqListFile = str | os.PathLike[str] | Mapping[str, str | os.PathLike[str]]


def get_tag_table(dataset: Dataset) -> TagTable | None:
    """
    :param dataset: any
    :return: tags of its corpus in corpus order: ``tag_table`` of its class, unless a derived class overrides
        ``get_all_tags``; None if it cannot list them
    """
    for cls in type(dataset).__mro__:
        if "tag_table" in vars(cls):
            table: TagTable = dataset.tag_table  # type: ignore[attr-defined]  # the memory of the dataset itself
            return table
        if "get_all_tags" in vars(cls):
            break
    try:
        return TagTable.from_tags(dataset.get_all_tags())
    except NotImplementedError:
        return None


def get_tag_key(dataset: Dataset) -> str | None:
    """
    :param dataset: any
    :return: the key of :func:`get_tag_table`, without making the table; None: it has none, or its class does not know it
    """
    for cls in type(dataset).__mro__:
        if "tag_table" in vars(cls):
            key: str | None = dataset.tag_table_key if "tag_table_key" in vars(cls) else None  # type: ignore[attr-defined]  # as above
            return key
        if "get_all_tags" in vars(cls):
            break
    return None


def forget_tag_table(dataset: Dataset) -> None:
    """
    Free the table of tags, if it takes much memory and the dataset can make it again.

    :param dataset: any
    """
    for cls in type(dataset).__mro__:
        if "tag_table" in vars(cls):
            if "forget_tag_table" in vars(cls):
                dataset.forget_tag_table()  # type: ignore[attr-defined]  # checked in the line before
            return


def takes_corpus_order(dataset: Dataset) -> bool:
    """
    :param dataset: any
    :return: whether init_seq_order(seq_order=...) is known to work. User classes may know only seq_list
    """
    return type(dataset).init_seq_order.__module__.startswith("returnn.")


def load_row_tables(seq_list_file: SeqListFile, dataset_keys: list[str], *, where: str) -> dict[str, TagTable]:
    """
    :param seq_list_file: list of tags for all children; pickled dict child -> list; or dict child -> such a list file
    :param dataset_keys: children
    :param where: for error texts
    :return: per child the tags of all rows; the same object for equal lists
    :raises DataFileError: if a file is missing or of another form
    :raises DatasetError: if a child is missing or the lists have different lengths
    """
    shared = _find_row_tables(seq_list_file, dataset_keys)
    if shared is not None:
        return shared
    # Before they are read: a file that is replaced meanwhile must not pass for the new one.
    keys = _list_keys(seq_list_file, [None, *dataset_keys])
    lists: Any  # plain data: list, or dict of lists
    if isinstance(seq_list_file, Mapping):
        missing = [key for key in dataset_keys if key not in seq_list_file]
        if missing:
            raise DatasetError(f"seq_list_file does not contain all datasets, missing {missing[0]} ({where})")
        lists = {key: load_seq_list_file(os.fspath(seq_list_file[key])) for key in dataset_keys}
    else:
        lists = load_seq_list_file(os.fspath(seq_list_file), expect_list=False)
    if isinstance(lists, list):
        _check_tags(lists, "", where)
        table = TagTable.from_tags(lists)
        table.key = keys.get(None)
        return dict.fromkeys(dataset_keys, table)
    if not isinstance(lists, dict):
        raise DatasetError(
            describe(
                "seq_list_file has the wrong form", where=where, expected="list of tags, or dict of lists", got=lists
            )
        )
    missing = [key for key in dataset_keys if key not in lists]
    if missing:
        raise DatasetError(
            f"seq_list_file does not contain all datasets, missing {missing[0]} ({where}). It has {sorted(lists)}."
        )
    for key in dataset_keys:
        _check_tags(lists[key], f" of {key!r}", where)
    lens = {key: len(lists[key]) for key in dataset_keys}
    if len(set(lens.values())) > 1:
        raise DatasetError(
            describe("The lists of seq_list_file have different lengths", where=where, expected="one length", got=lens)
        )
    tables = {key: TagTable.from_tags(lists[key]) for key in dataset_keys}
    for key, table in tables.items():
        table.key = keys.get(key)
    return tables


def _list_keys(seq_list_file: SeqListFile, dataset_keys: Sequence[str | None]) -> dict[str | None, str]:
    """:return: by :func:`_list_key`, without those of files that do not exist: whoever reads them says what is wrong"""
    keys = {}
    for dataset_key in dataset_keys:
        with contextlib.suppress(OSError, KeyError, TypeError):
            keys[dataset_key] = _list_key(seq_list_file, dataset_key)
    return keys


def _list_key(seq_list_file: SeqListFile, dataset_key: str | None) -> str:
    """:param dataset_key: None: the same list for all. :raises OSError: the file is gone"""
    filename = os.fspath(seq_list_file[dataset_key or ""] if isinstance(seq_list_file, Mapping) else seq_list_file)
    return part_key("seq list", os.path.abspath(filename), get_signature(filename), dataset_key)


def _find_row_tables(seq_list_file: SeqListFile, dataset_keys: list[str]) -> dict[str, TagTable] | None:
    """:return: what :func:`load_row_tables` gave in the parent process"""
    if not state.shared_corpus:
        return None
    try:
        if not isinstance(seq_list_file, Mapping):
            table = find_tags(_list_key(seq_list_file, None))
            if table is not None:
                return dict.fromkeys(dataset_keys, table)
        tables = {key: find_tags(_list_key(seq_list_file, key)) for key in dataset_keys}
    except (OSError, KeyError, TypeError):  # whoever reads it says what is wrong
        return None
    found = {key: table for key, table in tables.items() if table is not None}
    return found if len(found) == len(tables) else None


def _check_tags(tags: Any, of_key: str, where: str) -> None:
    if not isinstance(tags, list) or not all(isinstance(tag, str) for tag in tags):
        raise DatasetError(
            describe(f"seq_list_file{of_key} has the wrong form", where=where, expected="list of tags (str)", got=tags)
        )


class Join:
    """Where the rows are in a child, and a key by which processes share that."""

    def __init__(self, mapping: np.ndarray | None, key: str | None = None):
        """
        :param mapping: int32 or int64 [num rows], see :func:`map_rows`
        :param key: None: it cannot be shared
        """
        self.mapping = mapping
        self.key = key

    def shared_part(self) -> SharedPart | None:
        """:return: for other processes"""
        if self.key is None:
            return None
        if self.mapping is None:
            return SharedPart(self.key, None, {}, lambda _arrays: None)
        return SharedPart(self.key, None, {"mapping": self.mapping}, self._take_over)

    def _take_over(self, arrays: Mapping[str, np.ndarray]) -> None:
        self.mapping = arrays["mapping"]


def join_key(rows: TagTable, tags_key: str | None) -> str | None:
    """
    :param rows: tag of each row
    :param tags_key: of the child's table
    :return: of what map_rows makes of them
    """
    return None if rows.key is None or tags_key is None else part_key("rows", rows.key, tags_key)


def find_join(key: str | None, needed: Callable[[], np.ndarray | None]) -> Join | None:
    """
    :param key: by :func:`join_key`
    :param needed: see :func:`map_rows`
    :return: what the parent process found out; None if it did not, or a row is missing
    """
    found = find_part(key) if key is not None else None
    if found is None:
        return None
    mapping = found[1].get("mapping")
    if mapping is not None and len(_missing_rows(mapping, needed)):
        return None
    return Join(mapping, key)


def _missing_rows(mapping: np.ndarray, needed: Callable[[], np.ndarray | None]) -> np.ndarray:
    missing = np.flatnonzero(mapping < 0)
    mask = needed() if len(missing) else None
    return missing if mask is None else missing[mask[missing]]


def map_rows(
    dataset: Dataset,
    key: str,
    rows: TagTable,
    *,
    tags: TagTable,
    needed: Callable[[], np.ndarray | None],
    rows_from: str,
    where: str,
) -> np.ndarray | None:
    """
    :param dataset: child
    :param key: of the child
    :param rows: tag of each row for this child
    :param tags: of the child's corpus
    :param needed: gives bool [num rows], which rows can occur in an epoch; None: all
    :param rows_from: where the rows come from, for error texts
    :param where: for error texts
    :return: int32 (int64 if it must) [num rows] corpus index in the child, -1 for a row that is not needed and that it does not have;
        None if this is just 0, 1, 2, ...
    :raises DatasetError: if the child has not all tags that are needed; with examples of both sides
    """
    if rows is tags or rows.same_tags(tags):
        return None
    idxs = tags.find_table(rows)
    missing = _missing_rows(idxs, needed)
    if not len(missing):
        return idxs
    extra = np.flatnonzero(rows.find_table(tags) < 0)
    text = f"Dataset {key!r} is missing seqs. ({where}) "
    if len(tags) < len(rows):
        text += (
            f"Dataset {key!r} has less sequences ({len(tags)}) than in sequence list ({len(rows)})"
            f" read from {rows_from!r}, this cannot work out! "
        )
    text += (
        f"{len(missing)} of {len(rows)} tags of {rows_from!r} are not in {key!r}, first: {rows.select(missing[:3])}; "
        f"{len(extra)} of {len(tags)} tags of {key!r} are not in {rows_from!r}, first: {tags.select(extra[:3])}. "
    )
    position = _first_difference(rows, tags)
    if position is not None:
        text += f"The lists differ first at position {position}: {rows[position]!r} and {tags[position]!r}. "
    raise DatasetError(
        text + "All datasets of a MetaDataset must have the sequences of the one that controls the order:"
        " restrict that one by seq_list_filter_file, or complete the others."
    )


def rows_to_corpus(
    child: Dataset, table: TagTable, mapping: np.ndarray | None, rows: np.ndarray, *, key: str, where: str
) -> np.ndarray:
    """
    :param child: to be read in this order
    :param table: tags of all rows in the child
    :param mapping: of the child, by map_rows
    :param rows: int64 [num seqs]
    :param key: of the child
    :param where: for error texts
    :return: int64 [num seqs], indices in the corpus of the child. Where the child takes that: int32, nobody can write to it
    :raises UnknownSeqTagError: if it does not have one of them: the filter would leave it out, but it is asked for
    """
    if mapping is None:
        return rows
    idxs = mapping[rows]
    is_shared = getattr(child, "_takes_int32_order", False)
    if not is_shared:
        idxs = idxs.astype(np.int64, copy=False)
    missing = rows[idxs < 0]
    if len(missing):
        raise UnknownSeqTagError(
            f"Dataset {key!r} is missing seqs. ({where}) It does not have {len(missing)} of the"
            f" {len(rows)} sequences of this order, first: {table.select(missing[:3])}."
        )
    if is_shared:
        idxs.flags.writeable = False  # so that the child need not copy them
    return idxs


def check_control_list(dataset: Dataset, key: str, mapping: np.ndarray, table: TagTable, *, where: str) -> None:
    """
    The corpus indices of the control dataset are the rows of the list.

    :param dataset: the control dataset
    :param key: of it
    :param mapping: by map_rows
    :param table: tags of all rows there
    :param where: for error texts
    :raises DatasetError: if the list has another order
    """
    wrong = np.flatnonzero(mapping != np.arange(len(mapping)))
    if not len(wrong):
        # The list ends earlier than the corpus; wrong only if such a sequence comes.
        return
    row = int(wrong[0])
    tags = get_tag_table(dataset)
    raise DatasetError(
        describe(
            f"seq_list_file has not the order of the control dataset {key!r}, first difference in row {row}",
            where=where,
            expected=tags[row] if tags is not None and row < len(tags) else "<no further sequence>",
            got=table[row],
            todo="Write the list in the order of the control dataset; to select sequences use its seq_list_filter_file",
        )
    )


def require_tag_table(dataset: Dataset, key: str, *, where: str) -> TagTable:
    """
    :param dataset: the default child
    :param key: of the child
    :param where: for error texts
    :return: its tags
    :raises NotSupportedError: if it cannot list them
    """
    table = get_tag_table(dataset)
    if table is None:
        # The base class can list them once there is an order.
        dataset.init_seq_order(epoch=1)
        table = get_tag_table(dataset)
    if table is None:
        raise NotSupportedError(
            describe(
                f"Dataset {key!r} cannot list the tags of all its sequences (get_all_tags)",
                where=where,
                todo="Give the tags by seq_list_file",
            )
        )
    return table


def _first_difference(first: TagTable, second: TagTable) -> int | None:
    for i in range(min(len(first), len(second))):
        if first[i] != second[i]:
            return i
    return None
