"""Files that a tool will write at its end: checked at its start, before the work is done."""

from __future__ import annotations

import os

from returnn.errors import DataFileError, describe
from returnn.util.fs import why_not_writable

__all__ = ["check_output_file"]


def check_output_file(filename: str | None, *, option: str) -> None:
    """
    :param filename: to be written; its folder must be there. None or empty: nothing is checked
    :param option: of the command line, for the error
    :raises DataFileError: it cannot be written
    """
    if not filename:
        return
    folder = os.path.dirname(os.path.abspath(filename))
    problem = why_not_writable(filename)
    if os.path.isdir(filename):
        problem = "it is a folder"
    elif not os.path.lexists(folder):
        problem = f"the folder {folder!r} does not exist"
    if problem:
        raise DataFileError(describe(f"{option}: cannot write {filename!r}: {problem}", todo="Choose another place"))
