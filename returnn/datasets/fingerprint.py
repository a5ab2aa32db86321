"""
Fingerprint of the data of a dataset: kept in checkpoints, so that a restart on changed data says so before it trains.

It has what is known without reading data: names and sizes of files (without folders and times, since data may move),
number of sequences, sums and checksums of the lengths; and the same of the datasets below. It does not see a change of
the content that leaves all of these as they are.
"""

from __future__ import annotations

import hashlib
import inspect
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

import numpy

from returnn.datasets.basic import Dataset
from returnn.util.file_cache import CachedFile

__all__ = ["FINGERPRINT_VERSION", "constructor_arguments", "data_fingerprint", "fingerprint_changes"]

#: Fingerprints of another version are not compared.
FINGERPRINT_VERSION = 1
# More files are kept as number, size and checksum only. All sizes are asked for, up to this many files.
_MAX_LISTED_FILES = 200
_MAX_SIZED_FILES = 20_000
_MAX_DEPTH = 20
_MAX_NAMED = 3
_LENS_AT_ONCE = 1 << 14


def data_fingerprint(dataset: Dataset) -> dict[str, Any]:
    """
    What is not known yet (e.g. the number of lines before the text was read) is left out: after the first
    ``init_seq_order``, there may be more. Files are not read; takes below a second for 10 M sequences.

    :param dataset: constructed; its state stays as it is
    :return: only str, int, list and dict, for safe loading. Any: these. "version", "class"; if known "num_seqs", "lens"
        (what -> {"num_frames", "checksum"}), "files" ({"num", "size", "checksum", "list": [[base name, size], ...]}),
        "children" (name -> the same again)
    """
    return {"version": FINGERPRINT_VERSION, **_describe(dataset, depth=0)}


def _describe(dataset: Dataset, *, depth: int) -> dict[str, Any]:
    """:return: without version. Any: see :func:`data_fingerprint`"""
    result: dict[str, Any] = {"class": type(dataset).__name__}
    num_seqs = _num_seqs(dataset)
    if num_seqs is not None:
        result["num_seqs"] = num_seqs
    lens = {str(key): _describe_lens(values) for key, values in sorted(dataset.known_corpus_lens().items())}
    if lens:
        result["lens"] = lens
    children = _named_children(dataset) if dataset._children_are_fixed and depth < _MAX_DEPTH else {}
    names = _file_names(dataset)
    if children:
        # Their options are among those of this dataset.
        of_children = {name for child in children.values() for name in _all_file_names(child, depth + 1)}
        names = [name for name in names if name not in of_children]
        result["children"] = {key: _describe(child, depth=depth + 1) for key, child in children.items()}
    if names:
        result["files"] = _describe_files(names)
    return result


def _num_seqs(dataset: Dataset) -> int | None:
    """:return: of the corpus, if known without reading files"""
    method = type(dataset).get_total_num_seqs
    # The one of the base tells the number of an epoch, which may be another one each time.
    if method is Dataset.get_total_num_seqs or not dataset._children_are_fixed:
        return None
    if "fast" not in inspect.signature(method).parameters:
        return None
    try:
        num = dataset.get_total_num_seqs(fast=True)
    except Exception:  # whatever a class of the user raises before its first epoch
        return None
    return int(num) if num != float("inf") else None


def _describe_lens(lens: numpy.ndarray) -> dict[str, Any]:
    """:param lens: [corpus]. :return: Any: int and str"""
    lens = numpy.asarray(lens)
    # Independent of the type and layout in the file.
    dtype = "<i8" if lens.dtype.kind in "iub" else "<f8"
    digest = hashlib.blake2b(digest_size=8)
    total = 0
    for start in range(0, len(lens), _LENS_AT_ONCE):  # which stay in the cache of the processor
        values = numpy.ascontiguousarray(lens[start : start + _LENS_AT_ONCE], dtype=dtype)
        digest.update(values.data)
        total += int(values.sum())
    return {"num_frames": total, "checksum": digest.hexdigest()}


def _named_children(dataset: Dataset) -> dict[str, Dataset]:
    """:return: by their name in the option ``datasets``, else by number"""
    by_id: dict[int, str] = {}
    named = getattr(dataset, "datasets", None)
    if isinstance(named, Mapping):
        by_id = {id(child): str(key) for key, child in named.items()}
    result: dict[str, Dataset] = {}
    for i, child in enumerate(dataset.child_datasets()):
        result.setdefault(by_id.get(id(child), str(i)), child)
    return result


# ---- files


def _all_file_names(dataset: Dataset, depth: int) -> Iterator[str]:
    yield from _file_names(dataset)
    if depth < _MAX_DEPTH:
        for child in dataset.child_datasets():
            yield from _all_file_names(child, depth + 1)


def _file_names(dataset: Dataset) -> list[str]:
    """:return: of the dataset, each once"""
    names = list(dataset.corpus_files())
    names += _existing_files_in(constructor_arguments(dataset).values(), depth=0)
    return list(dict.fromkeys(names))


def constructor_arguments(dataset: Dataset) -> Mapping[str, Any]:
    """:return: {} if they are not known. Any: each has its own type"""
    try:
        _, (_, kwargs, *_) = dataset.__reduce__()
    except Exception:  # a class of the user that does not store its arguments, or with a __reduce__ of its own
        return {}
    return kwargs if isinstance(kwargs, Mapping) else {}


def _existing_files_in(values: Iterable[Any], *, depth: int) -> Iterator[str]:
    """:param values: options, with all that is in them. Any: of all kinds"""
    for value in values:
        if isinstance(value, Mapping) and depth < _MAX_DEPTH:
            yield from _existing_files_in(value.values(), depth=depth + 1)
        elif isinstance(value, (list, tuple)) and depth < _MAX_DEPTH:
            if value and isinstance(value[0], (int, float, numpy.generic, numpy.ndarray)):
                continue
            yield from _existing_files_in(value, depth=depth + 1)
        elif isinstance(value, CachedFile):
            yield value.filename
        elif isinstance(value, (str, os.PathLike)) and _is_file(value):
            yield os.fspath(value)


def _is_file(value: str | os.PathLike[str]) -> bool:
    text = os.fspath(value)
    # Names of streams, orderings and so on are not files, also if there is one of this name in the current folder.
    if not isinstance(text, str) or len(text) > 4096 or not (os.sep in text or "." in text):
        return False
    try:
        return os.path.isfile(text)
    except ValueError:  # a null character
        return False


def _describe_files(names: Sequence[str]) -> dict[str, Any]:
    """:return: Any: int, str, list"""
    step = -(-len(names) // _MAX_SIZED_FILES)
    sizes = [_size(name) if i % step == 0 else 0 for i, name in enumerate(names)]
    listed = sorted((_printable(os.path.basename(name)), size) for name, size in zip(names, sizes, strict=True))
    digest = hashlib.blake2b(repr(listed).encode("utf8"), digest_size=8).hexdigest()
    result = {"num": len(names), "size": sum(max(size, 0) for size in sizes), "checksum": digest}
    if len(names) <= _MAX_LISTED_FILES:
        result["list"] = [list(entry) for entry in listed]
    return result


def _size(name: str) -> int:
    """:return: in bytes; -1: cannot be asked for"""
    try:
        return os.path.getsize(name)
    except OSError:
        return -1


def _printable(name: str) -> str:
    return name.encode("utf8", errors="backslashreplace").decode("utf8")


# ---- comparison


def fingerprint_changes(old: object, new: object) -> list[str]:
    """
    :param old: of :func:`data_fingerprint`, from a checkpoint; anything else (e.g. None, or of another version) gives no
        sentences
    :param new: of the dataset now
    :return: a sentence for each difference in what both know; [] if there is none
    """
    if not isinstance(old, Mapping) or not isinstance(new, Mapping):
        return []
    if old.get("version") != FINGERPRINT_VERSION or new.get("version") != FINGERPRINT_VERSION:
        return []
    return list(_changes(old, new, where="The data", depth=0))


def _changes(old: Mapping[str, Any], new: Mapping[str, Any], *, where: str, depth: int) -> Iterator[str]:
    """:param where: what it is about, for the sentences. Any: see :func:`data_fingerprint`"""
    if old.get("class") != new.get("class"):
        yield f"{where}: the dataset was of class {old.get('class')}, and now is of class {new.get('class')}."
    old_num, new_num = old.get("num_seqs"), new.get("num_seqs")
    if old_num is not None and new_num is not None and old_num != new_num:
        yield f"{where}: the number of sequences was {old_num}, and now is {new_num}."
    yield from _lens_changes(_part(old, "lens"), _part(new, "lens"), where=where)
    old_files, new_files = _part(old, "files"), _part(new, "files")
    # A dataset whose data moved into memory, or the like, is noticed by its class.
    if old_files != new_files and old.get("class") == new.get("class"):
        yield f"{where}: {_file_changes(old_files, new_files)}"
    old_children, new_children = _part(old, "children"), _part(new, "children")
    for key in [*old_children, *(key for key in new_children if key not in old_children)]:
        child_where = f"{where} of child dataset {key!r}" if not depth else f"{where} / {key!r}"
        old_child, new_child = old_children.get(key), new_children.get(key)
        if isinstance(old_child, Mapping) and isinstance(new_child, Mapping):
            if depth < _MAX_DEPTH:
                yield from _changes(old_child, new_child, where=child_where, depth=depth + 1)
        elif old.get("class") == new.get("class"):
            yield f"{child_where}: it {'is gone' if new_child is None else 'was not there before'}."


def _part(fingerprint: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """:return: {} if it is not there, or broken. Any: see :func:`data_fingerprint`"""
    value = fingerprint.get(key)
    return value if isinstance(value, Mapping) else {}


def _lens_changes(old: Mapping[str, Any], new: Mapping[str, Any], *, where: str) -> Iterator[str]:
    for key, old_lens in old.items():
        new_lens = new.get(key)
        if not isinstance(old_lens, Mapping) or not isinstance(new_lens, Mapping) or old_lens == new_lens:
            continue
        frames = old_lens.get("num_frames"), new_lens.get("num_frames")
        if frames[0] == frames[1]:
            yield f"{where}: the sequences have other lengths ({key}), or another order, with {frames[0]} frames as before."
        else:
            yield f"{where}: the lengths ({key}) were {frames[0]} frames in sum, and now are {frames[1]}."


def _file_changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """:return: a sentence. Any: see :func:`data_fingerprint`"""
    totals = "{} files with {} bytes before, {} files with {} bytes now".format(
        *(value for files in (old, new) for value in (files.get("num", 0), files.get("size", 0)))
    )
    old_sizes, new_sizes = _sizes_by_name(old), _sizes_by_name(new)
    if old_sizes is None or new_sizes is None:
        return f"the files are others: {totals}."
    parts = []
    gone = [name for name in old_sizes if name not in new_sizes]
    added = [name for name in new_sizes if name not in old_sizes]
    changed = [
        f"{name} ({_bytes(old_sizes[name])} before, {_bytes(sizes)} now)"
        for name, sizes in new_sizes.items()
        if name in old_sizes and old_sizes[name] != sizes
    ]
    for title, names in (("gone", gone), ("new", added), ("of another size", changed)):
        if names:
            more = f" and {len(names) - _MAX_NAMED} more" if len(names) > _MAX_NAMED else ""
            parts.append(f"{title}: {', '.join(names[:_MAX_NAMED])}{more}")
    return f"the files are others: {'; '.join(parts) or totals}."


def _bytes(sizes: Sequence[int]) -> str:
    return ", ".join(f"{size} bytes" if size >= 0 else "missing" for size in sizes)


def _sizes_by_name(files: Mapping[str, Any]) -> dict[str, list[int]] | None:
    """:return: base name -> sizes of the files of that name; None: not listed. Any: see :func:`data_fingerprint`"""
    if not files:
        return {}
    listed = files.get("list")
    if not isinstance(listed, list):
        return None
    result: dict[str, list[int]] = {}
    for entry in listed:
        if isinstance(entry, list) and len(entry) == 2:
            result.setdefault(str(entry[0]), []).append(entry[1])
    return result
