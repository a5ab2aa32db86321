"""
The parent's side of the worker processes of one dataset.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from collections.abc import Iterator, Sequence
from multiprocessing import connection, util
from multiprocessing.connection import Connection
from multiprocessing.process import BaseProcess
from typing import TYPE_CHECKING, Any

import numpy

from returnn._state import state
from returnn.datasets._basic.shared_corpus import SharedCorpus
from returnn.datasets._loading.address import ResumePoint
from returnn.datasets._loading.collate import NumpyBatch
from returnn.datasets._loading.payload import dump_payload
from returnn.datasets._loading.server import limited_threads, needs_torch, start_method, start_server, worker_environ
from returnn.datasets._loading.shared_slots import CAN_SHARE, ReadSlot, unpack_batches
from returnn.datasets._loading.source import BatchInfo, Block, PassStats, SourceOptions
from returnn.datasets._loading.status_page import StatusView
from returnn.datasets._loading.stuck import CHECK_SECS, StuckWatch, last_words, oom_kills
from returnn.datasets._loading.worker import worker_main
from returnn.errors import WorkerError
from returnn.options.loader import LoaderOptions
from returnn.util import stop_request

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["WorkerPool", "PoolPass"]

#: At least this often it is checked whether all workers are alive, while batches are taken.
_CHECK_SECS = 1.0
#: Time for workers to end by themselves.
_EXIT_SECS = 1.0


class _Worker:
    """One process and the connection to it."""

    def __init__(self, index: int, process: BaseProcess, conn: Connection, child_conn: Connection, dataset_name: str):
        self.index = index
        self.watch = StuckWatch(
            lambda: f"loader worker {index} (pid {process.pid}) of dataset {dataset_name!r}",
            todo="With num_workers_per_gpu = 0 the main process reads, where a debugger can see it.",
        )
        self.process = process
        self.conn = conn
        self.child_conn = child_conn
        self.slots: dict[int, ReadSlot] = {}
        self.queue: deque[tuple[NumpyBatch, BatchInfo]] = deque()
        self.is_done = True  # with the current pass
        self.stats = PassStats()
        self.peak_memory_bytes: int | None = None
        self.is_ready = False


def _end_processes(workers: list[_Worker], owner_pid: int) -> None:
    """Ask them to end, then make them."""
    if os.getpid() != owner_pid:
        return  # in a forked child, which does not own them
    for worker in workers:
        for conn in (worker.conn, worker.child_conn):
            if not conn.closed:
                conn.close()
    processes = [worker.process for worker in workers if worker.process.pid is not None]
    for end in (None, "kill"):  # they do not listen to SIGTERM
        deadline = time.monotonic() + _EXIT_SECS
        for process in processes:
            if end is not None and process.is_alive():
                getattr(process, end)()
        for process in processes:
            process.join(max(deadline - time.monotonic(), 0.0))
        if not any(process.is_alive() for process in processes):
            return


class WorkerPool:
    """
    Worker processes for one dataset. They start in parallel in the background, and end with :meth:`close`,
    with this object, at exit, or when this process is gone.
    """

    def __init__(self, dataset: Dataset, options: SourceOptions, loader: LoaderOptions):
        """
        :param dataset: to copy into each worker
        :param options: from sequences to batches
        :param loader: number of workers (at least 1), start method
        :raises ConfigError: the dataset cannot be sent to another process
        """
        self.options = options
        self.is_global = options.is_global
        payload = dump_payload(dataset, options)
        shared = SharedCorpus(dataset, num_workers=loader.num_workers)
        method = start_method(loader)
        if method == "forkserver":
            start_server(with_torch=needs_torch(payload))
        # The functions of the context types differ in their classes only.
        context: Any = multiprocessing.get_context(method)
        environ = worker_environ()
        ranks = (state.rank, state.world_size)
        self._from_server = method == "forkserver"
        self.workers: list[_Worker] = []
        for i in range(loader.num_workers):
            conn, child_conn = context.Pipe(duplex=True)
            shared.send(conn)
            args = (child_conn, os.getpid(), i, loader.num_workers, loader.prefetch_blocks, payload, environ, ranks)
            name = f"returnn-loader-{options.name}-{i}"
            # Not daemonic: datasets may have processes of their own.
            process = context.Process(target=worker_main, args=args, name=name, daemon=False)
            self.workers.append(_Worker(i, process, conn, child_conn, options.name))
        self._pass_id = 0
        self._epoch: int | None = None
        self._oom_kills = oom_kills()
        self._start_error: BaseException | None = None
        self._starter = threading.Thread(target=self._start_processes, name="start-loader-workers", daemon=True)
        # Before multiprocessing's own exit handler waits for the processes.
        self._finalizer = util.Finalize(
            self, _finalize_pool, args=(self.workers, os.getpid(), self._starter, shared), exitpriority=100
        )
        self._starter.start()

    def _start_processes(self) -> None:
        try:
            for worker in self.workers:
                # The server has the variables already.
                with contextlib.nullcontext() if self._from_server else limited_threads():
                    worker.process.start()
                worker.child_conn.close()
        except BaseException as exc:
            self._start_error = exc

    def _wait_for_start(self) -> None:
        if self._starter is not None and self._starter.is_alive():
            self._starter.join()
        if self._start_error is not None:
            stop_request.raise_if_requested()  # what asks for it may have ended them
            raise WorkerError(
                f"cannot start the loader workers of dataset {self.options.name!r}: {self._start_error}. "
                "Set num_workers_per_gpu = 0 to load data in the main process."
            ) from self._start_error

    def start_pass(
        self, epoch: int | None, resume: Sequence[ResumePoint] | None = None, *, first_worker: int = 0
    ) -> PoolPass:
        """
        :param epoch: for init_seq_order
        :param resume: to go on within the pass: one for each worker
        :param first_worker: which gives the first batch
        :return: iterable over the blocks. Workers begin now
        """
        self._pass_id += 1
        self._epoch = epoch
        for worker in self.workers:
            worker.queue.clear()
            worker.is_done = False
            worker.stats = PassStats()
            self._send(worker, ("pass", self._pass_id, epoch, resume[worker.index] if resume else None))
        return PoolPass(self, self._pass_id, first_worker)

    def stop_pass(self, pass_id: int) -> None:
        """Workers need not go on with this pass."""
        if pass_id != self._pass_id:
            return
        for worker in self.workers:
            worker.queue.clear()
            if not worker.is_done and not worker.conn.closed:
                self._send(worker, ("stop", pass_id))

    def _send(self, worker: _Worker, message: tuple[Any, ...]) -> None:
        try:
            worker.conn.send(message)
        except (BrokenPipeError, ConnectionResetError):
            pass  # it is gone; the next receive says how

    def fetch(self, worker: _Worker, pass_id: int) -> bool:
        """
        Wait until the worker's queue has batches.

        :return: False: it has no more in this pass
        :raises WorkerError: a worker is gone
        :raises StopRequested: the training is to stop
        """
        self._wait_for_start()
        while not worker.queue and not worker.is_done:
            waitables: list[Any] = [worker.conn, *(w.process.sentinel for w in self.workers)]
            ready = connection.wait(waitables, CHECK_SECS)
            if not ready:
                stop_request.raise_if_requested()
                worker.watch.pid, worker.watch.task = worker.process.pid, f"in epoch {self._epoch}"
                worker.watch.look()
            elif worker.conn in ready:
                if worker.watch.is_waiting:
                    worker.watch.done()
                try:
                    message = worker.conn.recv()
                    self._handle(worker, message, pass_id)
                except (EOFError, ConnectionResetError) as exc:
                    raise self._death(worker) from exc
            else:
                self.check_alive()
        return bool(worker.queue)

    def _handle(self, worker: _Worker, message: tuple[Any, ...], pass_id: int) -> None:
        kind = message[0]
        if kind == "ready":
            worker.is_ready, worker.peak_memory_bytes = True, message[1]
        elif kind == "status":
            worker.watch.view = StatusView(worker.conn)
        elif kind == "memory":
            worker.slots[message[1]] = ReadSlot(worker.conn, message[2])
        elif kind == "block":
            _, block_pass_id, slot, used, layout, infos, stats, worker.peak_memory_bytes = message
            content = None if CAN_SHARE else numpy.frombuffer(bytearray(worker.conn.recv_bytes()), dtype=numpy.uint8)
            if block_pass_id == pass_id:
                if content is None:
                    content = worker.slots[slot].copy(used)
                worker.stats = stats
                worker.queue.extend(zip(unpack_batches(layout, content), infos, strict=True))
            self._send(worker, ("free", slot))
        elif kind == "end" and message[1] == pass_id:
            worker.is_done, worker.stats, worker.peak_memory_bytes = True, message[2], message[3]
        elif kind == "error" and message[1] in (pass_id, None):
            worker.is_done = True
            raise message[2].to_exception()

    def check_alive(self) -> None:
        """:raises WorkerError: a worker is gone"""
        for worker in self.workers:
            if worker.process.pid is not None and not worker.process.is_alive():
                self._read_last_words(worker)
                raise self._death(worker)

    def _read_last_words(self, worker: _Worker) -> None:
        """An error message of a worker that ended. :raises Exception: that error"""
        while True:
            try:
                if not worker.conn.poll():
                    return
                message = worker.conn.recv()
            except (EOFError, OSError):
                return
            self._handle(worker, message, self._pass_id)

    def _death(self, worker: _Worker) -> WorkerError:
        worker.process.join(_EXIT_SECS)
        stop_request.raise_if_requested()  # a signal to all processes can come before the worker is ready for it
        code = worker.process.exitcode
        text = f"loader worker {worker.index} (pid {worker.process.pid}) of dataset {self.options.name!r} "
        if code is not None and code < 0:
            try:
                name = signal.Signals(-code).name
            except ValueError:
                name = "unknown"
            text += f"was killed by signal {name} ({-code})"
        elif not worker.is_ready:
            text += f"ended while starting, with exit code {code}"
        else:
            text += f"ended unexpectedly, with exit code {code}"
        text += f" in epoch {self._epoch}." + last_words(worker.watch.status())
        if worker.peak_memory_bytes is not None:
            text += f" Its peak memory was {worker.peak_memory_bytes / 2**30:.2f} GiB."
        if code == -signal.SIGKILL if hasattr(signal, "SIGKILL") else False:
            is_sure = self._oom_kills is not None and (oom_kills() or 0) > self._oom_kills
            text += (
                f" {'The' if is_sure else 'Most likely the'} system ran out of memory: "
                "use fewer workers (num_workers_per_gpu) or smaller buffers."
            )
        elif not worker.is_ready:
            text += (
                " See its messages above. A script that starts workers needs its code below"
                ' `if __name__ == "__main__":`.'
            )
        else:
            text += " Set num_workers_per_gpu = 0 to see the reason in the main process."
        return WorkerError(text)

    def pids(self) -> list[int]:
        """:return: of the processes; waits until they are started"""
        self._wait_for_start()
        return [worker.process.pid for worker in self.workers if worker.process.pid is not None]

    def close(self) -> None:
        """End the processes."""
        self._finalizer()

    @property
    def is_closed(self) -> bool:
        """:return: whether the processes are ended"""
        return not self._finalizer.still_active()


def _finalize_pool(workers: list[_Worker], owner_pid: int, starter: threading.Thread, shared: SharedCorpus) -> None:
    if os.getpid() == owner_pid and starter.is_alive() and starter is not threading.current_thread():
        starter.join(60.0)
    _end_processes(workers, owner_pid)
    shared.close()


class PoolPass:
    """Iterable over the blocks of one pass, batches in round robin over the workers that still have some."""

    def __init__(self, pool: WorkerPool, pass_id: int, first_worker: int = 0):
        """
        :param pool: which works on it already
        :param pass_id: of this pass
        :param first_worker: which gives the first batch
        """
        self._first_worker = first_worker
        self._pool = pool
        self._pass_id = pass_id
        self._next_check = time.monotonic() + _CHECK_SECS
        self._parts: list[PassStats] = []
        self._merged = PassStats()  # of the parts: asked for with each batch, but they come with blocks of them

    @property
    def stats(self) -> PassStats:
        """:return: of all workers so far"""
        parts = [worker.stats for worker in self._pool.workers]
        if len(parts) != len(self._parts) or any(new is not old for new, old in zip(parts, self._parts, strict=True)):
            self._parts = parts
            self._merged = PassStats.merged(parts, is_global=self._pool.is_global)
        return self._merged

    def wait_until_in_place(self) -> None:
        """
        Wait until each worker has something to give, or has come to its end.

        :raises WorkerError: one is gone
        """
        for worker in self._pool.workers:
            self._pool.fetch(worker, self._pass_id)

    def __iter__(self) -> Iterator[Block]:
        """:return: blocks; of one batch each if there are several workers"""
        pool = self._pool
        active = deque(pool.workers)
        active.rotate(-self._first_worker)
        while active:
            worker = active[0]
            if not pool.fetch(worker, self._pass_id):
                active.popleft()
                continue
            if len(active) == 1:
                batches, infos = zip(*worker.queue, strict=True)
                worker.queue.clear()
                for i in range(0, len(batches), 16):
                    self._check()
                    yield Block(list(batches[i : i + 16]), list(infos[i : i + 16]), worker.index)
            else:
                batch, info = worker.queue.popleft()
                active.rotate(-1)
                self._check()
                yield Block([batch], [info], worker.index)

    def _check(self) -> None:
        now = time.monotonic()
        if now >= self._next_check:
            self._next_check = now + _CHECK_SECS
            self._pool.check_alive()

    def close(self) -> None:
        """The rest is not wanted."""
        self._pool.stop_pass(self._pass_id)
