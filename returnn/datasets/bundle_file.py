"""
BundleFile: a text file that lists HDF files.
"""

from __future__ import annotations

import os

from returnn.errors import DataFileError

__all__ = ["BundleFile"]


class BundleFile:
    """One file name per line; blank lines are skipped."""

    def __init__(self, file_path: str | os.PathLike[str]) -> None:
        """
        :param file_path: of the list, text in UTF-8
        :raises DataFileError: it cannot be read
        """
        self._file_path = os.fspath(file_path)
        try:
            with open(self._file_path, encoding="utf8") as f:
                lines = [line.strip() for line in f]
        except (OSError, UnicodeDecodeError) as exc:
            raise DataFileError(f"BundleFile: cannot read {self._file_path!r}: {exc}.") from exc
        self._dataset_file_paths = [line for line in lines if line]

    @property
    def dataset_file_paths(self) -> list[str]:
        """:return: file names, as listed"""
        return list(self._dataset_file_paths)

    @property
    def number_of_dataset_files(self) -> int:
        """:return: how many"""
        return len(self._dataset_file_paths)
