"""
The processes of a PostprocessingDataset, and the thread of the parent that reads the wrapped dataset and feeds them.
"""

from __future__ import annotations

import contextlib
import os
import threading
from collections import deque
from collections.abc import Iterator
from multiprocessing import connection
from typing import Any

from returnn.datasets._loading.stuck import CHECK_SECS
from returnn.datasets._postprocessing.streams import Seq
from returnn.datasets._postprocessing.worker import MapJob, PassOptions, serve_map
from returnn.datasets._procs.process import ChildProcess, Message, dump_job, wait_any
from returnn.datasets._procs.seq_blocks import BlockBuilder, BlockReceiver, BlockSender, SeqBlock

__all__ = ["MapPool"]

# Blocks of results of one process that wait here; more stay with the process.
_MAX_WAITING_BLOCKS = 2


class _Worker:
    """One process, and what is on its way to and from it."""

    def __init__(self, job: MapJob) -> None:
        name = f"process {job.index + 1} of {job.num_workers}"
        self.process = ChildProcess(serve_map, dump_job(job, where=job.funcs.where), name=name, where=job.funcs.where)
        self.receiver = BlockReceiver(self.process.conn)
        self.sender = BlockSender(self.process.conn)
        self.index = job.index
        self.buf_size = job.buf_size
        self.builder = BlockBuilder(job.buf_size)
        self.inputs: deque[SeqBlock] = deque()
        self.is_input_end_sent = False
        # Shared with the reader, under the lock.
        self.results: deque[SeqBlock] = deque()
        self.slots_to_free: deque[int] = deque()
        self.is_done = True

    def begin_pass(self) -> None:
        self.builder = BlockBuilder(self.buf_size)
        self.inputs.clear()
        self.results.clear()
        self.is_input_end_sent = False
        self.is_done = False

    @property
    def wants_input(self) -> bool:
        return not self.is_done and self.sender.has_free and not self.inputs and not len(self.builder)

    @property
    def num_waiting_inputs(self) -> int:
        return len(self.builder) + sum(map(len, self.inputs))


class MapPool:
    """
    Processes that apply a function to every W-th sequence each. Their results are read in turn.

    While a pass runs, only the thread here touches the wrapped dataset and the connections.
    """

    def __init__(self, jobs: list[MapJob]) -> None:
        """
        :param jobs: one per process
        """
        self._workers = [_Worker(job) for job in jobs]
        self._buf_size = jobs[0].buf_size
        self._owner_pid = os.getpid()
        self._pass_id = 0
        self._cond = threading.Condition()
        self._wake_reader, self._wake_writer = connection.Pipe(duplex=False)
        self._thread: threading.Thread | None = None
        self._is_stopping = False
        self._error: BaseException | None = None
        self._active: list[_Worker] = []
        self._turn = 0
        self._block: SeqBlock | None = None

    @property
    def is_own(self) -> bool:
        """:return: False in a fork of the process that made this"""
        return self._owner_pid == os.getpid()

    @property
    def pids(self) -> list[int]:
        """:return: of the processes"""
        return [worker.process.pid for worker in self._workers]

    # ---- of the reader

    def start_pass(self, seqs: Iterator[Seq], options: list[PassOptions]) -> None:
        """
        :param seqs: of the wrapped dataset, whose order of the epoch is known. Read in another thread
        :param options: per process
        """
        self.stop_pass()
        self._pass_id += 1
        self._error = None
        for worker, opts in zip(self._workers, options, strict=True):
            worker.begin_pass()
            worker.process.task = f"in epoch {opts.epoch}"
            worker.process.send(("pass", self._pass_id, opts))
            self._free_slots(worker)
        self._active = list(self._workers)
        self._turn = options[0].start % len(self._workers)
        self._positions = [0] * len(self._workers)
        self._thread = threading.Thread(
            target=self._run, args=(seqs,), name="PostprocessingDataset feeder", daemon=True
        )
        self._thread.start()

    def stop_pass(self) -> None:
        """Nobody touches the wrapped dataset any more. The processes may go on with what they have."""
        if self._thread is None:
            return
        self._is_stopping = True
        self._wake()
        self._thread.join()
        self._thread = None
        self._is_stopping = False

    def next_seq(self) -> tuple[dict[str, Any], str, float | None] | None:
        """
        :return: next result: data (Any: arrays), tag, how much of the epoch is done; None: there are no more
        :raises Exception: what happened in a process or in the wrapped dataset
        """
        while self._active:
            self._turn %= len(self._active)
            worker = self._active[self._turn]
            was_slow = False
            with self._cond:
                while not worker.results and not worker.is_done and self._error is None:
                    if not self._cond.wait(CHECK_SECS):
                        worker.process.look()
                        was_slow = True
                if not worker.results and self._error is not None:
                    raise self._error
                if not worker.results:
                    del self._active[self._turn]
                    continue
                block, pos = worker.results[0], self._positions[worker.index]
                is_used_up = pos + 1 >= len(block)
                if is_used_up:
                    worker.results.popleft()
                must_wake = is_used_up and bool(worker.slots_to_free)
            if was_slow:
                worker.process.look_no_more()
            self._positions[worker.index] = 0 if is_used_up else pos + 1
            if must_wake:
                self._wake()
            self._turn += 1
            return block.features(pos), block.tags[pos], block.frac(pos)
        return None

    def _wake(self) -> None:
        with contextlib.suppress(OSError, ValueError):
            self._wake_writer.send_bytes(b"x")

    def close(self) -> None:
        """End the thread and the processes."""
        if not self.is_own:
            return
        self.stop_pass()
        for worker in self._workers:
            worker.process.hang_up()
        for worker in self._workers:
            worker.process.close()

    # ---- of the thread

    def _run(self, seqs: Iterator[Seq]) -> None:
        try:
            self._feed(seqs)
        except BaseException as exc:
            with self._cond:
                self._error = exc
                self._cond.notify_all()

    def _feed(self, seqs: Iterator[Seq]) -> None:
        source: Iterator[Seq] | None = seqs
        while not self._is_stopping and not all(worker.is_done for worker in self._workers):
            if source is not None and self._wants_more():
                seq = next(source, None)
                if seq is None:
                    source = None
                else:
                    worker = self._workers[seq.idx % len(self._workers)]
                    worker.inputs.extend(worker.builder.add(seq.features, seq.tag, seq.frac))
            for worker in self._workers:
                self._send_inputs(worker, is_end=source is None)
            timeout = 0 if source is not None and self._wants_more() else None
            processes = {worker.process: worker for worker in self._workers}
            for ready in wait_any(list(processes), [self._wake_reader], timeout):
                if ready is self._wake_reader:
                    self._wake_reader.recv_bytes()
                    for worker in self._workers:
                        self._free_slots(worker)
                else:
                    self._handle(processes[ready], ready.receive())

    def _wants_more(self) -> bool:
        if any(worker.wants_input for worker in self._workers):
            return True
        return sum(worker.num_waiting_inputs for worker in self._workers) < self._buf_size

    def _send_inputs(self, worker: _Worker, *, is_end: bool) -> None:
        if worker.is_done:
            worker.inputs.clear()
            worker.builder = BlockBuilder(worker.buf_size)
            return
        if not worker.inputs and len(worker.builder) and (is_end or worker.sender.num_free > 1):  # it is idle
            worker.inputs.append(worker.builder.take())
        while worker.inputs and worker.sender.has_free:
            # If the process is gone, receiving from it says how.
            with contextlib.suppress(BrokenPipeError, ConnectionResetError):
                worker.sender.send(self._pass_id, worker.inputs.popleft())
        if is_end and not worker.inputs and not len(worker.builder) and not worker.is_input_end_sent:
            worker.is_input_end_sent = True
            worker.process.send(("input_end", self._pass_id))

    def _free_slots(self, worker: _Worker) -> None:
        with self._cond:
            while worker.slots_to_free and len(worker.results) < _MAX_WAITING_BLOCKS:
                worker.process.send(("free", worker.slots_to_free.popleft()))

    def _handle(self, worker: _Worker, message: Message) -> None:
        kind = message[0]
        if kind == "input_free":
            worker.sender.free(message[1])
        elif kind == "memory":
            worker.receiver.on_memory(message)
        elif kind == "block":
            block = worker.receiver.on_block(message)
            with self._cond:
                if message[1] == self._pass_id:
                    worker.results.append(block)
                worker.slots_to_free.append(message[2])
                self._cond.notify_all()
            self._free_slots(worker)
        elif kind == "end" and message[1] == self._pass_id:
            with self._cond:
                worker.is_done = True
                self._cond.notify_all()
        elif kind == "error" and message[1] in (None, self._pass_id):
            error: Exception = message[2].to_exception()
            raise error
