"""
The server process that workers are forked from: it imports once what all workers need.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import types
from multiprocessing import forkserver

from returnn.options.loader import LoaderOptions

__all__ = ["start_method", "start_server", "needs_torch"]

_PRELOAD = ("numpy", "h5py", "returnn.datasets._loading.worker", "returnn.datasets.basic", "returnn.datasets.hdf")


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
    saved = os.environ.get("PYTHONPATH")
    # Older Python versions do not give it our sys.path. The workers get the true environment later.
    os.environ["PYTHONPATH"] = os.pathsep.join(path or os.getcwd() for path in sys.path)
    try:
        forkserver.ensure_running()
    finally:
        if saved is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = saved
