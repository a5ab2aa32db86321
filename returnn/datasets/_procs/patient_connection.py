"""
A connection on which sending never waits for the receiver.
"""

from __future__ import annotations

import queue
import threading
from multiprocessing import reduction
from multiprocessing.connection import Connection
from typing import Any

__all__ = ["PatientConnection"]


class PatientConnection:
    """
    Messages are sent by a thread, in their order, so this process always comes back to receiving. Otherwise two
    processes that send each other more than a pipe holds wait for each other for ever. That can only happen where data
    goes through the pipe instead of shared memory.

    It has the methods of :class:`multiprocessing.connection.Connection` that are needed here.
    """

    def __init__(self, conn: Connection) -> None:
        """
        :param conn: to the other process
        """
        self._conn = conn
        self._messages: queue.SimpleQueue[Any] = queue.SimpleQueue()  # Any: bytes-like; None: the end
        self._error: OSError | None = None
        self._thread = threading.Thread(target=self._send_all, name="sender", daemon=True)
        self._thread.start()

    def _send_all(self) -> None:
        while (content := self._messages.get()) is not None:
            try:
                self._conn.send_bytes(content)
            except OSError as exc:  # the other process is gone
                self._error = exc
                return

    def send(self, message: Any) -> None:
        """See Connection.send."""
        self.send_bytes(reduction.ForkingPickler.dumps(message))

    def send_bytes(self, content: Any) -> None:
        """See Connection.send_bytes. :param content: bytes-like; it must not change before the receiver has it"""
        if self._error is not None:
            raise self._error
        self._messages.put(content)

    def recv(self) -> Any:
        """See Connection.recv."""
        return self._conn.recv()

    def recv_bytes(self) -> bytes:
        """See Connection.recv_bytes."""
        return self._conn.recv_bytes()

    def poll(self) -> bool:
        """See Connection.poll, without a timeout."""
        return self._conn.poll()

    def close(self) -> None:
        """After the receiver has got everything, or is gone."""
        self._messages.put(None)
        self._thread.join()
        self._conn.close()
