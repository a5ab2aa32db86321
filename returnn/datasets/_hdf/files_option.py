"""The option ``files`` of the HDF datasets."""

from __future__ import annotations

import os
from collections.abc import Sequence

from returnn.errors import DatasetOptionError, describe

__all__ = ["check_files_option"]


def check_files_option(
    files: Sequence[str | os.PathLike[str]] | None, *, class_name: str, dataset_name: str | None
) -> list[str]:
    """
    :param files: as given
    :param class_name: of the dataset, for the error text
    :param dataset_name: likewise
    :return: file names
    :raises DatasetOptionError: if it is not a list or tuple of file names
    """
    if files is None:
        return []
    where = f"dataset {dataset_name!r}" if dataset_name else None
    if not isinstance(files, (list, tuple)):
        raise DatasetOptionError(
            describe(
                f"{class_name} 'files' have to be defined as a list",
                where=where,
                expected="list of file names",
                got=files,
                todo='Write e.g. "files": ["train.hdf"]',
            )
        )
    for i, filename in enumerate(files):
        if not isinstance(filename, (str, os.PathLike)):
            raise DatasetOptionError(
                describe(f"{class_name} 'files'[{i}] is invalid", where=where, expected="file name (str)", got=filename)
            )
    return [os.fspath(filename) for filename in files]
