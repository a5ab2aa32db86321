"""
Import of optional packages, with the error text that says what to install.
"""

from __future__ import annotations

import importlib
from types import ModuleType

from returnn.errors import MissingDependencyError

__all__ = ["optional_import"]


def optional_import(name: str, *, needed_by: str, install: str | None = None) -> ModuleType:
    """
    Import a third-party package at its first use.

    :param name: module name, e.g. "soundfile"
    :param needed_by: the option, class or tool which needs it, for the error text
    :param install: what to give to pip if that is not the first part of the module name
    :return: the module
    :raises MissingDependencyError: the package is not installed, or a library that it needs
    """
    try:
        return importlib.import_module(name)
    except (ImportError, OSError) as exc:  # OSError: soundfile without libsndfile
        top_level = name.partition(".")[0]
        install = install or top_level
        if isinstance(exc, ModuleNotFoundError) and exc.name and exc.name.partition(".")[0] == top_level:
            what = f"The Python package {top_level!r} is not installed, but needed by {needed_by}."
        else:
            what = f"The Python package {top_level!r}, needed by {needed_by}, cannot be imported: {exc}."
        raise MissingDependencyError(f"{what} Install it with: pip install {install}") from exc
