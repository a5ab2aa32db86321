"""A new HDF file of a tool: it appears when it is whole."""

from __future__ import annotations

import os
from collections.abc import Sequence
from types import TracebackType
from typing import Any

import h5py

from returnn.datasets._hdf.atomic_file import AtomicHdfFile
from returnn.errors import DataFileError, describe

__all__ = ["HdfOutput"]


class HdfOutput:
    """Context; an error in it leaves no file, or the old one."""

    def __init__(
        self, filename: str, *, inputs: Sequence[str], overwrite: bool = False, compression: str | None = None
    ):
        """
        :param filename: target
        :param inputs: files that are read meanwhile
        :param overwrite: an existing target is replaced
        :param compression: of the arrays: "gzip" or "lzf"; None: stored as they are, which is read fastest
        :raises DataFileError: it exists already, or is one of the inputs, or cannot be written
        """
        if any(os.path.exists(filename) and os.path.samefile(filename, name) for name in inputs):
            raise DataFileError(describe(f"The output {filename!r} is one of the inputs", todo="Give another name"))
        if os.path.exists(filename) and os.path.getsize(filename) and not overwrite:
            raise DataFileError(
                describe(f"HDF file {filename!r} exists already", todo="Give --overwrite, or another name")
            )
        self.filename = filename
        self._compression = compression
        self._atomic = AtomicHdfFile(filename)
        self.file: h5py.File = self._atomic.file

    def __enter__(self) -> HdfOutput:
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if exc_type is not None:
            self._atomic.discard()
            return
        self._atomic.publish()

    def check(self) -> None:
        """
        To be called after each block of data.

        :raises DataFileError: it could not be written, e.g. the disk is full
        """
        self._atomic.check()

    def create_array(self, parent: h5py.Group, name: str, **kwargs: Any) -> h5py.Dataset:
        """
        :param parent: group
        :param name: in the group
        :param kwargs: see h5py: data, or shape and dtype. Any: each has its own type
        """
        return parent.create_dataset(name, compression=self._compression, **kwargs)
