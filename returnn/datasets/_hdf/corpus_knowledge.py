"""What a dataset of HDF files knows of its corpus without reading data."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy as np

from returnn.datasets._basic.corpus_facts import CorpusFactsMixin
from returnn.datasets._basic.shared_corpus import SharedPart, find_part
from returnn.datasets._hdf.reader import CorpusReader
from returnn.datasets._hdf.tag_table import TagTable
from returnn.log import log

__all__ = ["CorpusKnowledge"]


class CorpusKnowledge(CorpusFactsMixin):
    """Part of :class:`returnn.datasets.hdf.HDFDataset`, which sets the attributes."""

    #: init_seq_order takes a seq_order of int32 as it is, where nobody can write to it. For MetaDataset
    _takes_int32_order: ClassVar[bool] = True
    _reader: CorpusReader
    _warned_duplicates: bool
    _length_keys: list[str]

    @property
    def tag_table(self) -> TagTable:
        """:return: tags of the corpus, read at the first use"""
        tags = self._reader.tags
        if not self._warned_duplicates and len(tags):
            self._warned_duplicates = True
            num = tags.num_duplicates()
            if num and find_part(tags.key or "") is None:  # else the parent process said it
                print(
                    f"Warning: {self}: {num} sequence tags occur again later in the corpus."
                    " Where a sequence is asked by tag, the last one is taken.",
                    file=log.v2,
                )
        return tags

    @property
    def tag_table_key(self) -> str:
        """:return: the key that :func:`tag_table` has, without reading tags"""
        return self._reader.tags_key

    def forget_tag_table(self) -> None:
        """Free it if it takes much memory. It is read again when needed."""
        self._reader.forget_tags()

    def get_all_tags(self) -> list[str]:
        """:return: of all files, in file order"""
        return self._reader.tags.to_list()

    def known_corpus_lens(self) -> Mapping[str, np.ndarray]:
        """See :func:`Dataset.known_corpus_lens`."""
        return {key: self._reader.lens(key) for key in self._length_keys}

    def shared_parts(self) -> Iterable[SharedPart]:
        """See :func:`Dataset.shared_parts`. Lengths, and tags if they were read."""
        return self._reader.shared_parts()

    def shared_rooms(self) -> Mapping[str, int]:
        """See :func:`Dataset.shared_rooms`. Streams that are kept in memory, and where sequences start."""
        return self._reader.shared_rooms()
