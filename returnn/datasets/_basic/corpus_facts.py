"""
What a dataset knows about its corpus without reading data: for the fingerprint in checkpoints.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from typing import ClassVar

import numpy

from returnn.datasets._basic.shared_corpus import SharedPart

__all__ = ["CorpusFactsMixin", "files_of_folder"]

_MAX_FOLDER_ENTRIES = 10_000


class CorpusFactsMixin:
    """Part of :class:`returnn.datasets.basic.Dataset`. See :mod:`returnn.datasets.fingerprint`."""

    #: False where the datasets below are others in each epoch, so that there is not one corpus
    _children_are_fixed: ClassVar[bool] = True

    def corpus_files(self) -> Iterable[str]:
        """:return: names of files of the corpus, besides those which are constructor arguments (or in such)"""
        return ()

    def known_corpus_lens(self) -> Mapping[str, numpy.ndarray]:
        """
        :return: data key, or what else is measured -> [corpus] lengths, in corpus order; as far as they are known already,
            or can be known fast, without reading data
        """
        return {}

    def shared_parts(self) -> Iterable[SharedPart]:
        """
        :return: what copies of this dataset in other processes need not find out again, without that of the datasets below.
            They must look for it themselves, by :func:`returnn.datasets._basic.shared_corpus.find_part`
        """
        return ()

    def shared_rooms(self) -> Mapping[str, int]:
        """
        :return: key -> bytes of arrays that each copy of this dataset in another process may make later, without those of the
            datasets below. They must ask by :func:`returnn.datasets._basic.shared_rooms.from_room`
        """
        return {}


def files_of_folder(folder: str) -> list[str]:
    """:return: sorted names, with folder, of the files directly in it (10,000 at most); [] if it cannot be listed"""
    try:
        with os.scandir(folder) as entries:
            names = sorted(entry.name for entry in entries if entry.is_file())
    except OSError:
        return []
    return [os.path.join(folder, name) for name in names[:_MAX_FOLDER_ENTRIES]]
