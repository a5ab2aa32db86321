"""Files crafted to hurt: each ends in a worded error or a result, within the time and memory that a reader may take."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from tests.robustness.crafted_files import craft
from tests.robustness.read_file import READERS
from tests.robustness.server import ReadServer

#: Every third case by default, since all take about a minute; all before a release.
ALL_CASES = bool(os.environ.get("RETURNN_TEST_ALL_CASES"))


@pytest.mark.slow
def test_no_crash_no_hang(tmp_path: Path) -> None:
    server = ReadServer()
    bad = []
    num = 0
    readers = set()
    try:
        for number, case in enumerate(craft(tmp_path)):
            if number % 3 and not ALL_CASES:
                continue
            result = server.read(case.reader, case.path)
            num += 1
            readers.add(case.reader)
            if result["end"] not in ("ok", "worded") or (case.must_end and result["end"] != case.must_end):
                bad.append(f"{case.reader}, {case.name}: {result['end']}\n{result['text']}")
            assert "do not tell" not in result["text"]
    finally:
        server.close()
    assert not bad, f"{len(bad)} of {num}:\n" + "\n".join(bad)
    assert num >= (700 if ALL_CASES else 250)
    assert readers == set(READERS)
