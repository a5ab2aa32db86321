"""Modules of other git repositories at a pinned revision."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from returnn.errors import ConfigError, DataFileError
from returnn.import_ import import_

pytestmark = pytest.mark.skipif(shutil.which("git") is None, reason="needs git")


def git(folder: Path, *args: str) -> str:
    """:return: output of git"""
    identity = [
        "-c",
        "user.name=A",
        "-c",
        "user.email=a@example.org",
        "-c",
        "commit.gpgsign=false",
        "-c",
        "core.hooksPath=/dev/null",
    ]
    return subprocess.run(
        ["git", *identity, "-C", str(folder), *args], check=True, capture_output=True, text=True
    ).stdout.strip()


@pytest.fixture
def repo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """:return: repository with two revisions"""
    monkeypatch.setenv("RETURNN_PKG_IMPORT_DIR", str(tmp_path / "pkg"))
    folder = tmp_path / "my-repo"
    (folder / "common").mkdir(parents=True)
    git(folder.parent, "init", "-q", str(folder))
    (folder / "common" / "value.py").write_text("VALUE = 1\n")
    (folder / "common" / "user.py").write_text("from .value import VALUE\n")
    git(folder, "add", ".")
    git(folder, "commit", "-q", "-m", "one")
    yield folder
    for name in [n for n in sys.modules if n.startswith("returnn_import")]:
        del sys.modules[name]


def test_pinned_revision_stays_the_same(repo: Path) -> None:
    first = git(repo, "rev-parse", "HEAD")[:12]
    (repo / "common" / "value.py").write_text("VALUE = 2\n")
    git(repo, "commit", "-q", "-a", "-m", "two")
    old = import_(str(repo), "common/user.py", f"20240131-{first}")
    new = import_(str(repo), "common/user")
    assert (old.VALUE, new.VALUE) == (1, 2)
    assert old.__name__.startswith("returnn_import.")
    assert old.__name__.endswith(f"v20240131_{first}.common.user")
    assert import_(str(repo), "common/user.py", f"20240131-{first}") is old


def test_mistakes(repo: Path) -> None:
    with pytest.raises(ConfigError, match="invalid version 'master'"):
        import_(str(repo), "common", "master")
    with pytest.raises(ConfigError, match="must lie inside"):
        import_(str(repo), "../x.py")
    with pytest.raises(ConfigError, match="has no 'common/nope.py'"):
        import_(str(repo), "common/nope.py")
    with pytest.raises(DataFileError, match="git cannot get"):
        import_(str(repo), "common", "0123456789ab")
    with pytest.raises(DataFileError, match="git cannot get"):
        import_(f"file://{repo}-nope", "common")
