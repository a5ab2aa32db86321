"""
One process that works for a dataset: its start, messages in both directions, its errors, its death, its end.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import pickle
import signal
import threading
from collections.abc import Callable, Iterator
from multiprocessing import connection, process, util
from multiprocessing.connection import Connection
from typing import Any

from returnn._state import state
from returnn.config_pickle import dumps_for_worker, loads_in_worker
from returnn.datasets._loading.remote_error import RemoteError, add_place
from returnn.datasets._loading.server import limited_threads, needs_torch, start_method, start_server, worker_environ
from returnn.datasets._loading.status_page import StatusView, start_page
from returnn.datasets._loading.stuck import CHECK_SECS, StuckWatch, last_words
from returnn.datasets._loading.worker import limit_threads, set_environment, watch_parent
from returnn.datasets._procs import seq_blocks
from returnn.datasets._procs.patient_connection import PatientConnection
from returnn.errors import UserError, WorkerError
from returnn.options.loader import LoaderOptions
from returnn.util.group_signals import leave_signals_to_parent

__all__ = ["ChildProcess", "dump_job", "send_error", "wait_any"]

#: Time for a process to end by itself.
_EXIT_SECS = 1.0

#: Runs in the process, until the connection is closed: (connection, object from the payload).
Serve = Callable[[Connection, Any], None]
#: Tuple with the kind of message first. Any: each kind has its own content.
Message = tuple[Any, ...]


def dump_job(job: Any, *, where: str) -> bytes:
    """
    :param job: what the process works on. Any: whatever its function takes
    :param where: e.g. the dataset, for the error
    :return: payload for :class:`ChildProcess`: the job, the global config and the process state
    :raises WorkerError: it cannot be sent to another process
    """
    try:
        return dumps_for_worker(job)
    except UserError:
        raise
    except Exception as exc:  # objects of users raise anything when pickled
        raise WorkerError(
            f"{where}: cannot be sent to another process: {exc}. Functions must be defined at the top level of the "
            "config or of a module; open files and locks cannot be sent."
        ) from exc


def send_error(conn: Connection, request_id: int | None, exc: BaseException, *, where: str, who: str) -> None:
    """
    Send an exception to the parent. Our own ones get the place at the end of their text, once.

    :param conn: to the parent
    :param request_id: it belongs to; None: the process ends
    :param exc: just caught
    :param where: what was being done, e.g. ``dataset 'train', epoch 1, sequence 'a'``
    :param who: this process, for messages
    """
    add_place(exc, where)
    conn.send(("error", request_id, RemoteError.from_exception(exc, where=where, who=who)))


@contextlib.contextmanager
def _may_have_children() -> Iterator[None]:
    """
    In a daemonic process, e.g. a worker of a plain torch DataLoader: allow children. Ours do not need its help to
    end, which is the reason of the prohibition.
    """
    config: dict[str, Any] = getattr(process.current_process(), "_config", {})
    saved = config.get("daemon")
    config["daemon"] = False
    try:
        yield
    finally:
        config["daemon"] = saved


class ChildProcess:
    """A started process. It ends with :meth:`close`, with this object, at exit, or when this process is gone."""

    def __init__(self, serve: Serve, payload: bytes, *, name: str, where: str):
        """
        :param serve: importable function
        :param payload: from :func:`dump_job`
        :param name: of the process
        :param where: e.g. ``MultiProcDataset 'train'``, for messages
        :raises WorkerError: it cannot be started
        """
        self.where = where
        self.name = name
        self.is_ready = False
        #: what it works on now, for the message about its death
        self.task = ""
        method = start_method(LoaderOptions())
        if method == "forkserver":
            try:
                start_server(with_torch=needs_torch(payload))
            except ChildProcessError:  # we are a fork of the process that has the server
                method = "spawn"
        # The functions of the context types differ in their classes only.
        context: Any = multiprocessing.get_context(method)
        self.conn, child_conn = context.Pipe(duplex=True)
        args = (child_conn, os.getpid(), serve, payload, worker_environ(), f"{name} of {where}")
        self._process = context.Process(target=_main, args=args, name=f"returnn-{name}", daemon=False)
        try:
            # The server has the variables already.
            with _may_have_children(), contextlib.nullcontext() if method == "forkserver" else limited_threads():
                self._process.start()
        except Exception as exc:  # of the system, or the user's main script
            self.conn.close()
            raise WorkerError(f"{where}: cannot start a process: {exc}.") from exc
        finally:
            child_conn.close()
        pid = self.pid
        self._watch = StuckWatch(
            lambda: f"{where}: {name} (pid {pid})", todo="Used without processes, a debugger can see the dataset."
        )
        self._watch.pid = pid
        # Before multiprocessing's own exit handler waits for the process.
        self._finalizer = util.Finalize(self, _end, args=(self._process, self.conn, os.getpid()), exitpriority=100)

    @property
    def pid(self) -> int:
        """:return: process id"""
        return int(self._process.pid or 0)

    @property
    def sentinel(self) -> int:
        """:return: for :func:`multiprocessing.connection.wait`: becomes ready when the process ends"""
        return int(self._process.sentinel)

    def send(self, message: Message) -> None:
        """Send a message. If the process is gone, the next :meth:`receive` says how."""
        with contextlib.suppress(BrokenPipeError, ConnectionResetError):
            self.conn.send(message)

    def receive(self) -> Message:
        """
        :return: the next message; waits for it. ("status", None) and ("ready", None) are for here, and come first
        :raises WorkerError: the process is gone
        """
        while not (ready := connection.wait([self.conn, self.sentinel], CHECK_SECS)):
            self.look()
        self.look_no_more()
        # Its last words first.
        if self.conn not in ready and not self.conn.poll():
            raise self._death()
        try:
            message: Message = self.conn.recv()
            if message[0] == "status":
                self._watch.view = StatusView(self.conn)
        except (EOFError, OSError) as exc:
            raise self._death() from exc
        # Not skipped: nobody knows whether another one follows.
        self.is_ready = self.is_ready or message[0] == "ready"
        return message

    def look(self) -> None:
        """To be called about each second while the process is waited for: says so if it hangs."""
        self._watch.task = self.task
        self._watch.look()

    def look_no_more(self) -> None:
        """What was waited for came."""
        if self._watch.is_waiting:
            self._watch.done()

    def _death(self) -> WorkerError:
        self._process.join(_EXIT_SECS)
        code = self._process.exitcode
        text = f"{self.where}: {self.name} (pid {self.pid}) "
        is_killed = code is not None and code == -getattr(signal, "SIGKILL", 9)
        if code is not None and code < 0:
            try:
                signal_name = signal.Signals(-code).name
            except ValueError:
                signal_name = "unknown"
            text += f"was killed by signal {signal_name} ({-code})"
        else:
            text += f"ended {'unexpectedly' if self.is_ready else 'while starting'}, with exit code {code}"
        text += f" {self.task}." if self.task else "."
        text += last_words(self._watch.status())
        if is_killed:
            text += " Most likely the system ran out of memory: use fewer processes or smaller buffers."
        elif not self.is_ready:
            text += (
                " See its messages above. A script that starts processes needs its code below"
                ' `if __name__ == "__main__":`.'
            )
        error = WorkerError(text)
        error.is_located = True
        return error

    def hang_up(self) -> None:
        """Ask it to end, without waiting."""
        if not self.conn.closed:
            self.conn.close()

    def close(self) -> None:
        """End it."""
        self._finalizer()


def _end(child: Any, conn: Connection, owner_pid: int) -> None:  # Any: the process, of the type of the start method
    if os.getpid() != owner_pid:
        return  # in a fork, which does not own it
    if not conn.closed:
        conn.close()
    for end in (None, child.kill):  # it does not listen to SIGTERM
        if end is not None:
            end()
        child.join(_EXIT_SECS)
        if not child.is_alive():
            return


def _main(conn: Connection, parent_pid: int, serve: Serve, payload: bytes, environ: dict[str, str], who: str) -> None:
    """
    Main function of the process.

    :param conn: to the parent
    :param parent_pid: process to live no longer than
    :param serve: see :class:`ChildProcess`
    :param payload: for it
    :param environ: of the parent
    :param who: for messages
    """
    leave_signals_to_parent()
    threading.Thread(target=watch_parent, args=(parent_pid,), name="watch-parent", daemon=True).start()
    set_environment(environ)
    state.in_worker = True
    try:
        start_page(conn, "starting")
        try:
            job = loads_in_worker(payload)
            limit_threads()
            # The parent may be a loader worker: its shard is its own matter.
            state.num_workers = 0
        except BaseException as exc:
            send_error(conn, None, exc, where="the options for the first time", who=who)
            return
        if not seq_blocks.CAN_SHARE:
            patient: Any = PatientConnection(conn)  # Any: with the methods of a Connection that are used
            conn = patient
        conn.send(("ready", None))
        serve(conn, job)
    except (EOFError, BrokenPipeError, ConnectionResetError):
        return  # the parent closed the connection or is gone
    except pickle.PicklingError as exc:
        send_error(conn, None, exc, where="the data", who=who)
    finally:
        conn.close()


def wait_any(children: list[ChildProcess], extra: list[Any], timeout_secs: float | None) -> list[Any]:
    """
    :param children: whose messages or death are waited for
    :param extra: further objects for :func:`multiprocessing.connection.wait`. Any: its types
    :param timeout_secs: None: as long as it takes
    :return: those that are ready: children or objects of extra
    """
    owners: dict[Any, Any] = {obj: obj for obj in extra}
    for child in children:
        owners[child.conn] = owners[child.sentinel] = child
    ready = connection.wait(list(owners), timeout=timeout_secs)
    return list({id(owners[obj]): owners[obj] for obj in ready}.values())
