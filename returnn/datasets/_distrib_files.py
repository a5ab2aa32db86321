"""
Files of DistributeFilesDataset: the list, their sizes, and how they are distributed over sub epochs.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import numpy

from returnn.errors import DataFileError, DatasetError, DatasetOptionError
from returnn.util.file_cache import CachedFile
from returnn.util.literal import LiteralError, parse_literal

__all__ = ["FileTree", "load_file_list", "leaves_of", "size_of_files", "distribute_evenly", "check_sub_epoch_dataset"]

#: A file name, or tuple, list or dict of file trees, whose files belong together. Any: mypy knows no recursion here.
FileTree: TypeAlias = Any

# One of these must be in the dict of a sub epoch, so that the order is no accident.
_ORDER_OPTIONS = ("seq_ordering", "seq_order_control_dataset", "map_seq_stream")


def load_file_list(files: Sequence[FileTree] | str | Callable[[], Any], *, where: str) -> list[FileTree]:
    """
    :param files: option: list, function that returns one, or the name of a list file (.txt, .json, .py)
    :param where: dataset, for errors
    :return: list of file trees
    :raises DatasetOptionError: something else
    :raises DataFileError: the list file cannot be read
    """
    if callable(files):
        files = files()
    source = "option 'files'"
    if isinstance(files, (str, os.PathLike)):
        source = f"file {os.fspath(files)!r}"
        files = _read_list_file(os.fspath(files), where=where)
    if not isinstance(files, (list, tuple)):
        raise DatasetOptionError(
            f"{where}: {source}: expected a list of file names (or of tuples or dicts of them), "
            f"got {type(files).__name__}."
        )
    for tree in files:
        if not list(leaves_of(tree, where=where)):
            raise DatasetOptionError(f"{where}: {source}: entry {tree!r} has no file.")
    return list(files)


def _read_list_file(filename: str, *, where: str) -> Any:
    extension = os.path.splitext(filename)[1]
    if extension not in (".txt", ".json", ".py"):
        raise DatasetOptionError(f"{where}: list of files {filename!r}: expected extension .txt, .json or .py.")
    try:
        with open(filename, encoding="utf8") as f:
            text = f.read()
    except OSError as exc:
        raise DataFileError(f"{where}: cannot read the list of files {filename!r}: {exc.strerror}.") from exc
    try:
        if extension == ".json":
            return json.loads(text)
        if extension == ".py":
            return parse_literal(text)
    except (ValueError, RecursionError, LiteralError) as exc:
        raise DataFileError(f"{where}: list of files {filename!r}: {exc}") from exc
    lines = [line.strip() for line in text.splitlines()]
    return [line for line in lines if line and not line.startswith("#")]


def leaves_of(tree: FileTree, *, where: str) -> Iterator[str]:
    """
    :param tree: file tree
    :param where: dataset, for errors
    :return: its file names, dicts in the order of their sorted keys
    """
    if isinstance(tree, (str, os.PathLike)):
        yield os.fspath(tree)
    elif isinstance(tree, CachedFile):
        yield tree.filename
    elif isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from leaves_of(tree[key], where=where)
    elif isinstance(tree, (list, tuple)):
        for part in tree:
            yield from leaves_of(part, where=where)
    else:
        raise DatasetOptionError(f"{where}: option 'files': expected file names, got {tree!r} ({type(tree).__name__}).")


def size_of_files(tree: FileTree, *, where: str) -> int:
    """:return: bytes of all files of the tree"""
    total = 0
    for filename in leaves_of(tree, where=where):
        try:
            total += os.path.getsize(filename)
        except OSError as exc:
            raise DataFileError(
                f"{where}: cannot read {filename!r}: {exc.strerror}. Check the option 'files'."
            ) from exc
    return total


def distribute_evenly(sizes: Sequence[int] | numpy.ndarray, num_bins: int) -> list[range]:
    """
    Cut a list of items into consecutive bins of about equal size, in one pass (spec 04 section 11).

    :param sizes: of the items, at least `num_bins`
    :param num_bins: -
    :return: items of each bin, none is empty
    """
    num_items = len(sizes)
    assert num_items >= num_bins > 0, f"{num_items} items in {num_bins} bins"
    total = int(sum(int(size) for size in sizes))
    counts = [0] * num_bins
    bin_idx = taken = seen = 0
    average = total / num_bins
    for i in range(num_items):
        size = int(sizes[i])
        seen += size
        is_full = False
        if num_items - i <= num_bins - bin_idx - 1:  # one item for each of the bins left
            bin_idx += 1
            average = (total - seen) / (num_bins - bin_idx)
            counts[bin_idx] += 1
            taken = size
        elif bin_idx == num_bins - 1:
            counts[bin_idx] += 1
        elif taken + size <= average:
            counts[bin_idx] += 1
            taken += size
        elif not counts[bin_idx] or abs(taken + size - average) <= abs(taken - average):
            counts[bin_idx] += 1
            taken = 0
            is_full = True
        else:
            counts[bin_idx + 1] += 1
            taken = size
            is_full = True
        if is_full:
            bin_idx += 1
            average = (total - seen) / (num_bins - bin_idx)
    ends = numpy.cumsum(counts).tolist()
    return [range(end - count, end) for end, count in zip(ends, counts, strict=True)]


def check_sub_epoch_dataset(opts: Any, *, where: str) -> None:
    """
    :param opts: result of ``get_sub_epoch_dataset``. Any: of the user
    :param where: dataset, for errors
    :raises DatasetError: no dict, no explicit order, or a partition of its own
    """
    if not isinstance(opts, Mapping) or "class" not in opts:
        raise DatasetError(f"{where}: get_sub_epoch_dataset must return a dataset dict with 'class', got {opts!r}.")
    found = list(_find_options(opts))
    if not any(key in _ORDER_OPTIONS for key, _ in found):
        raise DatasetError(
            f"{where}: the dataset of get_sub_epoch_dataset has no explicit order: give one of "
            f"{', '.join(_ORDER_OPTIONS)}, e.g. 'seq_ordering': 'random' ('default' for the order of the files). "
            f"Got {opts!r}."
        )
    for key, value in found:
        if key == "partition_epoch" and value not in (None, 1):
            raise DatasetError(
                f"{where}: the dataset of get_sub_epoch_dataset must not have partition_epoch = {value!r}: an epoch of "
                "it is the whole of its files. Set partition_epoch here instead."
            )


def _find_options(obj: Any) -> Iterator[tuple[Any, Any]]:
    if isinstance(obj, Mapping):
        for key, value in obj.items():
            yield key, value
            yield from _find_options(value)
    elif isinstance(obj, (list, tuple)):
        for value in obj:
            yield from _find_options(value)
