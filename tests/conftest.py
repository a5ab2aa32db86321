"""For all tests: the log, a process-wide object, is after each test as it was before."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from returnn.log import Log, log


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
