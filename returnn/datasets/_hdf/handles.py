"""A bounded number of open HDF files, reopened after a fork, closed when the owner goes away."""

from __future__ import annotations

import contextlib
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator

import h5py

from returnn.errors import DataFileError, describe

__all__ = ["HandleCache", "open_for_reading"]


def open_for_reading(filename: str) -> h5py.File:
    """
    :param filename: path
    :return: open file
    :raises DataFileError: if it does not exist, is no HDF file, or is broken; names the file
    """
    if not os.path.exists(filename):
        raise DataFileError(
            describe(f"HDF file {filename!r} does not exist", todo="Check the path in the option files")
        )
    if os.path.isdir(filename):
        raise DataFileError(describe(f"HDF file {filename!r} is a directory", todo="Give the path of a file"))
    try:
        return h5py.File(filename, "r")
    except OSError as exc:
        size = os.path.getsize(filename)
        if "truncated" in str(exc):
            what = f"HDF file {filename!r} is truncated, its size is {size} bytes ({exc})"
            todo = "It was copied or written only in part; copy or write it again"
        elif size == 0:
            what = f"HDF file {filename!r} is empty (0 bytes)"
            todo = "Its writer did not finish; write it again"
        else:
            what = f"Cannot open {filename!r} as HDF file ({exc})"
            todo = "Check that it is an HDF5 file, is readable, and was closed by its writer"
        raise DataFileError(describe(what, todo=todo)) from exc


class HandleCache:
    """Opens files on demand, keeps the most recently used ones open. Safe for threads and forked processes."""

    def __init__(self, max_open: int = 64):
        """
        :param max_open: number of files that stay open
        """
        self._max_open = max_open
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
        handle = open_for_reading(filename)
        self._handles[filename] = handle
        while len(self._handles) > self._max_open:
            _, oldest = self._handles.popitem(last=False)
            oldest.close()
        return handle

    def close(self) -> None:
        """Close all files. They are opened again when needed."""
        if self._pid != os.getpid():
            return
        with self._lock:
            handles, self._handles = self._handles, OrderedDict()
            for handle in handles.values():
                if handle.id.valid:
                    handle.close()
