"""Broken files of all formats: each ends in a worded error or a result. More of them: ``python -m tests.robustness.broken_files``."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.robustness.broken_files import run_cases
from tests.robustness.mutations import MUTATIONS
from tests.robustness.read_file import READERS
from tests.robustness.seed_files import make_seed_files


def test_each_reader_has_a_whole_file(tmp_path: Path) -> None:
    assert make_seed_files(tmp_path).keys() == READERS.keys()


@pytest.mark.slow
def test_no_crash_no_hang(tmp_path: Path) -> None:
    cases = list(run_cases(tmp_path, num_per_reader=60, seed=1))
    assert len(cases) >= 1000
    assert {case.mutation for case in cases} == set(MUTATIONS)
    bad = [
        f"{c.reader} case {c.number} ({c.mutation}): {c.end}\n{c.text}" for c in cases if c.end not in ("ok", "worded")
    ]
    assert not bad, "\n".join(bad)
    # Reading is really done: for each format there are errors, and none is an empty phrase.
    assert {case.reader for case in cases if case.end == "worded"} == set(READERS)
    assert all(len(case.text) > 30 for case in cases if case.end == "worded")
