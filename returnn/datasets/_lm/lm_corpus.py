"""
The texts of all corpus files of LmDataset, and their tags.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import numpy

from returnn.datasets._hdf.tag_table import TagTable
from returnn.datasets._lm.corpus_files import read_lines
from returnn.datasets._lm.text_lines import TextLines
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.errors import DataFileError, UnknownSeqTagError
from returnn.log import log

__all__ = ["LmCorpus"]


class LmCorpus:
    """Texts of several files, one after the other, with a tag for each."""

    def __init__(self, parts: Sequence[TextLines], *, tag_prefix: str, tags: TagTable | None = None) -> None:
        """
        :param parts: one per file
        :param tag_prefix: the tags are this and the number of the text
        :param tags: instead of these
        """
        self._parts = list(parts)
        self._bounds = numpy.cumsum([0, *[len(part) for part in parts]])
        self._tag_prefix = tag_prefix
        self._tags = tags

    @classmethod
    def from_files(
        cls,
        filenames: Sequence[str],
        *,
        skip_empty_lines: bool,
        tag_prefix: str,
        seq_list_files: Sequence[str] | None,
        cached: Callable[[str], str] | None,
        name: str,
    ) -> LmCorpus:
        """
        :param filenames: Bliss XML or text lines
        :param skip_empty_lines: drop empty lines of text files
        :param tag_prefix: see :class:`LmCorpus`
        :param seq_list_files: with the tags: one for each corpus file, or one for all
        :param cached: gives a local copy of a file
        :param name: of the dataset, for messages
        :raises DataFileError: a file is missing or broken, or has not one tag for each text
        """
        parts = []
        for filename in filenames:
            print(f"LmDataset, loading file {filename}", file=log.v4)
            local = cached(filename) if cached else filename
            part = read_lines(local, skip_empty_lines=skip_empty_lines)
            part.name = filename
            if part.num_latin1:
                print(
                    f"Warning: dataset {name!r}: {part.num_latin1} of {len(part)} lines of {filename!r} are not UTF-8, "
                    "they are read as Latin-1. Convert the file to UTF-8.",
                    file=log.v2,
                )
            parts.append(part)
        if not any(map(len, parts)):
            hint = ", only empty lines" if skip_empty_lines and any(map(os.path.getsize, filenames)) else ""
            raise DataFileError(f"Dataset {name!r}: there are no sequences in {', '.join(map(repr, filenames))}{hint}.")
        tags = _load_tags(seq_list_files, parts) if seq_list_files is not None else None
        return cls(parts, tag_prefix=tag_prefix, tags=tags)

    def __len__(self) -> int:
        return int(self._bounds[-1])

    def _place(self, idx: int) -> tuple[TextLines, int]:
        part = int(numpy.searchsorted(self._bounds, idx, side="right")) - 1
        return self._parts[part], idx - int(self._bounds[part])

    def __getitem__(self, idx: int) -> str:
        """
        :param idx: >= 0
        :return: the text
        """
        part, place = self._place(idx)
        return part[place]

    def where(self, idx: int) -> str:
        """:return: file and line, for messages"""
        part, place = self._place(idx)
        return part.where(place)

    @property
    def filenames(self) -> list[str]:
        """:return: as given"""
        return [part.name for part in self._parts]

    @property
    def num_bytes(self) -> int:
        """:return: of all texts"""
        return sum(part.num_bytes for part in self._parts)

    def num_chars(self) -> numpy.ndarray:
        """:return: int64 [N], length of each text"""
        return numpy.concatenate([part.num_chars() for part in self._parts])

    def tag(self, idx: int) -> str:
        """:return: tag of a text"""
        return self._tags[idx] if self._tags is not None else f"{self._tag_prefix}{idx}"

    def select_tags(self, idxs: Sequence[int] | numpy.ndarray | range) -> list[str]:
        """:return: tags of these texts"""
        if self._tags is not None:
            return self._tags.select(idxs)
        return [f"{self._tag_prefix}{idx}" for idx in idxs]

    def find_tags(self, tags: Sequence[str], *, where: str) -> numpy.ndarray:
        """
        :param tags: any tags, repetitions allowed
        :param where: dataset, for the error
        :return: int64, numbers of the texts
        :raises UnknownSeqTagError: if a tag is unknown
        """
        if self._tags is not None:
            return self._tags.lookup(tags, dataset_name=where)
        prefix, num = self._tag_prefix, len(self)
        idxs = numpy.empty(len(tags), dtype=numpy.int64)
        for i, tag in enumerate(tags):
            text = tag[len(prefix) :] if tag.startswith(prefix) else ""
            is_number = text.isascii() and text.isdigit() and len(text) < 19
            idxs[i] = int(text) if is_number and int(text) < num else -1
        unknown = numpy.flatnonzero(idxs < 0)
        if len(unknown):
            raise UnknownSeqTagError(
                f"{where}: {len(unknown)} of {len(tags)} tags are not in the corpus, e.g. "
                f"{[tags[i] for i in unknown[:3]]}. Its tags are {prefix}0 to {prefix}{num - 1}."
            )
        return idxs


def _load_tags(filenames: Sequence[str], parts: Sequence[TextLines]) -> TagTable:
    if len(filenames) not in (1, len(parts)):
        raise DataFileError(
            f"option seq_list_file: expected one file, or one for each of the {len(parts)} corpus files, got {filenames}."
        )
    tags: list[str] = []
    counts = [len(part) for part in parts] if len(filenames) == len(parts) else [sum(len(part) for part in parts)]
    for filename, count in zip(filenames, counts, strict=True):
        of_file = load_seq_list_file(filename)
        if len(of_file) != count or not all(isinstance(tag, str) for tag in of_file):
            raise DataFileError(
                f"seq_list_file {filename!r} has {len(of_file)} tags, e.g. {of_file[:3]}, but the corpus has {count} "
                f"texts ({', '.join(part.name for part in parts[:3])}). Expected one tag (str) for each."
            )
        tags += of_file
    return TagTable.from_tags(tags)
