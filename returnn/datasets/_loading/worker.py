"""
The worker process: reads one shard of the data and sends blocks of batches to its parent.

Messages to the worker: ("pass", pass_id, epoch, resume point or None), ("stop", pass_id), ("free", slot), ("exit",).
Messages to the parent: ("ready",), ("memory", slot, size), ("block", ...), ("end", ...), ("error", ...).
"""

from __future__ import annotations

import multiprocessing
import os
import pickle
import sys
import threading
import time
from collections.abc import Callable, Sequence
from multiprocessing import connection
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING, Any

import numpy

from returnn._state import state
from returnn.config_pickle import loads_in_worker
from returnn.datasets._basic.shared_corpus import receive_shared_corpus
from returnn.datasets._loading.address import ResumePoint
from returnn.datasets._loading.collate import NumpyBatch
from returnn.datasets._loading.passes import iter_blocks
from returnn.datasets._loading.remote_error import RemoteError
from returnn.datasets._loading.shared_slots import CAN_SHARE, WriteSlot, pack_batches
from returnn.datasets._loading.source import BatchInfo, Block, PassContext, SourceOptions
from returnn.datasets._loading.status_page import start_page
from returnn.util.group_signals import leave_signals_to_parent

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["worker_main", "watch_parent", "set_environment", "limit_threads"]

#: Blocks are sent after this time even if small.
_MAX_BLOCK_SECS = 0.05
_MAX_BLOCK_BATCHES = 64


class _PassAborted(Exception):
    """The parent wants something else now."""


def watch_parent(parent_pid: int) -> None:
    """End this process when the parent is gone, in whatever way."""
    parent = multiprocessing.parent_process()
    sentinels = [parent.sentinel] if parent is not None else []
    while True:
        if sentinels:
            gone = bool(connection.wait(sentinels, timeout=2.0))
        else:
            time.sleep(1.0)
            gone = False
        if not gone:
            # A process forked by the parent may keep the sentinel open.
            try:
                os.kill(parent_pid, 0)
            except ProcessLookupError:
                gone = True
            except PermissionError:
                gone = False
        if gone:
            for child in multiprocessing.active_children():  # of user code; nobody else ends them
                child.terminate()
            os._exit(1)


def _peak_memory_bytes() -> int | None:
    try:
        import resource
    except ImportError:  # not on this system
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


class _Server:
    """Serves the requests of the parent, one after the other."""

    def __init__(self, conn: Connection, dataset: Dataset, options: SourceOptions, num_slots: int):
        """
        :param conn: to the parent
        :param dataset: own copy
        :param options: of this worker
        :param num_slots: blocks that may be on their way
        """
        self._conn = conn
        self._dataset = dataset
        self._options = options
        self._slots = [WriteSlot(i) for i in range(num_slots)]
        self._free = list(range(num_slots))
        self._request: tuple[Any, ...] | None = None  # Any: message that ended a pass
        self._pass_id = -1
        self._block_slot: WriteSlot | None = None  # already holds arrays of the block under construction

    def serve(self) -> None:
        """Until the parent says exit or is gone."""
        while True:
            message = self._request or self._conn.recv()
            self._request = None
            if message[0] == "exit":
                return
            if message[0] == "free":
                self._free.append(message[1])
            elif message[0] == "pass":
                self._run_pass(message[1], message[2], message[3])

    def _run_pass(self, pass_id: int, epoch: int | None, resume: ResumePoint | None) -> None:
        self._pass_id = pass_id
        ctx = PassContext(self._dataset, self._options, epoch)
        ctx.seed_global_generators()
        try:
            self._send_blocks(ctx, resume)
            self._conn.send(("end", pass_id, ctx.stats, _peak_memory_bytes()))
        except _PassAborted:
            pass
        except (BrokenPipeError, ConnectionResetError, EOFError):
            raise
        except BaseException as exc:
            where = ctx.locate(exc)
            self._conn.send(("error", pass_id, RemoteError.from_exception(exc, where=where)))
        finally:
            if self._block_slot is not None:
                self._free.append(self._block_slot.index)
                self._block_slot = None

    def _send_blocks(self, ctx: PassContext, resume: ResumePoint | None) -> None:
        pending = Block([], [])
        pending_bytes = 0
        since = time.monotonic()
        max_batches = 1
        for block in iter_blocks(ctx, self._alloc, resume):
            self._handle_messages(wait=False)
            if not block.batches:
                continue  # in place
            if self._block_slot is not None:  # from block reads
                self._send(block, ctx)
                continue
            pending.batches += block.batches
            pending.infos += block.infos
            pending_bytes += _num_bytes(block.batches)
            if (
                pending_bytes >= self._options.block_bytes
                or len(pending.batches) >= max_batches
                or time.monotonic() - since > _MAX_BLOCK_SECS
            ):
                self._send(pending, ctx)
                pending, pending_bytes, since = Block([], []), 0, time.monotonic()
                max_batches = min(max_batches * 2, _MAX_BLOCK_BATCHES)
        if pending.batches:
            self._send(pending, ctx)

    def _handle_messages(self, *, wait: bool) -> None:
        """
        :param wait: for at least one
        :raises _PassAborted: this pass is not wanted any more
        """
        while wait or self._conn.poll():
            message = self._conn.recv()
            wait = False
            if message[0] == "free":
                self._free.append(message[1])
            elif message[0] == "stop":
                if message[1] == self._pass_id:
                    raise _PassAborted
            else:
                self._request = message
                raise _PassAborted

    def _take_slot(self) -> WriteSlot:
        while not self._free:
            self._handle_messages(wait=True)
        slot = self._slots[self._free.pop()]
        slot.clear()
        self._block_slot = slot
        return slot

    def _alloc(self, specs: Sequence[tuple[tuple[int, ...], numpy.dtype]]) -> list[numpy.ndarray]:
        return self._take_slot().alloc(specs)

    def _send(self, block: Block, ctx: PassContext) -> None:
        slot = self._block_slot or self._take_slot()
        layout = pack_batches(block.batches, slot)
        infos: list[BatchInfo] = block.infos
        if slot.fd >= 0:
            self._conn.send(("memory", slot.index, slot.size))
            slot.send_memory(self._conn)
        self._conn.send(("block", self._pass_id, slot.index, slot.used, layout, infos, ctx.stats, _peak_memory_bytes()))
        if not CAN_SHARE:
            self._conn.send_bytes(slot.content())
        self._block_slot = None


def _num_bytes(batches: Sequence[NumpyBatch]) -> int:
    return sum(v.nbytes for batch in batches for v in batch.values() if isinstance(v, numpy.ndarray))


def set_environment(environ: dict[str, str]) -> None:
    """The process may come from a server that was started long ago, with other values."""
    for key in set(os.environ) - set(environ):
        del os.environ[key]
    os.environ.update(environ)


def limit_threads() -> None:
    """Torch, if it is imported, gets one thread: there are several such processes."""
    torch: Any = sys.modules.get("torch")  # Any: not imported here on purpose
    set_num_threads: Callable[[int], None] | None = getattr(torch, "set_num_threads", None)
    if set_num_threads is not None:
        set_num_threads(1)


def worker_main(
    conn: Connection,
    parent_pid: int,
    worker_id: int,
    num_workers: int,
    num_slots: int,
    payload: bytes,
    environ: dict[str, str],
    rank_and_size: tuple[int, int] = (0, 1),
) -> None:
    """
    Main function of the process.

    :param conn: to the parent, which has sent the handles of shared memory already
    :param parent_pid: process to live no longer than
    :param worker_id: from 0
    :param num_workers: of this dataset
    :param num_slots: blocks that may be on their way
    :param payload: dataset and options, with the global config
    :param environ: of the parent
    :param rank_and_size: of the parent among the processes that train together
    """
    leave_signals_to_parent()
    threading.Thread(target=watch_parent, args=(parent_pid,), name="watch-parent", daemon=True).start()
    set_environment(environ)
    state.in_worker = True
    state.rank, state.world_size = rank_and_size
    options: SourceOptions | None = None
    where = "the dataset for the first time"
    try:
        start_page(conn, "starting")
        try:
            receive_shared_corpus(conn)
            dataset, options = loads_in_worker(payload)
            limit_threads()
            options = options.for_worker(worker_id, num_workers)
            state.worker_id = worker_id
            if not options.is_global:
                state.num_workers = num_workers
            if options.worker_init_fn is not None:
                where = "nothing yet, in worker_init_fn"
                options.worker_init_fn(worker_id)
        except BaseException as exc:
            conn.send(("error", None, RemoteError.from_exception(exc, where=where)))
            return
        conn.send(("ready", _peak_memory_bytes()))
        _Server(conn, dataset, options, num_slots).serve()
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent closed the connection or is gone
    except pickle.PicklingError as exc:
        conn.send(("error", None, RemoteError.from_exception(exc, where="the dataset")))
    finally:
        conn.close()
