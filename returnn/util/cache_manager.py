"""
Local copies of files on network storage: the external cache manager, or our own copies.
"""

from __future__ import annotations

import logging
import os
import shutil
import subprocess

from returnn._state import state
from returnn.util.fs import fsync_dir, is_same_file_content_meta, maybe_make_dirs
from returnn.util.lock_file import LockFile
from returnn.util.log_levels import V2, V3
from returnn.util.temp_dirs import get_temp_dir

__all__ = ["cf", "copy_to_local"]

_logger = logging.getLogger("returnn.util.cache_manager")
# A copy in progress touches the lock after each block; without that for so long, its process is gone.
_LOCK_TIMEOUT_SECS = 120.0
_BLOCK_BYTES = 64 << 20
# Leave that much of the disk to others.
_MIN_FREE_RATIO = 0.02


def cf(filename: str) -> str:
    """
    A name under which the file can be read fast. Results are remembered per process.

    1. If the command ``cf`` (the i6 cache manager) exists, it decides.
    2. Else, or if that fails: with the environment variable ``RETURNN_CF_COPY=1`` a copy below
       :func:`returnn.util.temp_dirs.get_temp_dir` is made, or reused if size and modification time are those of the source.
    3. Else the file itself. (Mini-RETURNN always copied, which costs time and space where the file is local anyway.)

    With the environment variable ``DEBUG`` set, always the file itself.

    :param filename: must exist
    :return: a name of a file with the same content; the name itself if anything goes wrong
    """
    if os.environ.get("DEBUG"):
        return filename
    known = state.cached_files.get(filename)
    if known is not None and os.path.exists(known):
        return known
    result = _external(filename)
    if result is None and os.environ.get("RETURNN_CF_COPY", "0") not in ("", "0"):
        try:
            result = copy_to_local(filename, get_temp_dir())
        except OSError as exc:
            _logger.log(V2, "internal cache manager: cannot copy %s (%s), using the file itself", filename, exc)
    state.cached_files[filename] = result or filename
    return state.cached_files[filename]


def _external(filename: str) -> str | None:
    command = shutil.which("cf")
    if command is None:
        return None
    try:
        output = subprocess.run([command, filename], stdout=subprocess.PIPE, check=True, text=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        _logger.log(V3, "i6 cache manager: Error occurred, using internal cache manager")
        return None
    if not output or not os.path.exists(output):
        _logger.log(V3, "i6 cache manager: gave %r, which does not exist; using internal cache manager", output)
        return None
    return output


def copy_to_local(filename: str, cache_dir: str) -> str:
    """
    Copy a file, unless the copy is there already. Safe against other processes doing the same.

    :param filename: source
    :param cache_dir: the target is its absolute real path below this folder
    :return: the target
    :raises OSError: no such file, not enough space, not writable
    """
    source = os.path.realpath(filename)
    target = cache_dir + source
    if is_same_file_content_meta(source, target):
        return target
    folder, name = os.path.split(target)
    maybe_make_dirs(folder)
    with LockFile(folder, name=f".{name}.lock", lock_timeout=_LOCK_TIMEOUT_SECS) as lock:
        if is_same_file_content_meta(source, target):  # somebody else was faster
            return target
        size = os.path.getsize(source)
        usage = shutil.disk_usage(folder)
        if usage.free < size + usage.total * _MIN_FREE_RATIO:
            raise OSError(f"not enough space in {folder}: {usage.free} bytes free, {size} needed")
        _logger.log(V3, "internal cache manager, copy:\n%s to \n%s", source, target)
        tmp = os.path.join(folder, f".{name}.{os.getpid()}.copy")
        try:
            with open(source, "rb") as src, open(tmp, "wb") as dst:
                while block := src.read(_BLOCK_BYTES):
                    dst.write(block)
                    lock.refresh()
                dst.flush()
                os.fsync(dst.fileno())
            shutil.copystat(source, tmp)
            os.replace(tmp, target)
        except BaseException:
            if os.path.exists(tmp):
                os.unlink(tmp)
            raise
        fsync_dir(folder)
    return target
