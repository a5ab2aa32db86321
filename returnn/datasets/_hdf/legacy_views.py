"""Sequences by file, as old client code accesses them; made on access."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

import h5py
import numpy as np

from returnn.datasets._hdf.reader import CorpusReader

__all__ = ["FileSeqStarts", "OpenFiles", "CachedH5Datasets"]

T = TypeVar("T")


class _PerFile(Sequence[T]):
    def __init__(self, reader: CorpusReader):
        """
        :param reader: of the corpus
        """
        self._reader = reader

    def __len__(self) -> int:
        return len(self._reader.files)

    def __getitem__(self, idx):  # type: ignore[no-untyped-def]  # overloads of Sequence
        if isinstance(idx, slice):
            return [self._get(i) for i in range(*idx.indices(len(self)))]
        return self._get(range(len(self))[idx])

    def _get(self, file_idx: int) -> T:
        raise NotImplementedError

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    def __repr__(self) -> str:
        return repr(list(self))


class FileSeqStarts(_PerFile[np.ndarray]):
    """Per file int64 [num_seqs + 1, columns]."""

    def __init__(self, reader: CorpusReader, keys: Sequence[str]):
        """
        :param reader: of the corpus
        :param keys: columns
        """
        super().__init__(reader)
        self._keys = keys

    def _get(self, file_idx: int) -> np.ndarray:
        index = self._reader.files[file_idx]
        starts = np.zeros((index.num_seqs + 1, len(self._keys)), dtype=np.int64)
        for i, key in enumerate(self._keys):
            np.cumsum(index.column(key), out=starts[1:, i])
        return starts


class OpenFiles(_PerFile[h5py.File]):
    """Per file the open handle."""

    def _get(self, file_idx: int) -> h5py.File:
        with self._reader.handles.use(self._reader.files[file_idx].filename) as h5_file:
            return h5_file


class CachedH5Datasets(_PerFile[dict[str, h5py.Dataset]]):
    """Per file data key -> HDF dataset."""

    def _get(self, file_idx: int) -> dict[str, h5py.Dataset]:
        index = self._reader.files[file_idx]
        with self._reader.handles.use(index.filename) as h5_file:
            return {key: h5_file[stream.path] for key, stream in index.streams.items()}
