"""
Local copies of data files, for datasets on slow network storage: markers in dataset options, and the cache itself.

Layout below the cache folder: ``<absolute path of the source>``, beside it ``.returnn-info`` (json, modification time of
the source), and during a copy ``.returnn-lock`` and ``.copy``. The folder can be shared by several processes and users'
versions of this program: a file in use has its modification time refreshed, which protects it from being cleaned up.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import inspect
import json
import logging
import os
import shutil
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from returnn._state import find_global_config, state
from returnn.errors import DataFileError, OptionError
from returnn.util.fs import atomic_write, fsync_dir
from returnn.util.lock_file import LockFile
from returnn.util.log_levels import V3, V4
from returnn.util.numbers import human_bytes_size
from returnn.util.temp_dirs import expand_env_vars

__all__ = ["FileCache", "CachedFile", "CleanupResult", "get_instance", "handle_cached_files"]

_logger = logging.getLogger("returnn.util.file_cache")

_INFO_POSTFIX = ".returnn-info"
_LOCK_POSTFIX = ".returnn-lock"
_COPY_POSTFIX = ".copy"
_FULL_CLEANUP_MARKER = ".recent_full_cleanup"
# The copying process touches its lock; without that for so long, it is gone.
_LOCK_TIMEOUT_SECS = 20.0
# A file touched within this time is in use by somebody.
_IN_USE_SECS = 10.0
# Often enough for _IN_USE_SECS, also on a busy machine.
_TOUCH_INTERVAL_SECS = 2.0
_FULL_CLEANUP_INTERVAL_SECS = 600.0
_SECS_PER_DAY = 86400.0
_BLOCK_BYTES = 16 << 20


@dataclasses.dataclass(frozen=True)
class CachedFile:
    """Marks a file name anywhere in dataset options: it is replaced by the name of a local copy."""

    filename: str


@dataclasses.dataclass(frozen=True)
class CleanupResult:
    """What a clean-up did."""

    #: bytes that were freed
    freed: int
    #: why it ended early, None if it did not
    abort_reason: str | None = None


class FileCache:
    """Copies files into the cache folder, keeps those in use alive, and deletes old ones when space is needed."""

    def __init__(
        self,
        *,
        cache_directory: str = "$TMPDIR/$USER/returnn/file_cache",
        cleanup_files_always_older_than_days: float = 31.0,
        cleanup_files_wanted_older_than_days: float = 1.0,
        cleanup_disk_usage_wanted_free_ratio: float = 0.2,
        cleanup_disk_usage_wanted_multiplier: float = 2.0,
        num_tries: int = 3,
    ) -> None:
        """
        :param cache_directory: may use environment variables
        :param cleanup_files_always_older_than_days: a clean-up deletes files not used for so long in any case
        :param cleanup_files_wanted_older_than_days: files not used for so long are deleted to reach the wanted free space
        :param cleanup_disk_usage_wanted_free_ratio: wanted free space, as part of the disk
        :param cleanup_disk_usage_wanted_multiplier: wanted free space, as multiple of what is needed now
        :param num_tries: how often a copy is tried when the disk is full
        """
        self.cache_directory = expand_env_vars(cache_directory)
        self._always_older_secs = cleanup_files_always_older_than_days * _SECS_PER_DAY
        self._wanted_older_secs = cleanup_files_wanted_older_than_days * _SECS_PER_DAY
        self._wanted_free_ratio = cleanup_disk_usage_wanted_free_ratio
        self._wanted_multiplier = cleanup_disk_usage_wanted_multiplier
        self._num_tries = num_tries
        self._toucher = _Toucher()

    # --- use

    def get_file(self, src_filename: str) -> str:
        """
        :param src_filename: existing file
        :return: local copy, which stays until :func:`release_files`
        :raises DataFileError: (an OSError) no such file, or the copy failed, e.g. no space can be freed
        """
        src_filename = os.path.abspath(src_filename)
        for attempt in range(1, self._num_tries + 1):
            try:
                return self._get_file(src_filename)
            except DataFileError:
                raise
            except OSError as exc:
                if exc.errno != errno.ENOSPC or attempt == self._num_tries:
                    error = DataFileError(
                        f"FileCache: cannot copy {src_filename!r} to {self.cache_directory!r}: {exc}. Set another "
                        "cache_directory in file_cache_opts, or do not use CachedFile for this file."
                    )
                    error.errno = exc.errno
                    raise error from exc
                _logger.log(V3, "FileCache: %s while copying %s, try again", exc.strerror, src_filename)
                # Somebody else filled the space which we had freed: let them finish.
                time.sleep(1.0)
        raise AssertionError("unreachable: the last attempt returns or raises")

    def release_files(self, filenames: str | Iterable[str]) -> None:
        """
        :param filenames: what :func:`get_file` returned; they may be cleaned up from now on
        """
        for filename in [filenames] if isinstance(filenames, str) else filenames:
            self._toucher.release(filename)

    @contextlib.contextmanager
    def files_ctx(self, src_filenames: Iterable[str]) -> Iterator[list[str]]:
        """
        :param src_filenames: existing files
        :return: yields the copies, and releases them at the end, also if not all could be made
        """
        copies: list[str] = []
        try:
            for filename in src_filenames:
                copies.append(self.get_file(filename))
            yield copies
        finally:
            self.release_files(copies)

    def handle_cached_files_in_config(self, config: Any) -> tuple[Any, list[str]]:
        """
        :param config: dataset options: nested dicts, lists and tuples. Any: and whatever they contain
        :return: the same with each :class:`CachedFile` replaced by its copy; and the copies, to be released later.
            If one cannot be made, none stays in use
        """
        copies: list[str] = []
        try:
            return self._replace(config, copies), copies
        except BaseException:
            self.release_files(copies)
            raise

    def _replace(self, obj: Any, copies: list[str]) -> Any:
        if isinstance(obj, CachedFile):
            copies.append(self.get_file(obj.filename))
            return copies[-1]
        if isinstance(obj, dict):
            return type(obj)((key, self._replace(value, copies)) for key, value in obj.items())
        if isinstance(obj, list):
            return [self._replace(item, copies) for item in obj]
        if type(obj) is tuple:
            return tuple([self._replace(item, copies) for item in obj])
        if isinstance(obj, tuple):  # named
            return type(obj)(*[self._replace(item, copies) for item in obj])
        return obj

    # --- copy

    def _get_file(self, src: str) -> str:
        dst = self.cache_directory + src
        # In use from now on, so that no clean-up takes it between the check and the use.
        self._toucher.acquire(dst)
        try:
            if self._is_valid(src, dst):
                _logger.log(V4, "FileCache: using existing file %s", dst)
                return dst
            folder, name = os.path.split(dst)
            os.makedirs(folder, exist_ok=True)
            with LockFile(folder, name=name + _LOCK_POSTFIX, lock_timeout=_LOCK_TIMEOUT_SECS) as lock:
                # Kept fresh, also while a slow read blocks.
                self._toucher.acquire(lock.lockfile)
                try:
                    if not self._is_valid(src, dst):
                        self._copy(src, dst)
                finally:
                    self._toucher.release(lock.lockfile)
            return dst
        except BaseException:
            self._toucher.release(dst)
            raise

    @staticmethod
    def _is_valid(src: str, dst: str) -> bool:
        """:return: whether the copy is there and current. DataFileError if there is no source"""
        try:
            src_stat = os.stat(src)
        except OSError as exc:
            raise DataFileError(f"FileCache: cannot read {src!r}: {exc.strerror}. Check the path.") from exc
        try:
            dst_stat = os.stat(dst)
            with open(dst + _INFO_POSTFIX, encoding="utf8") as f:
                known_mtime_ns = json.load(f)["mtime_ns"]
        except (OSError, ValueError, KeyError, TypeError, RecursionError):
            return False
        return dst_stat.st_size == src_stat.st_size and src_stat.st_mtime_ns <= known_mtime_ns

    def _copy(self, src: str, dst: str) -> None:
        tmp = dst + _COPY_POSTFIX
        for filename in (dst, dst + _INFO_POSTFIX, tmp):
            with contextlib.suppress(FileNotFoundError):
                os.remove(filename)
        src_stat = os.stat(src)
        self.cleanup(need_at_least_free_space_size=src_stat.st_size)
        _logger.log(V3, "FileCache: Copy file %s to cache", src)
        try:
            with open(src, "rb") as f_src, open(tmp, "wb") as f_dst:
                # Reserve the space, so that a full disk is noticed at once, not after hours.
                if hasattr(os, "posix_fallocate") and src_stat.st_size:
                    os.posix_fallocate(f_dst.fileno(), 0, src_stat.st_size)
                while block := f_src.read(_BLOCK_BYTES):
                    f_dst.write(block)
                f_dst.truncate()
                f_dst.flush()
                os.fsync(f_dst.fileno())
            with atomic_write(dst + _INFO_POSTFIX) as f:
                json.dump({"mtime_ns": src_stat.st_mtime_ns}, f)
            os.replace(tmp, dst)
            fsync_dir(os.path.dirname(dst))
        except BaseException:
            for filename in (tmp, dst + _INFO_POSTFIX):
                with contextlib.suppress(FileNotFoundError):
                    os.remove(filename)
            raise

    # --- clean-up

    def cleanup(self, *, need_at_least_free_space_size: int = 0) -> CleanupResult:
        """
        Delete unused files, the least recently used first.

        :param need_at_least_free_space_size: in bytes
        :return: what was done
        :raises OSError: the needed space cannot be freed (ENOSPC)
        """
        os.makedirs(self.cache_directory, exist_ok=True)
        usage = shutil.disk_usage(self.cache_directory)
        need = need_at_least_free_space_size
        wanted = max(int(self._wanted_multiplier * need), int(self._wanted_free_ratio * usage.total), need)
        marker = os.path.join(self.cache_directory, _FULL_CLEANUP_MARKER)
        if wanted <= usage.free and _age_secs(marker) < _FULL_CLEANUP_INTERVAL_SECS:
            return CleanupResult(0, "wanted free space is there, and there was a full cleanup recently")
        files = self._list_files()
        free, freed = usage.free, 0
        abort_reason = None
        for mtime, filename in files:
            age = time.time() - mtime
            if age <= self._always_older_secs:
                if free >= wanted:
                    abort_reason = "wanted free space reached"
                    break
                if free >= need and age <= self._wanted_older_secs:
                    abort_reason = "remaining files are too recent to delete them for the wanted free space"
                    break
                if age <= _IN_USE_SECS:
                    abort_reason = "remaining files are in use"
                    break
            size = self._delete(filename)
            free += size
            freed += size
        if free < need:
            raise OSError(
                errno.ENOSPC,
                f"FileCache: We cannot free enough space on {self.cache_directory}: need {human_bytes_size(need)},"
                f" {human_bytes_size(free)} is free, and {human_bytes_size(usage.total)} the size of the disk",
            )
        self._remove_empty_dirs()
        with contextlib.suppress(OSError), open(marker, "w"):
            os.utime(marker)
        return CleanupResult(freed, abort_reason)

    def _list_files(self) -> list[tuple[float, str]]:
        """:return: last use and name of each copy (also of copies that a dead process left), oldest first"""
        files = []
        for folder, _, names in os.walk(self.cache_directory):
            for name in names:
                if name.endswith((_INFO_POSTFIX, _LOCK_POSTFIX)) or name == _FULL_CLEANUP_MARKER:
                    continue
                path = os.path.join(folder, name)
                with contextlib.suppress(OSError):  # somebody else deleted it
                    files.append((os.stat(path).st_mtime, path))
        files.sort()
        return files

    @staticmethod
    def _delete(filename: str) -> int:
        """:return: number of bytes freed; 0 if somebody else works on it"""
        target = filename.removesuffix(_COPY_POSTFIX)
        folder, name = os.path.split(target)
        lock = LockFile(folder, name=name + _LOCK_POSTFIX, lock_timeout=_LOCK_TIMEOUT_SECS)
        if not lock.try_lock():
            return 0
        try:
            if _age_secs(filename) <= _IN_USE_SECS:  # used since we listed it
                return 0
            size = os.path.getsize(filename)
            _logger.log(V4, "FileCache: Delete file %s, size %s", filename, human_bytes_size(size))
            os.remove(filename)
            if filename == target:
                with contextlib.suppress(FileNotFoundError):
                    os.remove(target + _INFO_POSTFIX)
            return size
        except FileNotFoundError:
            return 0
        finally:
            lock.unlock()

    def _remove_empty_dirs(self) -> None:
        for folder, _, _ in os.walk(self.cache_directory, topdown=False):
            if folder != self.cache_directory and _age_secs(folder) > _IN_USE_SECS:
                with contextlib.suppress(OSError):  # not empty
                    os.rmdir(folder)


def _age_secs(filename: str) -> float:
    """:return: time since the modification time; infinite if there is no such file"""
    try:
        return time.time() - os.stat(filename).st_mtime
    except OSError:
        return float("inf")


class _Toucher:
    """Refreshes the modification time of files in use, in a thread that only lives while there are any."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._counts: Counter[str] = Counter()
        self._thread: threading.Thread | None = None
        self._wake_up = threading.Event()

    def acquire(self, filename: str) -> None:
        with self._lock:
            self._counts[filename] += 1
            self._touch(filename)
            # After a fork the thread is gone.
            if self._thread is None or not self._thread.is_alive():
                self._wake_up = threading.Event()
                self._thread = threading.Thread(target=self._run, name="FileCache toucher", daemon=True)
                self._thread.start()

    def release(self, filename: str) -> None:
        with self._lock:
            if filename not in self._counts:
                raise ValueError(f"FileCache: {filename!r} is not in use, cannot release it")
            self._counts[filename] -= 1
            if not self._counts[filename]:
                del self._counts[filename]
            if not self._counts:
                self._thread = None
                self._wake_up.set()

    @staticmethod
    def _touch(filename: str) -> None:
        for path in (filename, filename + _INFO_POSTFIX):
            with contextlib.suppress(OSError):  # not there yet
                os.utime(path)

    def _run(self) -> None:
        wake_up = self._wake_up
        while not wake_up.wait(_TOUCH_INTERVAL_SECS):
            with self._lock:
                filenames = list(self._counts)
            for filename in filenames:
                self._touch(filename)

    def __getstate__(self) -> Mapping[str, Any]:
        # A copy in another process uses nothing yet.
        return {}

    def __setstate__(self, _state: Mapping[str, Any]) -> None:
        _Toucher.__init__(self)


def get_instance(config: Any = None) -> FileCache:
    """
    :param config: Config (Any: a higher layer) or dict, with the option ``file_cache_opts``: arguments of
        :class:`FileCache`. Default is the global config
    :return: one shared cache per process and options
    """
    config = config if config is not None else find_global_config()
    opts: Any = None
    if config is not None:
        opts = (
            config.typed_value("file_cache_opts") if hasattr(config, "typed_value") else config.get("file_cache_opts")
        )
    key = json.dumps(opts or {}, sort_keys=True)
    cache = state.file_caches.get(key)
    if cache is None:
        try:
            cache = FileCache(**(opts or {}))
        except TypeError as exc:
            known = [name for name in inspect.signature(FileCache).parameters if name != "self"]
            raise OptionError(
                "file_cache_opts", expected=f"dict with some of {', '.join(known)}", got=opts, where=str(exc)
            ) from exc
        cache = state.file_caches.setdefault(key, cache)
    return cache  # type: ignore[no-any-return]


def handle_cached_files(obj: Any, config: Any = None) -> tuple[Any, FileCache | None, list[str]]:
    """
    :param obj: dataset options
    :param config: see :func:`get_instance`
    :return: options with copies for each :class:`CachedFile`, the cache (None if there was no CachedFile), and the copies
    """
    if not _contains_cached_file(obj):
        return obj, None, []
    cache = get_instance(config)
    replaced, copies = cache.handle_cached_files_in_config(obj)
    return replaced, cache, copies


def _contains_cached_file(obj: Any) -> bool:
    if isinstance(obj, dict):
        return any(_contains_cached_file(value) for value in obj.values())
    if isinstance(obj, (list, tuple)):
        return any(_contains_cached_file(item) for item in obj)
    return isinstance(obj, CachedFile)
