"""FileCache and cf: validity, use counts, clean-up, several processes, no space."""

from __future__ import annotations

import errno
import gc
import json
import os
import shutil
import subprocess
import sys
import time
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets.basic import init_dataset
from returnn.errors import DataFileError, DatasetOptionError, OptionError
from returnn.util import cache_manager
from returnn.util.basic import cf
from returnn.util.cache_manager import copy_to_local
from returnn.util.file_cache import CachedFile, FileCache, get_instance, handle_cached_files
from tests.helpers import GOLDEN, ROOT

_Pair = namedtuple("_Pair", "a b")


def _set_age(path: str | Path, secs: float) -> None:
    os.utime(path, (time.time() - secs, time.time() - secs))


@pytest.fixture
def src(tmp_path: Path) -> str:
    path = tmp_path / "src" / "data.bin"
    path.parent.mkdir()
    path.write_bytes(os.urandom(100_000))
    _set_age(path, 1000)
    return str(path)


@pytest.fixture
def cache(tmp_path: Path) -> FileCache:
    return FileCache(cache_directory=str(tmp_path / "cache"))


def test_copy_and_reuse(cache: FileCache, src: str) -> None:
    dst = cache.get_file(src)
    assert dst == cache.cache_directory + src
    assert Path(dst).read_bytes() == Path(src).read_bytes()
    info = json.loads(Path(dst + ".returnn-info").read_text())
    assert info == {"mtime_ns": os.stat(src).st_mtime_ns}
    inode = os.stat(dst).st_ino
    assert cache.get_file(src) == dst and os.stat(dst).st_ino == inode
    assert sorted(os.listdir(os.path.dirname(dst))) == ["data.bin", "data.bin.returnn-info"]
    cache.release_files([dst, dst])
    with pytest.raises(ValueError, match="not in use"):
        cache.release_files(dst)


@pytest.mark.parametrize("change", ["size", "mtime", "no info", "broken info"])
def test_invalid_copies_are_made_again(cache: FileCache, src: str, change: str) -> None:
    dst = cache.get_file(src)
    cache.release_files(dst)
    if change == "size":
        Path(src).write_bytes(b"new")
        _set_age(src, 5000)  # even if it looks older
    elif change == "mtime":
        Path(src).write_bytes(b"x" * 100_000)
    elif change == "no info":
        os.remove(dst + ".returnn-info")
        Path(dst).write_bytes(b"y" * 100_000)
    else:
        Path(dst + ".returnn-info").write_text("{")
    assert cache.get_file(src) == dst
    assert Path(dst).read_bytes() == Path(src).read_bytes()


def test_missing_source(cache: FileCache) -> None:
    with pytest.raises(DataFileError, match="cannot read '/not/there.hdf'"):
        cache.get_file("/not/there.hdf")
    assert not cache._toucher._counts


def test_left_over_copy_and_lock_of_dead_process(cache: FileCache, src: str) -> None:
    dst = Path(cache.cache_directory + src)
    dst.parent.mkdir(parents=True)
    for postfix in (".copy", ".returnn-lock"):
        Path(str(dst) + postfix).write_bytes(b"rest")
        _set_age(str(dst) + postfix, 100)
    assert Path(cache.get_file(src)).read_bytes() == Path(src).read_bytes()
    assert not os.path.exists(str(dst) + ".copy")


def test_config_handling(cache: FileCache, src: str) -> None:
    opts = {"a": [CachedFile(src), 1], "b": (CachedFile(src),), "c": _Pair(CachedFile(src), "x"), "d": src}
    replaced, copies = cache.handle_cached_files_in_config(opts)
    dst = cache.cache_directory + src
    assert replaced == {"a": [dst, 1], "b": (dst,), "c": _Pair(dst, "x"), "d": src}
    assert copies == [dst] * 3 and isinstance(opts["a"][0], CachedFile)
    cache.release_files(copies)
    with pytest.raises(DataFileError):
        cache.handle_cached_files_in_config([CachedFile(src), CachedFile("/not/there")])
    assert not cache._toucher._counts  # the first one was released again


def test_get_instance_is_shared(tmp_path: Path, src: str) -> None:
    config = Config({"file_cache_opts": {"cache_directory": str(tmp_path / "c2"), "num_tries": 2}})
    assert get_instance(config) is get_instance(config)
    with process_state_ctx(global_config=config):
        assert get_instance().cache_directory == str(tmp_path / "c2")
        replaced, instance, copies = handle_cached_files({"f": CachedFile(src)})
    assert instance is get_instance(config) and replaced == {"f": copies[0]}
    assert instance is not None
    instance.release_files(copies)
    assert handle_cached_files({"f": src}) == ({"f": src}, None, [])


class _Usage:
    """Fakes the disk: so many bytes in all, the rest is what the cache folder has."""

    def __init__(self, folder: str, total: int) -> None:
        self.folder = folder
        self.total = total

    def __call__(self, _path: str) -> shutil._ntuple_diskusage:
        used = sum(f.stat().st_size for f in Path(self.folder).rglob("*") if f.is_file() and f.name.startswith("data"))
        return shutil._ntuple_diskusage(self.total, used, self.total - used)


def test_cleanup_order_and_limits(cache: FileCache, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    day = 86400
    ages = {"data_old": 40 * day, "data_3": 3 * day, "data_2": 2 * day, "data_half": day / 2}
    for name, age in ages.items():
        (tmp_path / name).write_bytes(b"x" * 1000)
        dst = cache.get_file(str(tmp_path / name))
        cache.release_files(dst)
        _set_age(dst, age)
    folder = cache.cache_directory + str(tmp_path)

    def names() -> set[str]:
        return {name for name in os.listdir(folder) if name.startswith("data") and "returnn" not in name}

    # Enough space: nothing right after a full clean-up; later, only what is very old.
    monkeypatch.setattr(shutil, "disk_usage", _Usage(cache.cache_directory, 100_000))
    result = cache.cleanup()
    assert result.freed == 0 and result.abort_reason and len(names()) == 4
    os.remove(os.path.join(cache.cache_directory, ".recent_full_cleanup"))
    assert cache.cleanup().freed == 1000 and names() == {"data_3", "data_2", "data_half"}
    # 5000 bytes, 2000 free, needed 1000, wanted 2500 (half the disk): the oldest one goes.
    cache._wanted_free_ratio = 0.5
    monkeypatch.setattr(shutil, "disk_usage", _Usage(cache.cache_directory, 5000))
    assert cache.cleanup(need_at_least_free_space_size=1000).freed == 1000 and names() == {"data_2", "data_half"}
    # Wanted: everything; but data_half is too recent for that.
    cache._wanted_free_ratio = 1.0
    assert cache.cleanup(need_at_least_free_space_size=1000).freed == 1000 and names() == {"data_half"}
    # Needed, so it goes too.
    assert cache.cleanup(need_at_least_free_space_size=4500).freed == 1000 and names() == set()
    with pytest.raises(OSError, match="We cannot free enough space on") as exc_info:
        cache.cleanup(need_at_least_free_space_size=6000)
    assert exc_info.value.errno == errno.ENOSPC


def test_cleanup_keeps_files_in_use(cache: FileCache, src: str, monkeypatch: pytest.MonkeyPatch) -> None:
    dst = cache.get_file(src)
    monkeypatch.setattr(shutil, "disk_usage", _Usage(cache.cache_directory, 120_000))
    with pytest.raises(OSError, match="cannot free enough"):
        cache.cleanup(need_at_least_free_space_size=50_000)
    assert os.path.exists(dst)
    cache.release_files(dst)
    _set_age(dst, 100)
    assert cache.cleanup(need_at_least_free_space_size=50_000).freed == 100_000


def test_no_space_is_tried_again(cache: FileCache, src: str, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = []

    def copy(self: FileCache, *_args: object) -> None:
        calls.append(1)
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(FileCache, "_copy", copy)
    monkeypatch.setattr(time, "sleep", lambda _secs: None)
    with pytest.raises(OSError, match="cannot copy .*data.bin.*No space left.*file_cache_opts") as exc_info:
        cache.get_file(src)
    assert len(calls) == 3 and exc_info.value.errno == errno.ENOSPC
    assert not cache._toucher._counts


def test_no_cache_folder(tmp_path: Path, src: str) -> None:
    (tmp_path / "file").write_bytes(b"")
    cache = FileCache(cache_directory=str(tmp_path / "file" / "cache"))
    with pytest.raises(
        DataFileError, match="cannot copy .*data.bin.* to .*file/cache.*Not a directory.*cache_directory"
    ):
        cache.get_file(src)
    assert not cache._toucher._counts


def test_disk_that_is_really_full(tmp_path: Path, src: str) -> None:
    """Nothing stays behind, and the next file that fits is copied."""
    code = (
        "import resource, sys\nfrom returnn.util.file_cache import FileCache\n"
        "import signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))\n"
        "try:\n  FileCache(cache_directory=sys.argv[1]).get_file(sys.argv[2])\n"
        "except OSError as exc:\n  print(exc)\n"
    )
    args = [sys.executable, "-c", code, str(tmp_path / "cache"), src]
    res = subprocess.run(args, cwd=ROOT, capture_output=True, text=True, check=True)
    assert "FileCache: cannot copy" in res.stdout and "File too large" in res.stdout
    assert not [path for path in (tmp_path / "cache").rglob("data*") if path.is_file()]


def test_several_processes(tmp_path: Path, src: str) -> None:
    code = (
        "import sys\nfrom returnn.util.file_cache import FileCache\n"
        "cache = FileCache(cache_directory=sys.argv[1])\n"
        "assert open(cache.get_file(sys.argv[2]), 'rb').read() == open(sys.argv[2], 'rb').read()\n"
    )
    procs = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path / "cache"), src], cwd=ROOT) for _ in range(4)]
    assert [proc.wait(60) for proc in procs] == [0] * 4


# --- cf


@pytest.fixture
def no_memo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("DEBUG", raising=False)
    monkeypatch.delenv("RETURNN_CF_COPY", raising=False)


def _fake_cf(folder: Path, monkeypatch: pytest.MonkeyPatch, script: str) -> None:
    folder.mkdir()
    (folder / "cf").write_text(f"#!/bin/sh\n{script}\n")
    (folder / "cf").chmod(0o755)
    monkeypatch.setenv("PATH", f"{folder}:{os.environ['PATH']}")


def test_cf_default_is_the_file_itself(src: str, no_memo: None) -> None:
    with process_state_ctx(cached_files={}):
        assert cf(src) == src


def test_cf_external_command(tmp_path: Path, src: str, no_memo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    _fake_cf(tmp_path / "bin", monkeypatch, f"echo x >> {tmp_path}/calls; cp $1 {tmp_path}/copy; echo {tmp_path}/copy")
    with process_state_ctx(cached_files={}):
        assert cf(src) == cf(src) == str(tmp_path / "copy")
        assert (tmp_path / "calls").read_text() == "x\n"  # remembered
        monkeypatch.setenv("DEBUG", "1")
        assert cf(src) == src


@pytest.mark.parametrize("script", ["exit 1", "echo /not/there"])
def test_cf_broken_command(
    tmp_path: Path, src: str, no_memo: None, monkeypatch: pytest.MonkeyPatch, script: str
) -> None:
    _fake_cf(tmp_path / "bin", monkeypatch, script)
    with process_state_ctx(cached_files={}):
        assert cf(src) == src


def test_cf_copy(tmp_path: Path, src: str, no_memo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETURNN_CF_COPY", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    with process_state_ctx(cached_files={}):
        dst = cf(src)
        assert dst.startswith(str(tmp_path / "tmp")) and dst.endswith(src)
        assert Path(dst).read_bytes() == Path(src).read_bytes()
    inode = os.stat(dst).st_ino
    cache_dir = dst[: -len(src)]
    assert copy_to_local(src, cache_dir) == dst and os.stat(dst).st_ino == inode
    Path(src).write_bytes(b"new")
    assert copy_to_local(src, cache_dir) == dst and Path(dst).read_bytes() == b"new"
    assert os.listdir(os.path.dirname(dst)) == ["data.bin"]


def test_cf_copy_without_space(tmp_path: Path, src: str, no_memo: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RETURNN_CF_COPY", "1")
    monkeypatch.setenv("TMPDIR", str(tmp_path / "tmp"))
    monkeypatch.setattr(cache_manager.shutil, "disk_usage", lambda _path: shutil._ntuple_diskusage(10**6, 10**6, 0))
    with process_state_ctx(cached_files={}):
        assert cf(src) == src


# --- datasets


def _hdf_copies(folder: Path) -> list[Path]:
    return sorted(folder.rglob("*.hdf"))


def test_cached_files_of_datasets(tmp_path: Path) -> None:
    """Anywhere in the dict; in use as long as the dataset exists; not after a failed construction."""
    config = Config({"file_cache_opts": {"cache_directory": str(tmp_path / "cache")}})
    golden = GOLDEN / "04-datasets-meta"
    child = {"class": "HDFDataset", "files": [CachedFile(str(golden / "feat.hdf"))]}
    other = {"class": "HDFDataset", "files": [CachedFile(str(golden / "lab_perm.hdf"))]}
    opts = {
        "class": "MetaDataset",
        "datasets": {"a": child, "b": other},
        "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
        "seq_order_control_dataset": "a",
    }
    with process_state_ctx(global_config=config, file_caches={}):
        dataset: Any = init_dataset(opts)
        copies = _hdf_copies(tmp_path / "cache")
        assert [path.name for path in copies] == ["feat.hdf", "lab_perm.hdf"]
        counts = get_instance()._toucher._counts
        assert sorted(counts) == [str(path) for path in copies]
        dataset.init_seq_order(epoch=1)
        dataset.load_seqs(0, 1)
        assert dataset.get_data(0, "data").shape[1] == 3
        second = init_dataset(child)
        assert counts[str(copies[0])] == 2
        del dataset
        gc.collect()
        assert dict(counts) == {str(copies[0]): 1}
        with pytest.raises(DatasetOptionError, match="no option 'filez'"):
            init_dataset({**child, "filez": 1})
        assert dict(counts) == {str(copies[0]): 1}
        del second
        gc.collect()
        assert not counts


def test_wrong_options_of_the_cache() -> None:
    with process_state_ctx(file_caches={}), pytest.raises(OptionError, match="file_cache_opts.*cache_directory"):
        get_instance({"file_cache_opts": {"directory": "x"}})


def test_lock_stays_fresh_during_a_slow_copy(cache: FileCache, src: str, monkeypatch: pytest.MonkeyPatch) -> None:
    locks: list[str] = []
    copy = FileCache._copy

    def slow_copy(self: FileCache, src_: str, dst: str) -> None:
        locks.extend(name for name in cache._toucher._counts if name.endswith(".returnn-lock"))
        copy(self, src_, dst)

    monkeypatch.setattr(FileCache, "_copy", slow_copy)
    dst = cache.get_file(src)
    assert locks == [dst + ".returnn-lock"]
    assert list(cache._toucher._counts) == [dst]
