"""tools/file-cache.py as a user runs it."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from returnn.util.file_cache import FileCache
from tests.helpers import ROOT, run_program

TOOL = str(ROOT / "tools" / "file-cache.py")


def _run(*args: str, cwd: Path, check: bool = True) -> subprocess.CompletedProcess[str]:
    return run_program([sys.executable, TOOL, *args], cwd=cwd, check=check)


@pytest.fixture
def cache_dir(tmp_path: Path) -> str:
    """:return: cache with a file not used for 40 days"""
    src = tmp_path / "data.bin"
    src.write_bytes(b"x" * 2000)
    cache = FileCache(cache_directory=str(tmp_path / "cache"))
    copy = cache.get_file(str(src))
    cache.release_files(copy)
    os.utime(copy, (time.time() - 40 * 86400,) * 2)
    for marker in Path(cache.cache_directory).glob(".recent*"):
        marker.unlink()
    return cache.cache_directory


def test_info(tmp_path: Path, cache_dir: str) -> None:
    lines = _run("info", "--cache-dir", cache_dir, "--temp-dir", str(tmp_path), cwd=tmp_path).stdout.splitlines()
    assert lines[0] == f"Env TMPDIR: {tmp_path}"
    assert [line.split(":")[0] for line in lines[1:4]] == ["Env TEMP", "Env TMP", "Temp dir"]
    assert lines[3].startswith(f"Temp dir: {tmp_path}/")
    assert lines[4] == f"Cache dir: {cache_dir}"
    assert lines[5].startswith("Cache dir, disk usage: total ") and ", used " in lines[5] and ", free " in lines[5]


def test_default_folder(tmp_path: Path) -> None:
    res = _run("info", "--temp-dir", str(tmp_path), cwd=tmp_path, check=False)
    assert res.returncode == 1
    assert res.stdout.splitlines()[-1] == "Cache dir does not exist."
    assert f"Cache dir: {tmp_path}/" in res.stdout


def test_cleanup(tmp_path: Path, cache_dir: str) -> None:
    copy = next(Path(cache_dir).rglob("data.bin"))
    keep = _run("cleanup", "--cache-dir", cache_dir, "--cleanup-files-always-older-than-days", "50",
                "--cleanup-files-wanted-older-than-days", "50", cwd=tmp_path)  # fmt: skip
    assert "CleanupResult(freed=0B" in keep.stdout and copy.exists()
    for marker in Path(cache_dir).glob(".recent*"):
        marker.unlink()
    args = ("--cleanup-disk-usage-wanted-free-ratio", "0", "--cleanup-disk-usage-wanted-multiplier", "1")
    res = _run("cleanup", "--cache-dir", cache_dir, *args, cwd=tmp_path)
    assert res.stdout.splitlines()[-1].startswith("CleanupResult(freed=2")
    assert not copy.exists()


def test_space_that_cannot_be_freed(tmp_path: Path, cache_dir: str) -> None:
    res = _run(
        "cleanup", "--cache-dir", cache_dir, "--cleanup-require-free-space", "9000000G", cwd=tmp_path, check=False
    )
    assert res.returncode == 1
    assert "We cannot free enough space" in res.stderr.splitlines()[-1]


@pytest.mark.parametrize("args", [(), ("x",), ("cleanup", "--cleanup-require-free-space", "10X")])
def test_wrong_arguments(args: tuple[str, ...], tmp_path: Path) -> None:
    assert _run(*args, cwd=tmp_path, check=False).returncode == 2


def test_help(tmp_path: Path) -> None:
    assert "10G, 500M" in _run("--help", cwd=tmp_path).stdout
