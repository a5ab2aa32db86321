"""
Files: reading plain or compressed text, and writing such that a file is whole or not there.
"""

from __future__ import annotations

import contextlib
import errno
import gzip
import io
import os
import tempfile
import zlib
from collections.abc import Callable, Iterator
from typing import IO, Any

from returnn.errors import DataFileError
from returnn.util.bounded_read import read_all
from returnn.util.leftovers import hold, remove_leftovers

__all__ = [
    "open_text",
    "open_binary",
    "read_text",
    "atomic_write",
    "fsync_dir",
    "maybe_make_dirs",
    "why_not_writable",
    "touch_file",
    "is_same_file_content_meta",
]


def open_binary(path: str, *, cached: Callable[[str], str] | None = None) -> IO[bytes]:
    """
    :param path: plain file, or gzip file if the name ends with ``.gz``
    :param cached: gives the name of a local copy, e.g. :func:`returnn.util.cache_manager.cf`
    :raises DataFileError: no such file, or it cannot be opened
    """
    if cached is not None:
        path = cached(path)
    try:
        if path.endswith(".gz"):
            return gzip.open(path, "rb")  # type: ignore[return-value]
        return open(path, "rb")
    except OSError as exc:
        raise DataFileError(f"Cannot open file {path!r}: {exc.strerror or exc}. Check the path.") from exc


def open_text(
    path: str, *, encoding: str = "utf8", errors: str = "strict", cached: Callable[[str], str] | None = None
) -> io.TextIOWrapper:
    """
    :param path: plain text file, or gzip file if the name ends with ``.gz``
    :param encoding: of the text
    :param errors: as for :func:`open`
    :param cached: see :func:`open_binary`
    :raises DataFileError: no such file, or it cannot be opened
    """
    return io.TextIOWrapper(
        open_binary(path, cached=cached),
        encoding=encoding,
        errors=errors,  # type: ignore[arg-type]
    )


def read_text(path: str) -> str:
    """
    :param path: as for :func:`open_binary`
    :return: the whole text, without byte order mark
    :raises DataFileError: no such file, it cannot be read (e.g. truncated gzip), or it is not UTF-8
    """
    with open_binary(path) as file:
        try:
            data = (
                read_all(file, packed_bytes=os.path.getsize(path), filename=path)
                if path.endswith(".gz")
                else file.read()
            )
        except DataFileError:
            raise
        except (OSError, EOFError, zlib.error) as exc:
            raise DataFileError(f"Cannot read {path!r}: {type(exc).__name__}: {exc}.") from exc
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as exc:
        line = data.count(b"\n", 0, exc.start) + 1
        raise DataFileError(
            f"{path}, line {line}: the text is not UTF-8: {exc.reason}. Convert the file to UTF-8."
        ) from exc


@contextlib.contextmanager
def atomic_write(
    path: str, mode: str = "w", *, encoding: str | None = None, newline: str | None = None
) -> Iterator[IO[Any]]:
    """
    Write a file under a temporary name in the same folder, flush it to disk, and rename it when the block ends.
    An exception in the block leaves the old file (if any) and nothing else.

    :param path: the final name. A symlink is followed, so that the link stays
    :param mode: "w" or "wb"
    :param encoding: of text, default UTF-8
    :param newline: as for :func:`open`
    :raises DataFileError: it cannot be written: no permission, no folder, full disk. Other errors of the block pass
    """
    if mode not in ("w", "wb"):
        raise ValueError(f"atomic_write: expected mode 'w' or 'wb', got {mode!r}")
    path = os.path.realpath(path)
    folder, name = os.path.split(path)
    try:
        remove_leftovers(path)
        fd, tmp_path = tempfile.mkstemp(prefix=f".{name}.{os.getpid()}-", suffix=".tmp", dir=folder)
        hold(fd)
    except OSError as exc:
        raise _write_error(path, exc) from exc
    in_block = False
    try:
        if mode == "w":
            file: IO[Any] = os.fdopen(fd, mode, encoding=encoding or "utf8", newline=newline)
        else:
            file = os.fdopen(fd, mode)
        with file:
            in_block = True
            yield file
            in_block = False
            file.flush()
            os.fsync(file.fileno())
        # mkstemp makes it private; use the mode which open() would have given.
        os.chmod(tmp_path, _mode_of(path))
        os.replace(tmp_path, path)
    except BaseException as exc:
        with contextlib.suppress(OSError):
            os.unlink(tmp_path)
        # Reading in the block may fail, too, but not for these reasons.
        if isinstance(exc, OSError) and (not in_block or exc.errno in _NO_SPACE):
            raise _write_error(path, exc) from exc
        raise
    fsync_dir(folder)


#: Why only writing fails: full disk, quota, limit of the file size.
_NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


def _write_error(path: str, exc: OSError) -> DataFileError:
    """:return: for the user"""
    folder = os.path.dirname(path)
    problem = exc.strerror or str(exc)
    if not os.path.isdir(folder):
        todo = f"The folder {folder!r} does not exist: create it, or choose another place."
    elif exc.errno in _NO_SPACE:
        todo = "Check the free space of the disk and quotas."
    else:
        todo = "Check the permissions of its folder, or choose another place."
    kept = " The old file is unchanged." if os.path.exists(path) else ""
    return DataFileError(f"Cannot write {path!r}: {problem}.{kept} {todo}")


def _mode_of(path: str) -> int:
    """:return: permissions of the existing file, or of a new one"""
    try:
        return os.stat(path).st_mode & 0o777
    except OSError:
        umask = os.umask(0)
        os.umask(umask)
        return 0o666 & ~umask


def fsync_dir(folder: str) -> None:
    """
    Flush the directory entries to disk, such that a rename survives a power loss.

    :param folder: "" for the current one. File systems without that operation are fine
    """
    with contextlib.suppress(OSError):
        fd = os.open(folder or ".", os.O_RDONLY)
        try:
            os.fsync(fd)
        finally:
            os.close(fd)


def why_not_writable(filename: str) -> str | None:
    """
    :param filename: of a file that will be written later; its folder will be created if needed
    :return: what prevents that, or None if nothing is known that does
    """
    folder = os.path.dirname(os.path.realpath(filename))
    while not os.path.lexists(folder):
        folder = os.path.dirname(folder)
    if not os.path.isdir(folder):
        return f"{folder!r} is no folder"
    if not os.access(folder, os.W_OK | os.X_OK):
        return f"no permission to write in the folder {folder!r}"
    return None


def maybe_make_dirs(dirname: str) -> None:
    """
    :param dirname: created with its parents if it does not exist; another process may do the same at the same time
    """
    if dirname:
        os.makedirs(dirname, exist_ok=True)


def touch_file(filename: str) -> None:
    """:param filename: created if it does not exist; gets the current time as modification time"""
    with open(filename, "a"):
        os.utime(filename, None)


def is_same_file_content_meta(a: str, b: str) -> bool:
    """:return: whether both files exist with equal size and equal modification time (what :func:`shutil.copy2` keeps)"""
    try:
        stat_a, stat_b = os.stat(a), os.stat(b)
    except OSError:
        return False
    # Some file systems keep only microseconds or less.
    return stat_a.st_size == stat_b.st_size and abs(stat_a.st_mtime - stat_b.st_mtime) < 1e-3
