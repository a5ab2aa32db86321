"""
For all tests: the log, a process-wide object, is after each test as it was before; and Ctrl-C has an effect
also where the tests run in the background of a shell, which lets its children ignore it. No test depends on the time
it takes.
"""

from __future__ import annotations

import logging
import signal
from collections.abc import Iterator

import hypothesis
import pytest

from returnn.log import Log, log

if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # programs that the tests start would inherit it
    signal.signal(signal.SIGINT, signal.default_int_handler)

# How long an example takes depends on what else the machine does.
hypothesis.settings.register_profile("returnn", deadline=None)
hypothesis.settings.load_profile("returnn")


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
