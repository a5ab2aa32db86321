"""
The process that applies the function of the user to its share of the sequences.

Messages to it: ("pass", id, PassOptions), inputs as ("memory", slot, size), ("block", id, ...), ("input_end", id),
and ("free", slot). From it: ("input_free", slot), results as ("memory", ...), ("block", ...), ("end", id), and
("error", id, RemoteError).
"""

from __future__ import annotations

import dataclasses
from collections import deque
from collections.abc import Iterator
from multiprocessing.connection import Connection
from typing import Any

from returnn._state import state
from returnn.datasets._loading.status_page import current_page
from returnn.datasets._postprocessing.apply import MapFunctions, Mapper
from returnn.datasets._postprocessing.streams import Seq
from returnn.datasets._procs.process import send_error
from returnn.datasets._procs.seq_blocks import BlockBuilder, BlockReceiver, BlockSender, SeqBlock

__all__ = ["MapJob", "PassOptions", "serve_map"]


@dataclasses.dataclass(frozen=True)
class MapJob:
    """
    :param funcs: what to do
    :param index: of this process
    :param num_workers: number of processes: it gets every so many-th sequence
    :param buf_size: results to make ahead
    """

    funcs: MapFunctions
    index: int
    num_workers: int
    buf_size: int


@dataclasses.dataclass(frozen=True)
class PassOptions:
    """
    :param epoch: for the functions
    :param seed: for the generator of this process
    :param per_seq_seed: see :class:`Mapper`
    :param start: position of the first sequence that the processes get
    """

    epoch: int | None
    seed: int
    per_seq_seed: int | None
    start: int = 0


class _PassAborted(BaseException):
    """The parent wants something else now. No Exception: functions of the user may catch these."""


class _Worker:
    def __init__(self, conn: Connection, job: MapJob) -> None:
        self._conn = conn
        self._job = job
        self._receiver = BlockReceiver(conn)
        self._sender = BlockSender(conn)
        self._pass_id = -1
        self._epoch: int | None = None
        self._inputs: deque[tuple[SeqBlock, int]] = deque()
        self._is_input_end = False
        self._next_pass: tuple[int, PassOptions] | None = None
        self._builder = BlockBuilder(job.buf_size)

    def serve(self) -> None:
        """Until the connection is closed."""
        while True:
            if self._next_pass is None:
                self._handle(self._conn.recv())
                continue
            (self._pass_id, options), self._next_pass = self._next_pass, None
            self._is_input_end = False
            try:
                self._run(options)
            except _PassAborted:
                pass

    def _run(self, options: PassOptions) -> None:
        mapper = Mapper(self._job.funcs, epoch=options.epoch, seed=options.seed, per_seq_seed=options.per_seq_seed)
        self._builder = BlockBuilder(self._job.buf_size)
        self._epoch = options.epoch
        try:
            for seq in mapper.map_stream(self._iter_inputs(options.start)):
                for block in self._builder.add(seq.features, seq.tag, seq.frac):
                    self._send(block)
            self._flush(wait=True)
        except (_PassAborted, EOFError, BrokenPipeError, ConnectionResetError):
            raise
        except Exception as exc:
            where = self._job.funcs.where
            place = f"{where}, epoch {options.epoch}, {mapper.describe_place()}"
            send_error(self._conn, self._pass_id, exc, where=place, who=f"process {self._job.index + 1} of {where}")
            return
        self._conn.send(("end", self._pass_id))

    def _iter_inputs(self, start: int) -> Iterator[Seq]:
        idx = start + (self._job.index - start) % self._job.num_workers
        page = current_page()
        while True:
            while not self._inputs and not self._is_input_end:
                if not self._conn.poll():
                    self._flush(wait=False)
                    if page is not None:
                        page.begin("waiting for sequences to apply the function to", self._epoch)
                self._handle(self._conn.recv())
            if not self._inputs:
                return
            if page is not None:
                page.begin("applying the function", self._epoch)
            block, slot = self._inputs.popleft()
            self._conn.send(("input_free", slot))
            for i in range(len(block)):
                if page is not None:
                    page.at(idx, block.tags[i])
                yield Seq(idx, block.tags[i], block.frac(i), block.features(i))
                idx += self._job.num_workers

    def _flush(self, *, wait: bool) -> None:
        if len(self._builder) and (wait or self._sender.has_free):
            self._send(self._builder.take())

    def _send(self, block: SeqBlock) -> None:
        while not self._sender.has_free:
            self._handle(self._conn.recv())
        self._sender.send(self._pass_id, block)

    def _handle(self, message: tuple[Any, ...]) -> None:
        kind = message[0]
        if kind == "free":
            self._sender.free(message[1])
        elif kind == "memory":
            self._receiver.on_memory(message)
        elif kind == "block":
            block = self._receiver.on_block(message)
            if message[1] == self._pass_id:
                self._inputs.append((block, message[2]))
            else:
                self._conn.send(("input_free", message[2]))
        elif kind == "input_end":
            self._is_input_end = self._is_input_end or message[1] == self._pass_id
        elif kind == "pass":
            for _, slot in self._inputs:
                self._conn.send(("input_free", slot))
            self._inputs.clear()
            self._pass_id = message[1]
            self._next_pass = (message[1], message[2])
            raise _PassAborted


def serve_map(conn: Connection, job: MapJob) -> None:
    """Main function of the process, see :class:`returnn.datasets._procs.process.ChildProcess`."""
    state.worker_id = state.worker_id or job.index
    worker = _Worker(conn, job)
    while True:
        try:
            worker.serve()
        except _PassAborted:  # no pass was running
            continue
