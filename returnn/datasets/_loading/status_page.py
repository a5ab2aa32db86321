"""
What a data process is doing, on a page of memory which its parent can read at any time: while the process hangs, and
after it was killed.

Writing costs about a microsecond and never waits. The page has no name in the file system, and is gone with both processes.
"""

from __future__ import annotations

import contextlib
import dataclasses
import mmap
import os
import struct
import sys
import sysconfig
import threading
import time
from multiprocessing import reduction
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any

from returnn._state import state
from returnn.datasets._loading.shared_slots import CAN_SHARE

__all__ = ["StatusPage", "StatusView", "Status", "Page", "current_page", "knows_tags_before_data", "start_page"]

_SIZE = 4096
#: Time of the last change (CLOCK_MONOTONIC, the same for all processes), epoch (-1: none), first and last position of
#: what is read (-1: none), whether the tag is the one of that position (else of the sequence before).
_HEAD = struct.Struct("<dqqq?")
#: Parts of it which are written for each sequence.
_TIME = struct.Struct("<d")
_POSITIONS = struct.Struct("<qq?")
_POSITIONS_AT = 16
_IS_TAG_AT = 32
#: Texts: their place, and the room for them.
_ACTIVITY, _TAG, _PLACE, _NOTE = (64, 190), (256, 510), (768, 1020), (1792, 2300)
_LEN = struct.Struct("<H")
#: Where the process hangs is looked up after this time without progress.
_LOOK_SECS = 4.0
#: Classes whose get_tag looks into an index that is there before data is read, by the module of the method.
_MODULES_WITH_TAG_INDEX = frozenset(
    "returnn.datasets." + name
    for name in ("audio", "indexed", "cached", "_meta.by_seq_list", "_meta.concat_seqs", "_generating.static")
)
_LIBRARY_DIRS = tuple(
    os.path.abspath(path) + os.sep
    for path in {sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")}
)
_PACKAGE_DIR = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__)))) + os.sep


@dataclasses.dataclass(frozen=True)
class Status:
    """
    :param changed_at: time.monotonic() of the last progress
    :param epoch: None: none yet
    :param position: in the epoch of the dataset, of the (first) sequence that is being read; None: none
    :param last_position: of several sequences that are read at once
    :param tag: of the sequence at the position, or of the one read before it
    :param is_tag_of_position: which of the two
    :param activity: e.g. "reads the dataset"
    :param place: in the code; known after some seconds without progress
    :param note: what it waits for
    """

    changed_at: float
    epoch: int | None = None
    position: int | None = None
    last_position: int | None = None
    tag: str = ""
    is_tag_of_position: bool = False
    activity: str = ""
    place: str = ""
    note: str = ""

    def __str__(self) -> str:
        """:return: e.g. ``reading, epoch 3, sequence 'seq-5' (position 5), in decode (my.config:12)``"""
        parts = [self.activity] if self.activity else []
        if self.epoch is not None:
            parts.append(f"epoch {self.epoch}")
        if self.position is not None and self.last_position is not None and self.last_position > self.position:
            first = f" (the first is {self.tag!r})" if self.tag and self.is_tag_of_position else ""
            parts.append(f"sequences at positions {self.position} to {self.last_position}{first}")
        elif self.position is not None and self.tag and self.is_tag_of_position:
            parts.append(f"sequence {self.tag!r} (position {self.position})")
        elif self.position is not None:
            parts.append(f"position {self.position}" + (f", after sequence {self.tag!r}" if self.tag else ""))
        if self.place:
            parts.append(self.place)
        return ", ".join(parts)


class Page:
    """Does nothing: of processes whose status nobody reads."""

    def begin(self, activity: str, epoch: int | None = None) -> None:
        """:param activity: e.g. "reading". :param epoch: None: none"""

    def at(self, position: int, tag: str | None = None, last_position: int = -1) -> None:
        """
        A sequence is about to be read.

        :param position: in the epoch of the dataset
        :param tag: if known
        :param last_position: if several are read at once
        """

    def have_read(self, tag: str) -> None:
        """:param tag: of the sequence that was read"""

    def note(self, text: str) -> None:
        """:param text: what this process waits for; "": nothing any more. This is no progress"""


class StatusPage(Page):
    """The page of this process. Methods may be called by all threads."""

    def __init__(self) -> None:
        """:raises OSError: no memory. Only where CAN_SHARE"""
        self._fd = os.memfd_create("returnn-status", os.MFD_CLOEXEC)
        os.ftruncate(self._fd, _SIZE)
        self._map = mmap.mmap(self._fd, _SIZE)
        self._main_thread = threading.main_thread().ident
        _HEAD.pack_into(self._map, 0, time.monotonic(), -1, -1, -1, False)
        threading.Thread(target=self._look, name="status-page", daemon=True).start()

    def send(self, conn: Connection) -> None:
        """:param conn: to the parent, which makes a :class:`StatusView` of the message ("status", None)"""
        conn.send(("status", None))
        reduction.send_handle(conn, self._fd, os.getppid())
        os.close(self._fd)

    def begin(self, activity: str, epoch: int | None = None) -> None:
        """See :func:`Page.begin`."""
        self._put(_TAG, "")
        self._put(_NOTE, "")
        self._put(_ACTIVITY, activity)
        _HEAD.pack_into(self._map, 0, time.monotonic(), -1 if epoch is None else epoch, -1, -1, False)

    def at(self, position: int, tag: str | None = None, last_position: int = -1) -> None:
        """See :func:`Page.at`."""
        if tag is not None:
            self._put(_TAG, tag)
        _POSITIONS.pack_into(self._map, _POSITIONS_AT, position, last_position, tag is not None)
        _TIME.pack_into(self._map, 0, time.monotonic())

    def have_read(self, tag: str) -> None:
        """See :func:`Page.have_read`."""
        self._put(_TAG, tag)
        self._map[_IS_TAG_AT] = 1
        _TIME.pack_into(self._map, 0, time.monotonic())

    def note(self, text: str) -> None:
        """See :func:`Page.note`."""
        self._put(_NOTE, text)

    def _put(self, where: tuple[int, int], text: str) -> None:
        offset, room = where
        data = text.encode("utf8", "backslashreplace")
        if len(data) > room:
            data = data[: room - 3] + b"..."
        start = offset + _LEN.size
        self._map[start : start + len(data)] = data
        _LEN.pack_into(self._map, offset, len(data))

    def _look(self) -> None:
        """Without progress for some time, write down where the main thread is."""
        was_written = False
        while True:
            time.sleep(1.0)
            is_late = time.monotonic() - _TIME.unpack_from(self._map, 0)[0] >= _LOOK_SECS
            if is_late:
                self._put(_PLACE, _place(sys._current_frames().get(self._main_thread or 0)))
            elif was_written:
                self._put(_PLACE, "")
            was_written = is_late


class StatusView:
    """The parent's side of the page."""

    def __init__(self, conn: Connection):
        """
        :param conn: to the process, which sends the handle now
        """
        fd = reduction.recv_handle(conn)
        try:
            self._map = mmap.mmap(fd, _SIZE, access=mmap.ACCESS_READ)
        finally:
            os.close(fd)

    def read(self) -> Status:
        """:return: as it is now"""
        changed_at, epoch, position, last, is_tag = _HEAD.unpack_from(self._map, 0)
        return Status(
            changed_at=changed_at,
            epoch=epoch if epoch >= 0 else None,
            position=position if position >= 0 else None,
            last_position=last if last >= 0 else None,
            tag=self._get(_TAG),
            is_tag_of_position=is_tag,
            activity=self._get(_ACTIVITY),
            place=self._get(_PLACE),
            note=self._get(_NOTE),
        )

    def _get(self, where: tuple[int, int]) -> str:
        offset, room = where
        length = min(_LEN.unpack_from(self._map, offset)[0], room)
        start = offset + _LEN.size
        # While it is written, it may be half of one text and half of another.
        return bytes(self._map[start : start + length]).decode("utf8", "replace")


def start_page(conn: Connection, activity: str) -> None:
    """
    Give this process a page, if the system has such memory; see :func:`current_page`.

    :param conn: to the parent, which gets it
    :param activity: what comes first
    """
    state.status_page = None
    if not CAN_SHARE:
        return
    with contextlib.suppress(OSError):
        page = StatusPage()
        page.begin(activity)
        page.send(conn)
        state.status_page = page


def current_page() -> Page | None:
    """:return: page of this process; None: nobody reads what it does, e.g. in the main process"""
    page: Page | None = state.status_page
    return page


def knows_tags_before_data(dataset: Any) -> bool:
    """
    :param dataset: Any: also a class of the user with the methods to read alone
    :return: whether get_tag is only a look into an index, so that it may be asked before the data is read
    """
    get_tag = getattr(type(dataset), "get_tag", None)
    return getattr(get_tag, "__module__", None) in _MODULES_WITH_TAG_INDEX


def _place(frame: FrameType | None) -> str:
    """:return: the function that runs, and the last one outside of libraries, if that is another one"""
    if frame is None:
        return ""
    texts = [_describe(frame)]
    outer: FrameType | None = frame
    while outer is not None and outer.f_code.co_filename.startswith((*_LIBRARY_DIRS, _PACKAGE_DIR, "<frozen")):
        outer = outer.f_back
    # The very first frame is the start of the process.
    if outer is not None and outer is not frame and outer.f_back is not None:
        texts.append(_describe(outer))
    return ", called by ".join(texts)


def _describe(frame: FrameType) -> str:
    return f"in {frame.f_code.co_name} ({frame.f_code.co_filename}:{frame.f_lineno})"
