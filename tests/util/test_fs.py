"""Files: reading plain and gz text, atomic writing also under kill -9, locks, temporary folders, restricted pickles."""

from __future__ import annotations

import gzip
import io
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections import OrderedDict
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy
import pytest

from returnn.errors import DataFileError
from returnn.util import restricted_pickle
from returnn.util.basic import (
    LockFile,
    expand_env_vars,
    get_cache_dir,
    get_login_username,
    get_temp_dir,
    maybe_make_dirs,
    override_env_var,
    touch_file,
)
from returnn.util.fs import atomic_write, open_binary, open_text, why_not_writable
from tests.helpers import ROOT


def test_open_text(tmp_path: Path) -> None:
    plain, packed = tmp_path / "a.txt", tmp_path / "a.txt.gz"
    plain.write_text("ü\nb\n", encoding="utf8")
    packed.write_bytes(gzip.compress("ü\nb\n".encode()))
    for path in (plain, packed):
        with open_text(str(path)) as f:
            assert list(f) == ["ü\n", "b\n"]
        with open_binary(str(path)) as b:
            assert b.read() == "ü\nb\n".encode()
    with open_text("x", cached=lambda name: str(plain) if name == "x" else name) as f:
        assert f.read() == "ü\nb\n"
    with pytest.raises(DataFileError, match="Cannot open file '/not/there.gz': No such file"):
        open_text("/not/there.gz")


def test_atomic_write(tmp_path: Path) -> None:
    path = tmp_path / "f"
    with atomic_write(str(path)) as f:
        f.write("ü")
        assert not path.exists()
    assert path.read_text(encoding="utf8") == "ü"
    umask = os.umask(0)
    os.umask(umask)
    assert path.stat().st_mode & 0o777 == 0o666 & ~umask
    path.chmod(0o640)
    with atomic_write(str(path), "wb") as f:
        f.write(b"new")
    assert path.read_bytes() == b"new" and path.stat().st_mode & 0o777 == 0o640
    with pytest.raises(KeyError), atomic_write(str(path)) as f:
        f.write("half")
        raise KeyError
    assert path.read_bytes() == b"new"
    link = tmp_path / "link"
    link.symlink_to("f")
    with atomic_write(str(link)) as f:
        f.write("via link")
    assert link.is_symlink() and path.read_text() == "via link"
    assert sorted(os.listdir(tmp_path)) == ["f", "link"]
    with pytest.raises(ValueError, match="mode"), atomic_write(str(path), "a"):
        pass


def test_atomic_write_killed(tmp_path: Path) -> None:
    path = tmp_path / "f"
    path.write_text("old")
    code = (
        "import os, sys, signal\nfrom returnn.util.fs import atomic_write\n"
        "with atomic_write(sys.argv[1]) as f:\n"
        "  f.write('x' * 1000000)\n  f.flush()\n  os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    proc = subprocess.run([sys.executable, "-c", code, str(path)], cwd=ROOT)
    assert proc.returncode == -signal.SIGKILL
    assert path.read_text() == "old"


def test_small_helpers(tmp_path: Path) -> None:
    maybe_make_dirs(str(tmp_path / "a" / "b"))
    maybe_make_dirs(str(tmp_path / "a" / "b"))
    maybe_make_dirs("")
    touch_file(str(tmp_path / "t"))
    os.utime(tmp_path / "t", (1, 1))
    touch_file(str(tmp_path / "t"))
    assert (tmp_path / "t").stat().st_mtime > 1000


def test_temp_dirs() -> None:
    user = get_login_username()
    assert user
    with override_env_var("TMPDIR", "/some/tmp"), override_env_var("RETURNN_CACHE_DIR", None):
        assert get_temp_dir() == get_cache_dir() == f"/some/tmp/{user}"
        assert get_temp_dir(with_username=False) == "/some/tmp"
        assert expand_env_vars("$TMPDIR/${USER}/a$$b").startswith("/some/tmp/")
        with override_env_var("RETURNN_CACHE_DIR", "/c"):
            assert get_cache_dir() == "/c"
    with override_env_var("TMPDIR", None), override_env_var("TEMP", None), override_env_var("TMP", None):
        assert expand_env_vars("$TMPDIR") == get_temp_dir(with_username=False) in ("/var/tmp", "/tmp")
    with override_env_var("USER", None):
        assert expand_env_vars("$USER") == user
    with pytest.raises(ValueError, match="'NOT_DEFINED_X' is not defined"):
        expand_env_vars("$NOT_DEFINED_X/a")


def test_lock_file(tmp_path: Path) -> None:
    lock = LockFile(str(tmp_path / "dir"), "l", lock_timeout=100)
    other = LockFile(str(tmp_path / "dir"), "l", lock_timeout=100)
    with lock:
        assert lock.is_locked() and other.is_locked() and not other.try_lock()
        other.unlock()  # has no effect: not the owner
        assert lock.is_locked()
    assert not lock.is_locked() and not os.path.exists(lock.lockfile)
    with pytest.raises(KeyError), lock:
        raise KeyError
    assert other.try_lock()
    os.utime(lock.lockfile, (time.time() - 200,) * 2)
    assert lock.is_old_lockfile() and not lock.is_locked()
    assert lock.try_lock()  # takes over
    other.unlock()  # wakes up after all: the lock is not its own any more
    assert lock.is_locked()
    lock.unlock()
    assert not os.path.exists(lock.lockfile)


def _left_over_lock(folder: Path) -> None:
    (folder / "l").write_bytes(b"")
    os.utime(folder / "l", (time.time() - 200,) * 2)


def test_lock_file_two_see_the_same_left_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = (LockFile(str(tmp_path), "l", lock_timeout=100) for _ in range(2))
    _left_over_lock(tmp_path)
    is_old = second.is_old_lockfile

    def slow_look() -> bool:
        result = is_old()
        monkeypatch.undo()
        assert first.try_lock()
        return result

    monkeypatch.setattr(second, "is_old_lockfile", slow_look)
    assert not second.try_lock()
    assert first.is_locked()
    first.unlock()
    assert os.listdir(tmp_path) == []


def test_lock_file_many_see_the_same_left_over(tmp_path: Path) -> None:
    num = 6
    barrier = threading.Barrier(num)

    def attempt(lock: LockFile) -> bool:
        barrier.wait(30)
        return lock.try_lock()

    with ThreadPoolExecutor(num) as pool:
        for _ in range(50):
            _left_over_lock(tmp_path)
            locks = [LockFile(str(tmp_path), "l", lock_timeout=100) for _ in range(num)]
            # Rarely none: each one saw the lock that another was just taking over.
            assert sum(pool.map(attempt, locks)) <= 1
            for lock in locks:
                lock.unlock()
            assert LockFile(str(tmp_path), "l", lock_timeout=100).try_lock()
            os.remove(tmp_path / "l")


_PLAIN = [
    {"a": [1, 2.5, None, True, "ü", b"x"], "b": (1, {2}, frozenset([3])), "c": 1 + 2j, "d": 10**30},
    OrderedDict(a=1),
    numpy.arange(6, dtype="int32").reshape(2, 3),
    [
        numpy.float32(0.5),
        numpy.int64(3),
        numpy.array(["a", "bc"]),
        numpy.array([{"x": 1}], dtype=object),
        numpy.bool_(True),
    ],
    {"ids": numpy.array([b"a", b"bc"]), "big": numpy.zeros(100000)},
]


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
def test_restricted_pickle_plain_data(protocol: int) -> None:
    for obj in _PLAIN:
        result = restricted_pickle.loads(pickle.dumps(obj, protocol=protocol))
        assert repr(result) == repr(obj)


class _Evil:
    def __reduce__(self) -> tuple[object, ...]:
        return os.system, ("echo evil",)


class _EvilEval:
    def __reduce__(self) -> tuple[object, ...]:
        return eval, ("1 + 1",)


@pytest.mark.parametrize("obj", [_Evil(), _EvilEval(), [Path("x")], len, os.getcwd, print], ids=range(6))
def test_restricted_pickle_refuses_the_rest(obj: object, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "x.pkl"
    path.write_bytes(pickle.dumps(obj))
    with (
        open(path, "rb") as f,
        pytest.raises(DataFileError, match=r"x.pkl as pickled plain data: .* is not plain data"),
    ):
        restricted_pickle.load(f)
    assert "evil" not in capfd.readouterr().out


@pytest.mark.parametrize("data", [b"", b"abc", pickle.dumps([1, 2, 3])[:-4], b"\x80\x04.", b"\x80\xff"])
def test_restricted_pickle_broken(data: bytes) -> None:
    with pytest.raises(DataFileError, match="Cannot read my.pkl"):
        restricted_pickle.load(io.BytesIO(data), filename="my.pkl")


def test_why_not_writable(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert why_not_writable("name") is why_not_writable("a/b/name") is why_not_writable(str(tmp_path / "x")) is None
    assert why_not_writable("file/name") == f"{str(tmp_path / 'file')!r} is no folder"
    monkeypatch.setattr(os, "access", lambda path, mode: False)
    assert why_not_writable("a/name") == f"no permission to write in the folder {str(tmp_path)!r}"
