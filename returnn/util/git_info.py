"""
Revisions of git checkouts, and versions of packages.
"""

from __future__ import annotations

import os
import sys

import returnn
from returnn.util.process import sys_exec_out, sys_exec_ret_code

__all__ = [
    "returnn_root_dir",
    "git_commit_rev",
    "git_is_dirty",
    "git_commit_date",
    "git_describe_head_version",
    "describe_returnn_version",
    "describe_torch_version",
]

#: folder that contains the package
returnn_root_dir = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))


def git_commit_rev(commit: str = "HEAD", git_dir: str = ".", length: int | None = None) -> str:
    """
    :param commit: revision
    :param git_dir: checkout
    :param length: number of digits; default as git thinks
    :return: short hash
    """
    short = f"--short={length}" if length else "--short"
    return sys_exec_out("git", "rev-parse", short, commit, cwd=git_dir).strip()


def git_is_dirty(git_dir: str = ".") -> bool:
    """:return: whether there are changes to tracked files"""
    return sys_exec_ret_code("git", "diff", "--no-ext-diff", "--quiet", "--exit-code", "HEAD", cwd=git_dir) != 0


def git_commit_date(commit: str = "HEAD", git_dir: str = ".") -> str:
    """:return: e.g. "20240131.235959" """
    return sys_exec_out("git", "show", "-s", "--format=%cd", "--date=format:%Y%m%d.%H%M%S", commit, cwd=git_dir).strip()


def git_describe_head_version(git_dir: str = ".") -> str:
    """:return: e.g. "20240131.235959--git-1a2b3c4-dirty" """
    date, rev = git_commit_date(git_dir=git_dir), git_commit_rev(git_dir=git_dir)
    return f"{date}--git-{rev}{'-dirty' if git_is_dirty(git_dir=git_dir) else ''}"


def describe_returnn_version() -> str:
    """:return: long version of this package"""
    return str(returnn.__long_version__)


def describe_torch_version() -> str:
    """:return: e.g. "2.6.0 (1a2b3c4) (<site-package> in /path/torch)"; does not import torch if it is not imported yet"""
    torch = sys.modules.get("torch")
    if torch is None:
        return "<torch not imported>"
    directory = os.path.dirname(os.path.abspath(torch.__file__ or ""))
    rev = getattr(getattr(torch, "version", None), "git_version", None) or "<unknown>"
    if "site-packages" in directory or "dist-packages" in directory:
        origin = "<site-package>"
    elif os.path.exists(os.path.join(os.path.dirname(directory), ".git")):
        origin = f"git:{git_describe_head_version(git_dir=os.path.dirname(directory))}"
    else:
        origin = "<not-under-git>"
    return f"{torch.__version__} ({rev}) ({origin} in {directory})"
