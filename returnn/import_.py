"""
Code of other git repositories, at a pinned revision, for use in configs: ``mod = import_(repo, path, version)``.

The repository is cloned once per revision below ``$RETURNN_PKG_IMPORT_DIR`` (default: ``~/returnn/pkg``).
"""

from __future__ import annotations

import hashlib
import importlib
import os
import re
import subprocess
import sys
import tempfile
from types import ModuleType

from returnn.errors import ConfigError, DataFileError

__all__ = ["import_"]

_VERSION_FORM = re.compile(r"(?:(\d{8})-)?([0-9a-f]{7,40})")
_PACKAGE = "returnn_import"


def import_(repo: str, path: str, version: str | None = None) -> ModuleType:
    """
    Get a module of a git repository.

    :param repo: as git clone takes it, e.g. ``github.com/user/repo`` or a local path
    :param path: file or package inside of it, e.g. ``common/model.py`` or ``common``
    :param version: ``YYYYMMDD-<commit hash>`` (the date is only for readers) or the hash alone; None: the newest
        revision, in a working copy that you can edit
    :return: the module, also importable as ``returnn_import.<host>.<repo>.<version>.<path>``
    :raises ConfigError: invalid arguments, or no such path in that revision
    :raises DataFileError: git cannot get the repository or the revision
    """
    folder = _checkout(repo, version, _commit_of(version))
    parts = [part for part in path.replace(os.sep, "/").removesuffix(".py").split("/") if part not in ("", ".")]
    if os.path.isabs(path) or ".." in parts or not parts:
        raise ConfigError(f"import_: path {path!r} must lie inside of the repository {repo!r}.")
    version_part = "v" + re.sub(r"\W", "_", version) if version else "dev"
    root = _register_root([_PACKAGE, *_identifiers(_strip_scheme(repo)), version_part], folder)
    full = os.path.join(folder, *parts)
    if not os.path.isdir(full) and not os.path.exists(full + ".py"):
        raise ConfigError(f"import_: repository {repo!r} at version {version!r} has no {path!r} (looked in {folder}).")
    return importlib.import_module(".".join([root, *parts]))


def _register_root(parts: list[str], folder: str) -> str:
    """:return: name of the package that stands for the folder; parent packages are empty"""
    for i in range(1, len(parts) + 1):
        name = ".".join(parts[:i])
        if name not in sys.modules:
            package = ModuleType(name)
            package.__path__ = [folder] if i == len(parts) else []
            sys.modules[name] = package
    importlib.invalidate_caches()  # the folder may be newer than what the finder knows
    return ".".join(parts)


def _commit_of(version: str | None) -> str | None:
    if version is None:
        return None
    match = _VERSION_FORM.fullmatch(version)
    if match is None:
        raise ConfigError(
            f'import_: invalid version {version!r}. Expected "YYYYMMDD-<commit hash>", e.g. "20240131-1a2b3c4d5e6f".'
        )
    return match.group(2)


def _strip_scheme(repo: str) -> str:
    repo = re.sub(r"^[a-z+]+://", "", repo)
    return re.sub(r"\.git$", "", repo)


def _identifiers(text: str) -> list[str]:
    parts = [re.sub(r"\W", "_", part) for part in text.split("/") if part not in ("", ".", "..")]
    return [f"_{part}" if part[0].isdigit() else part for part in parts]


def _checkout(repo: str, version: str | None, commit: str | None) -> str:
    """:return: folder with the files of that revision; cloned at first use, whole or not at all"""
    base = os.environ.get("RETURNN_PKG_IMPORT_DIR") or os.path.join(os.path.expanduser("~"), "returnn", "pkg")
    digest = hashlib.sha256(repo.encode()).hexdigest()[:8]
    name = f"{_identifiers(_strip_scheme(repo))[-1]}-{digest}"
    folder = os.path.join(os.path.abspath(base), name, f"v{version}" if version else "dev")
    if os.path.isdir(folder):
        return folder
    os.makedirs(os.path.dirname(folder), exist_ok=True)
    url = repo if os.path.exists(repo) or "://" in repo or repo.startswith("git@") else f"https://{repo}"
    with tempfile.TemporaryDirectory(dir=os.path.dirname(folder), prefix=".tmp-") as tmp:
        target = os.path.join(tmp, "clone")
        _git("clone", "--quiet", url, target, repo=repo)
        if commit:
            _git("-C", target, "checkout", "--quiet", "--detach", commit, repo=repo)
        try:
            os.rename(target, folder)
        except OSError:
            if not os.path.isdir(folder):  # else: another process was faster
                raise
    return folder


def _git(*args: str, repo: str) -> None:
    try:
        subprocess.run(
            ["git", *args], check=True, capture_output=True, text=True, env={**os.environ, "GIT_TERMINAL_PROMPT": "0"}
        )
    except FileNotFoundError as exc:
        raise DataFileError("import_ needs the program git, which is not installed.") from exc
    except subprocess.CalledProcessError as exc:
        raise DataFileError(
            f"import_: git cannot get {repo!r}: {exc.stderr.strip() or exc}. Check the address, and the network."
        ) from exc
