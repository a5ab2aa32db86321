"""tools/dump-pickle.py as a program."""

from __future__ import annotations

import gzip
import math
import pickle
from pathlib import Path
from typing import Any

import numpy
import pytest

from tests.tools.tool_program import imports_torch, last_error_line, run_tool


@pytest.mark.parametrize(
    ("content", "lines"),
    [
        ({"b": 1, "a": 2}, ["{'a': 2, 'b': 1}"]),
        (
            {"b": [1, (2,), math.nan], "a": {"x": {3}}},
            ["{", "'a': {'x': set([", "3,", "])},", "'b': [", "1,", "(2,),", "float('nan'),", "],", "}"],
        ),
        ({"a": numpy.float64(0.5), "b": numpy.str_("x")}, ["{'a': 0.5, 'b': 'x'}"]),
        (numpy.arange(3), ["array([0, 1, 2])"]),
    ],
)
def test_golden_texts(tmp_path: Path, content: Any, lines: list[str]) -> None:
    (tmp_path / "x.pkl").write_bytes(pickle.dumps(content))
    (tmp_path / "x.pkl.gz").write_bytes(gzip.compress(pickle.dumps(content)))
    for name in ("x.pkl", "x.pkl.gz"):
        assert run_tool("dump-pickle", name, cwd=tmp_path).stdout.splitlines() == lines


class _Evil:
    def __reduce__(self) -> tuple[Any, ...]:
        return print, ("executed",)


@pytest.mark.parametrize(
    ("content", "word"),
    [
        (pickle.dumps(_Evil()), "print is not plain data"),
        (b"\x80\x04nonsense", "x.pkl"),
        (pickle.dumps({1: 2, "a": 3}), "cannot be sorted"),
    ],
)
def test_refused_files(tmp_path: Path, content: bytes, word: str) -> None:
    (tmp_path / "x.pkl").write_bytes(content)
    res = run_tool("dump-pickle", "x.pkl", cwd=tmp_path, check=False)
    assert word in last_error_line(res) and "x.pkl" in last_error_line(res)
    assert not res.stdout


def test_missing_and_truncated_file_and_help(tmp_path: Path) -> None:
    assert "missing.pkl" in last_error_line(run_tool("dump-pickle", "missing.pkl", cwd=tmp_path, check=False))
    (tmp_path / "x.pkl.gz").write_bytes(b"no gzip")
    assert "x.pkl.gz" in last_error_line(run_tool("dump-pickle", "x.pkl.gz", cwd=tmp_path, check=False))
    assert "example" in run_tool("dump-pickle", "--help", cwd=tmp_path).stdout
    assert not imports_torch("dump-pickle", "--help", cwd=tmp_path)
