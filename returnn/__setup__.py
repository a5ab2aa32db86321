"""The version of the package, with information from git where there is a checkout."""

from __future__ import annotations

import functools
import os
import subprocess

VERSION = "0.6"


def git_rev_version(git_dir: str) -> str | None:
    """
    :param git_dir: a checkout
    :return: short revision, with ``.dirty`` appended if there are changes; None if git or the checkout is missing
    """
    try:
        rev = subprocess.run(
            ["git", "-C", git_dir, "rev-parse", "--short", "HEAD"],
            capture_output=True,
            text=True,
            timeout=5,
            check=True,
        ).stdout.strip()
        dirty = subprocess.run(["git", "-C", git_dir, "diff", "--quiet", "HEAD"], capture_output=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return None
    return rev + (".dirty" if dirty.returncode == 1 else "")


@functools.cache
def get_version_str(long: bool = False) -> str:
    """
    :param long: with the git revision, if the package runs from a checkout (costs two git calls, once)
    :return: e.g. ``0.6`` or ``0.6+git.1a2b3c4.dirty``
    """
    if not long:
        return VERSION
    root = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if os.path.exists(os.path.join(root, ".git")):
        rev = git_rev_version(root)
        if rev:
            return f"{VERSION}+git.{rev}"
    return VERSION
