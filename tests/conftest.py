"""
For all tests: the log, a process-wide object, is after each test as it was before; and Ctrl-C has an effect
also where the tests run in the background of a shell, which lets its children ignore it. No test depends on the time
it takes. With ``-n 2``, each process gets half of the tests in order, and takes from the other one when it is done; and
each computes with one thread, else they wait for each other's.
"""

from __future__ import annotations

import logging
import os
import signal
from collections.abc import Iterator
from multiprocessing import forkserver
from typing import Any

import hypothesis
import pytest

from returnn.log import Log, log

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # programs that the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

os.environ.setdefault("OMP_NUM_THREADS", "1")  # read when torch is imported

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("returnn", deadline=None)
hypothesis.settings.load_profile("returnn")


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> Any:  # Any: of pytest-xdist, which is optional
    """
    Instead of "load", the default: that hands out large parts, and at the end one process worked for minutes alone; and tests
    of one module run in one process, which so needs its fixtures and servers once.
    """
    if config.getoption("dist") != "load":
        return None
    from xdist.scheduler import WorkStealingScheduling  # type: ignore[import-untyped]

    return WorkStealingScheduling(config, log)


@pytest.fixture(autouse=True, scope="session")
def _server_of_workers_has_torch() -> Iterator[None]:
    """
    All loaders of this process get their workers from one server, which imports what the first one asks for. If that needs no
    torch, each worker of later ones would import it.
    """
    with pytest.MonkeyPatch.context() as patch:
        original = forkserver.set_forkserver_preload
        patch.setattr(forkserver, "set_forkserver_preload", lambda names: original([*names, "torch"]))
        yield


@pytest.fixture(autouse=True)
def _log_as_before() -> Iterator[None]:
    was_initialized = log.initialized
    yield
    if log.initialized and not was_initialized:
        logger = logging.getLogger("returnn")
        for handler in list(logger.handlers):
            logger.removeHandler(handler)
            handler.close()
        vars(log).clear()
        vars(log).update(vars(Log()))
