"""A bounded number of open HDF files, reopened after a fork, closed when the owner goes away."""

from __future__ import annotations

import contextlib
import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator

import h5py
from h5py import h5f, h5p

from returnn.datasets._hdf.outside_links import check_links
from returnn.errors import DataFileError, describe

__all__ = ["HandleCache", "open_for_reading"]


def open_for_reading(filename: str) -> h5py.File:
    """
    :param filename: path
    :return: open file
    :raises DataFileError: if it does not exist, is no HDF file, is broken, or refers to files elsewhere; names the file
    """
    h5_file = _open(filename)
    try:
        check_links(h5_file, filename)
    except DataFileError:
        h5_file.close()
        raise
    return h5_file


def _open(filename: str, access: h5p.PropFAID | None = None) -> h5py.File:
    """
    As :func:`open_for_reading`, but what it refers to is not checked.

    :param access: of another file, opened in this way: that is quicker
    """
    try:
        if access is None:
            return h5py.File(filename, "r")
        return h5py.File(h5f.open(os.fsencode(filename), h5f.ACC_RDONLY, access))
    except (OSError, ValueError) as exc:  # ValueError: a NUL in the name
        raise _why_not_opened(filename, exc) from exc


def _why_not_opened(filename: str, exc: OSError | ValueError) -> DataFileError:
    if not os.path.exists(filename):
        return DataFileError(
            describe(f"HDF file {filename!r} does not exist", todo="Check the path in the option files")
        )
    if os.path.isdir(filename):
        return DataFileError(describe(f"HDF file {filename!r} is a directory", todo="Give the path of a file"))
    size = os.path.getsize(filename)
    code = getattr(exc, "errno", None)
    if code == errno.EMFILE:
        what = f"Cannot open HDF file {filename!r}: this process has too many open files ({exc})"
        todo = "Raise the limit (ulimit -n)"
    elif code == errno.EAGAIN or "unable to lock file" in str(exc):
        what = f"Cannot open HDF file {filename!r}: another process has it open for writing ({exc})"
        todo = "Wait until that one has closed it"
    elif "truncated" in str(exc):
        what = f"HDF file {filename!r} is truncated, its size is {size} bytes ({exc})"
        todo = "It was copied or written only in part; copy or write it again"
    elif size == 0:
        what = f"HDF file {filename!r} is empty (0 bytes)"
        todo = "Its writer did not finish; write it again"
    else:
        what = f"Cannot open {filename!r} as HDF file ({exc})"
        todo = "Check that it is an HDF5 file, is readable, and was closed by its writer"
    return DataFileError(describe(what, todo=todo))


def _check_links_of(filename: str, h5_file: h5py.File) -> None:
    check_links(h5_file, filename)


class HandleCache:
    """Opens files on demand, keeps the most recently used ones open. Safe for threads and forked processes."""

    def __init__(self, max_open: int = 64, *, on_open: Callable[[str, h5py.File], None] | None = None):
        """
        :param max_open: number of files that stay open
        :param on_open: called with the name and the file after each opening, in place of the check whether the file refers to
            files elsewhere (check_links); may raise
        """
        self._max_open = max_open
        self._on_open = on_open or _check_links_of
        self._access: h5p.PropFAID | None = None
        self._pid = os.getpid()
        self._lock = threading.RLock()
        self._handles: OrderedDict[str, h5py.File] = OrderedDict()

    @contextlib.contextmanager
    def use(self, filename: str) -> Iterator[h5py.File]:
        """
        :param filename: path
        :return: context with the open file; no other thread closes it meanwhile
        """
        self._check_process()
        with self._lock:
            yield self._get(filename)

    def _check_process(self) -> None:
        if self._pid != os.getpid():
            # After a fork: the handles and a maybe locked lock belong to the parent.
            self._pid = os.getpid()
            self._lock = threading.RLock()
            self._handles = OrderedDict()

    def _get(self, filename: str) -> h5py.File:
        handle = self._handles.get(filename)
        if handle is not None and handle.id.valid:
            self._handles.move_to_end(filename)
            return handle
        try:
            handle = _open(filename, self._access)
        except DataFileError as exc:
            if getattr(exc.__cause__, "errno", None) != errno.EMFILE or not self._handles:
                raise
            # The limit of this process is lower than what we wanted to keep open.
            self._max_open = max(1, len(self._handles) // 2)
            self._close_oldest()
            handle = _open(filename, self._access)
        try:
            self._on_open(filename, handle)
        except BaseException:
            handle.close()
            raise
        self._handles[filename] = handle
        if self._access is None:
            self._access = handle.id.get_access_plist()
        self._close_oldest()
        return handle

    def _close_oldest(self) -> None:
        while len(self._handles) > self._max_open:
            _, oldest = self._handles.popitem(last=False)
            oldest.close()

    def open_names(self) -> set[str]:
        """:return: names of the files that are open"""
        self._check_process()
        with self._lock:
            return set(self._handles)

    def close(self) -> None:
        """Close all files. They are opened again when needed."""
        if self._pid != os.getpid():
            return
        with self._lock:
            handles, self._handles = self._handles, OrderedDict()
            for handle in handles.values():
                if handle.id.valid:
                    handle.close()
