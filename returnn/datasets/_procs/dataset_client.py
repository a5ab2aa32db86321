"""
A dataset in a process of its own: the side of the parent.
"""

from __future__ import annotations

import os
from collections import deque
from typing import Any

import numpy

from returnn.datasets._procs.dataset_server import DatasetInfo, DatasetJob, InitOptions, InitResult, serve_dataset
from returnn.datasets._procs.process import ChildProcess, Message, dump_job
from returnn.datasets._procs.seq_blocks import BlockReceiver, SeqBlock

__all__ = ["RemoteDataset", "RemoteSeq", "dump_dataset"]

#: Data per key, tag, and how much of the epoch is done after it (None: not known).
RemoteSeq = tuple[dict[str, numpy.ndarray], str, "float | None"]


def dump_dataset(job: DatasetJob) -> bytes:
    """:return: for one or several :class:`RemoteDataset`"""
    return dump_job(job, where=job.where)


class RemoteDataset:
    """
    Starts the process. Requests are answered in their order; after :func:`start_stream` the process reads ahead, up to
    the buffer size of the job.
    """

    def __init__(self, payload: bytes, *, name: str, where: str):
        """
        :param payload: from :func:`dump_dataset`
        :param name: of the process
        :param where: dataset that reads from it, for messages
        """
        self._process = ChildProcess(serve_dataset, payload, name=name, where=where)
        self._receiver = BlockReceiver(self._process.conn)
        self._last_id = 0
        self._stream_id = -1
        self._blocks: deque[SeqBlock] = deque()
        self._pos = 0  # in the first block
        self._at_end = True
        # Any: results of all types.
        self._replies: dict[int, Any] = {}
        self._errors: dict[int, Exception] = {}
        self._owner_pid = os.getpid()

    @property
    def pid(self) -> int:
        """:return: process id"""
        return self._process.pid

    @property
    def is_own(self) -> bool:
        """:return: False in a fork of the process that made this"""
        return self._owner_pid == os.getpid()

    # ---- requests

    def _request(self, kind: str, *args: Any) -> int:
        self._last_id += 1
        self._process.send((kind, self._last_id, *args))
        return self._last_id

    def wait(self, request_id: int) -> Any:
        """
        :param request_id: of a request
        :return: its result. Any: what the request gives
        :raises Exception: the one of the process
        :raises WorkerError: the process is gone
        """
        while request_id not in self._replies:
            if request_id in self._errors:
                raise self._errors.pop(request_id)
            self._handle(self._process.receive())
        return self._replies.pop(request_id)

    def get_info(self) -> DatasetInfo:
        """:return: what the dataset says about itself"""
        info: DatasetInfo = self.wait(self._request("info"))
        return info

    def call(self, method: str, *args: Any) -> Any:
        """:return: result of that method of the dataset. Any: as of the method"""
        return self.wait(self._request("call", method, args))

    def begin_init(self, options: InitOptions) -> int:
        """
        Begin an epoch; a stream ends.

        :return: id for :func:`end_init`
        """
        self._stream_id = -1
        self._blocks.clear()
        self._at_end = True
        self._errors.clear()
        self._process.task = f"in epoch {options.epoch}"
        return self._request("init", options)

    def end_init(self, request_id: int) -> InitResult:
        """:return: of the order; waits for it"""
        result: InitResult = self.wait(request_id)
        return result

    def free_resources(self) -> None:
        """The process drops its dataset until the next epoch."""
        self._stream_id = -1
        self._blocks.clear()
        self._at_end = True
        self._process.send(("free_resources",))

    # ---- data

    def start_stream(self, start: int = 0, step: int = 1) -> None:
        """
        Let the process read every step-th sequence from the given one on. A stream before it ends. In a second stream of
        an epoch, the dataset must support jumps.

        :param start: position in the order of the epoch
        :param step: -
        """
        self._stream_id = self._request("stream", start, step)
        self._blocks.clear()
        self._at_end = False
        self._pos = 0

    def has_next(self) -> bool:
        """:return: whether the stream has one more sequence; waits until that is known"""
        while not self._blocks and not self._at_end:
            if self._stream_id in self._errors:
                raise self._errors[self._stream_id]  # again, if it is asked again
            self._handle(self._process.receive())
        return bool(self._blocks)

    def next_seq(self) -> RemoteSeq | None:
        """:return: next sequence of the stream; None: it has no more"""
        if not self.has_next():
            return None
        block, i = self._blocks[0], self._pos
        self._pos += 1
        if self._pos >= len(block):
            self._blocks.popleft()
            self._pos = 0
        return block.features(i), block.tags[i], block.frac(i)

    def skip(self, num_seqs: int) -> None:
        """Forget the next sequences of the stream."""
        while num_seqs and self.has_next():
            count = min(num_seqs, len(self._blocks[0]) - self._pos)
            num_seqs -= count
            self._pos += count
            if self._pos >= len(self._blocks[0]):
                self._blocks.popleft()
                self._pos = 0

    def _handle(self, message: Message) -> None:
        kind, message_id = message[:2]
        if kind == "memory":
            self._receiver.on_memory(message)
        elif kind == "block":
            block = self._receiver.on_block(message)
            self._process.send(("free", message[2]))
            if message_id == self._stream_id:
                self._blocks.append(block)
        elif kind == "end":
            self._at_end = self._at_end or message_id == self._stream_id
        elif kind == "reply":
            self._replies[message_id] = message[2]
        elif kind == "error":
            error: Exception = message[2].to_exception()
            if message_id is None:
                raise error
            self._errors[message_id] = error

    def hang_up(self) -> None:
        """Ask the process to end, without waiting."""
        self._process.hang_up()

    def close(self) -> None:
        """End the process."""
        self._process.close()
