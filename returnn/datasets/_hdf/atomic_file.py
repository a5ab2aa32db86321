"""An HDF file that is written beside its target and appears there only when it is whole."""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import weakref
from collections.abc import Callable

import h5py

from returnn.datasets._hdf.write_file import ErrorKeepingFile
from returnn.errors import DataFileError, describe
from returnn.util.fs import fsync_dir
from returnn.util.leftovers import remove_leftovers

__all__ = ["AtomicHdfFile"]


class AtomicHdfFile:
    """
    Temporary file ``.<name>.<pid>.tmp`` in the directory of the target.
    Without :func:`publish` it is removed: by :func:`discard`, when the object goes away, or at the exit of the process; after
    kill -9 by the next one who writes to the target.
    """

    def __init__(self, filename: str, *, extend: bool = False):
        """
        :param filename: target
        :param extend: start with a copy of the existing target
        :raises DataFileError: if the directory does not exist or is not writable, or the file to extend is broken
        """
        # A symlink to the target stays; the file behind it is replaced.
        self.filename = os.path.realpath(filename)
        directory, name = os.path.split(self.filename)
        remove_leftovers(self.filename)
        self.tmp_filename = os.path.join(directory, f".{name}.{os.getpid()}.tmp")
        number = 1
        while os.path.exists(self.tmp_filename) and number < 1000:
            # Two writers for one target in this process, or a dead process with the same id.
            self.tmp_filename = os.path.join(directory, f".{name}.{os.getpid()}-{number}.tmp")
            number += 1
        raw: ErrorKeepingFile | None = None
        try:
            if extend:
                shutil.copyfile(self.filename, self.tmp_filename)
            raw = ErrorKeepingFile(self.tmp_filename, create=not extend)
            self.file = h5py.File(raw, "r+" if extend else "w")
        except OSError as exc:
            if raw is not None:
                raw.close()
            with contextlib.suppress(OSError):
                os.unlink(self.tmp_filename)
            if not os.path.isdir(directory):
                todo = "Create the directory first"
            elif extend:
                todo = "Check that the existing file is a whole HDF file"
            else:
                todo = "Check the permissions and the free space of the directory"
            raise DataFileError(
                describe(f"Cannot write HDF file {filename!r} ({type(exc).__name__}: {exc})", todo=todo)
            ) from exc
        self._raw = raw
        #: Gives the text to show if the object goes away without publish or discard. One entry at most; no reference to us.
        self.loss_warning: list[Callable[[], str]] = []
        self._finalizer = weakref.finalize(
            self, _discard, self.file, self._raw, self.tmp_filename, os.getpid(), self.loss_warning
        )

    @property
    def is_open(self) -> bool:
        """:return: whether it is neither published nor discarded"""
        return self._finalizer.alive

    def check(self) -> None:
        """
        To be called after each block of data: what HDF5 writes fails only here.

        :raises DataFileError: it could not be written, e.g. the disk is full. The temporary file is removed
        """
        exc = self._raw.error
        if exc is not None:
            self.discard()
            raise self.error_of(exc) from exc

    def publish(self) -> None:
        """
        Close it, flush it to disk, and give it the target's name. An existing target is replaced.

        :raises DataFileError: it could not be written; the target is as before, and the temporary file is removed
        """
        try:
            self.file.close()
            self._raw.sync()
            self._raw.close()
            if self._raw.error is not None:
                raise self._raw.error
            os.replace(self.tmp_filename, self.filename)
        except (OSError, RuntimeError, ValueError) as exc:
            self.discard()
            raise self.error_of(exc) from exc
        fsync_dir(os.path.dirname(self.filename))
        self._finalizer.detach()

    def error_of(self, exc: Exception) -> DataFileError:
        """
        :param exc: why the file cannot be written
        :return: for the user
        """
        directory = os.path.dirname(self.filename)
        reason = (exc.strerror if isinstance(exc, OSError) else None) or (str(exc).splitlines() or [""])[0]
        todo = "Check the free space of the disk, and quotas"
        if not os.path.isdir(directory):
            todo = f"The directory {directory!r} is gone: create it"
        kept = "the old file is unchanged" if os.path.exists(self.filename) else "no file was left"
        return DataFileError(
            describe(f"Cannot write HDF file {self.filename!r} ({type(exc).__name__}: {reason}), {kept}", todo=todo)
        )

    def discard(self) -> None:
        """Remove the temporary file. No-op after publish."""
        self.loss_warning.clear()
        self._finalizer()


def _discard(
    h5_file: h5py.File, raw: ErrorKeepingFile, tmp_filename: str, pid: int, loss_warning: list[Callable[[], str]]
) -> None:
    if os.getpid() != pid:
        # A forked child: the file belongs to the parent.
        return
    for get_text in loss_warning:
        print(get_text(), file=sys.stderr)
    with contextlib.suppress(OSError, RuntimeError, ValueError):
        if h5_file.id.valid:
            h5_file.close()
    raw.close()
    with contextlib.suppress(OSError):
        os.unlink(tmp_filename)
