"""Files that are in use: whether they are still the same when they are opened again."""

from __future__ import annotations

from collections.abc import Sequence

import h5py
import numpy as np

from returnn.datasets._hdf.file_index import FileIndex, read_file_index
from returnn.datasets._hdf.outside_links import check_links
from returnn.datasets._hdf.shared_files import get_signature, index_key
from returnn.errors import DataFileError, describe

__all__ = ["KnownFiles"]


class KnownFiles:
    """Checks files when they are opened again. No reference to the reader: a cycle would keep files open for long."""

    def __init__(self) -> None:
        self._indices: dict[str, FileIndex] = {}
        self._signatures: dict[str, tuple[int, ...]] = {}
        self._keys: dict[str, str] = {}
        self._looked_at: dict[str, tuple[int, ...]] = {}

    def look_at(self, filename: str) -> None:
        """
        A file that is replaced while it is read must not pass for the new one, so this comes first.

        :param filename: of a file that is to be read
        """
        try:
            self._looked_at[filename] = get_signature(filename)
        except OSError:  # whoever opens it says what is wrong
            self._looked_at.pop(filename, None)

    def add(self, index: FileIndex) -> None:
        """:param index: of a file that was read after :func:`look_at`"""
        self._indices[index.filename] = index
        signature = self._looked_at.pop(index.filename, None) or get_signature(index.filename)
        self._signatures[index.filename] = signature
        self._keys[index.filename] = index_key(index.filename, signature)

    def move(self, index: FileIndex) -> None:
        """:param index: of a known file, in other memory"""
        self._indices[index.filename] = index

    def keys(self, files: Sequence[FileIndex]) -> list[str]:
        """:return: of each file, by which processes share what was read of it: as it was then, though it may have grown"""
        return [self._keys[index.filename] for index in files]

    def num_bytes(self, files: Sequence[FileIndex]) -> int:
        """:return: size of these files"""
        return sum(self._signatures[index.filename][1] for index in files)

    def __call__(self, filename: str, h5_file: h5py.File) -> None:
        """
        A file may be opened again, and may have grown meanwhile, but must begin with the same sequences.

        :raises DataFileError: if it does not
        """
        index = self._indices.get(filename)
        signature = get_signature(filename)
        if index is not None and signature == self._signatures[filename]:
            return
        check_links(h5_file, filename)
        if index is None:
            return
        new = read_file_index(h5_file, filename)
        if (
            new.columns != index.columns
            or not np.array_equal(new.lens[: index.num_seqs], index.lens)
            or any(
                key not in new.streams or new.streams[key].layout != stream.layout
                for key, stream in index.streams.items()
            )
        ):
            raise DataFileError(
                describe(
                    f"HDF file {filename!r} was replaced by another one while it was in use",
                    expected=f"a file that begins with the same {index.num_seqs} sequences",
                    got=f"{new.num_seqs} sequences of {new.columns}",
                    todo="Start again with the new file; write new data to another name",
                )
            )
        self._signatures[filename] = signature
