"""
The server process that workers are forked from: it imports once what all workers need.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import types
from collections.abc import Iterator, Mapping
from multiprocessing import forkserver, resource_tracker

from returnn.options.loader import LoaderOptions
from returnn.util.group_signals import signals_wait

__all__ = ["limited_threads", "needs_torch", "start_method", "start_server", "worker_environ"]

_PRELOAD = (
    "returnn.util.group_signals",
    "numpy",
    "h5py",
    "returnn.datasets._loading.worker",
    "returnn.datasets.basic",
    "returnn.datasets.hdf",
)
#: Libraries for linear algebra read these when they are loaded, and take all cores otherwise. The threads of several
#: workers then wait for each other: small matrix products take five times as long.
_THREAD_VARIABLES = ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS")


def worker_environ() -> dict[str, str]:
    """:return: our environment for a worker: one thread for linear algebra, as far as the user has not set the variable"""
    return {**os.environ, **_thread_limits()}


def limited_threads() -> contextlib.AbstractContextManager[None]:
    """:return: processes that are started in this context have these variables from the first instruction on"""
    return _environ_set(_thread_limits())


def _thread_limits() -> dict[str, str]:
    return {name: "1" for name in _THREAD_VARIABLES if name not in os.environ}


@contextlib.contextmanager
def _environ_set(values: Mapping[str, str]) -> Iterator[None]:
    """:param values: set in our environment, and restored at the end"""
    saved = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    try:
        yield
    finally:
        for name, old in saved.items():
            if old is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = old


def start_method(options: LoaderOptions) -> str:
    """:return: "forkserver" or "spawn": what is asked for, if this system has it"""
    methods = multiprocessing.get_all_start_methods()
    wanted = options.start_method or "forkserver"
    return wanted if wanted in methods else "spawn"


def needs_torch(payload: bytes) -> bool:
    """
    :param payload: for the workers
    :return: whether they will import torch: through the payload, or because they import the main script
    """
    if "torch" not in sys.modules:
        return False
    if b"torch" in payload:
        return True
    for value in vars(sys.modules["__main__"]).values():
        module = value.__name__ if isinstance(value, types.ModuleType) else getattr(value, "__module__", None)
        if isinstance(module, str) and module.startswith(("torch", "returnn.torch")):
            return True
    return False


def start_server(*, with_torch: bool) -> None:
    """
    Start the server process if it does not run yet. Returns at once, the server imports in the background:
    when called early, workers start sooner. Only for systems with the start method "forkserver"; else nothing happens.

    :param with_torch: import torch too, since the workers will need it
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return
    forkserver.set_forkserver_preload([*_PRELOAD, "torch"] if with_torch else list(_PRELOAD))
    # Older Python versions do not give it our sys.path. The workers get the true environment later.
    python_path = os.pathsep.join(path or os.getcwd() for path in sys.path)
    # The server starts it, which unblocks signals.
    resource_tracker.ensure_running()
    with signals_wait(), _environ_set({**_thread_limits(), "PYTHONPATH": python_path}):
        forkserver.ensure_running()
