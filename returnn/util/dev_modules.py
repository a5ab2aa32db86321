"""
Which code a run used: new entries of sys.path, and the git revision of newly imported modules.
"""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from types import TracebackType
from typing import TextIO

from returnn.util.git_info import git_describe_head_version
from returnn.util.log_levels import V3

__all__ = ["ReportImportedDevModules"]

_logger = logging.getLogger("returnn.util.dev_modules")


class ReportImportedDevModules:
    """
    Context manager: at its end, says which entries of ``sys.path`` and which top-level modules outside of the
    installed packages are new, with their git revision.
    """

    def __init__(self, log_stream: TextIO | None = None) -> None:
        """
        :param log_stream: default is the log, like ``log.v3``
        """
        self._log_stream = log_stream
        self._known_paths: set[str] = set()
        self._known_modules: set[str] = set()

    def __enter__(self) -> ReportImportedDevModules:
        self._known_paths = set(sys.path)
        self._known_modules = _top_level_modules()
        return self

    def __exit__(
        self, exc_type: type[BaseException] | None, exc: BaseException | None, tb: TracebackType | None
    ) -> None:
        self.report()

    def report(self) -> None:
        """Report what is new since the last report."""
        for path in dict.fromkeys(sys.path):
            if path not in self._known_paths:
                self._print(f"New sys.path entry: {path}")
        modules = _top_level_modules()
        for name in sorted(modules - self._known_modules):
            filename = getattr(sys.modules[name], "__file__", None)
            if not filename or "site-packages" in filename or "dist-packages" in filename or _is_stdlib(name):
                continue
            directory = os.path.dirname(os.path.abspath(filename))
            self._print(f"New module: {name} ({_git_info(directory)} in {directory})")
        self._known_paths.update(sys.path)
        self._known_modules = modules

    def _print(self, line: str) -> None:
        if self._log_stream is not None:
            print(line, file=self._log_stream)
        else:
            _logger.log(V3, "%s", line)


def _top_level_modules() -> set[str]:
    return {name for name in list(sys.modules) if "." not in name}


def _is_stdlib(name: str) -> bool:
    return name in sys.stdlib_module_names


def _git_info(directory: str) -> str:
    try:
        return f"git:{git_describe_head_version(git_dir=directory)}"
    except (OSError, subprocess.CalledProcessError):
        return "<not-under-git>"
