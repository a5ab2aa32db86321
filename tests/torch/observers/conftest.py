"""Fixtures for trainings."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from returnn._state import process_state_ctx
from returnn.log import log


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield
