"""
A file that HDF5 writes to, and in which writing never fails for HDF5.

When a write of its own drivers fails (disk full, quota, a lost network file system), HDF5 cannot close its objects any more: errors are
printed in destructors or get lost, and the process ends by a segmentation fault. So the error is kept here, what HDF5 still
writes goes to memory, and whoever owns the file asks with :meth:`ErrorKeepingFile.error` after each block.
"""

from __future__ import annotations

import contextlib
import os

from returnn.util.leftovers import hold

__all__ = ["ErrorKeepingFile"]


class ErrorKeepingFile:
    """Has the methods that the ``fileobj`` driver of h5py calls."""

    def __init__(self, filename: str, *, create: bool):
        """
        :param filename: of the file
        :param create: it must not exist; else it must
        :raises OSError: it cannot be opened for writing
        """
        flags = os.O_RDWR | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
        self._fd = os.open(filename, flags | (os.O_CREAT | os.O_EXCL if create else 0), 0o666)
        hold(self._fd)
        self._pos = 0
        self._size = os.fstat(self._fd).st_size
        # What could not be written: (position, bytes), in the order of the writes.
        self._unwritten: list[tuple[int, bytes]] = []
        #: the first error of a write; the content of the file is worthless then
        self.error: OSError | None = None

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """
        :param offset: new position
        :param whence: relative to what, as for files
        :return: new position
        """
        self._pos = offset + {os.SEEK_SET: 0, os.SEEK_CUR: self._pos, os.SEEK_END: self._size}[whence]
        return self._pos

    def tell(self) -> int:
        """:return: position"""
        return self._pos

    def read(self, size: int = -1) -> bytes:
        """
        :param size: number of bytes; negative: all that are left
        :return: at most so many
        """
        buffer = bytearray(size if size >= 0 else max(0, self._size - self._pos))
        return bytes(buffer[: self.readinto(memoryview(buffer))])

    def readinto(self, buffer: memoryview) -> int:
        """
        :param buffer: is filled
        :return: number of bytes
        """
        view = memoryview(buffer).cast("B")
        start, num_done = self._pos, 0
        with contextlib.suppress(OSError):  # HDF5 checks what it reads
            while num_done < len(view):
                data = os.pread(self._fd, len(view) - num_done, start + num_done)
                if not data:
                    break
                view[num_done : num_done + len(data)] = data
                num_done += len(data)
        for offset, data in self._unwritten:
            first, last = max(offset, start), min(offset + len(data), start + len(view))
            if first < last:
                view[first - start : last - start] = data[first - offset : last - offset]
                num_done = max(num_done, last - start)
        self._pos += num_done
        return num_done

    def write(self, data: bytes | memoryview) -> int:
        """
        :param data: to be written at the position
        :return: number of bytes, always all
        """
        view = memoryview(data).cast("B")
        num_done = 0
        if self.error is None:
            try:
                while num_done < len(view):
                    num_done += os.pwrite(self._fd, view[num_done:], self._pos + num_done)
            except OSError as exc:
                self.error = exc
        if num_done < len(view):
            self._unwritten.append((self._pos + num_done, bytes(view[num_done:])))
        self._pos += len(view)
        self._size = max(self._size, self._pos)
        return len(view)

    def truncate(self, size: int | None = None) -> int:
        """
        :param size: new one; None: the position
        :return: new size
        """
        size = self._pos if size is None else size
        if self.error is None:
            try:
                os.ftruncate(self._fd, size)
            except OSError as exc:
                self.error = exc
        self._size = size
        return size

    def flush(self) -> None:
        """Nothing is buffered here."""

    def sync(self) -> None:
        """Flush to disk; an error of that is kept, too: some file systems notice a full disk only then."""
        try:
            os.fsync(self._fd)
        except OSError as exc:
            self.error = self.error or exc

    def close(self) -> None:
        """Can be called repeatedly. Errors are kept."""
        fd, self._fd = self._fd, -1
        self._unwritten.clear()
        if fd >= 0:
            try:
                os.close(fd)
            except OSError as exc:
                self.error = self.error or exc
