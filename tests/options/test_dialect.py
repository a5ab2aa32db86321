"""Tests of :mod:`returnn.options.dialect`."""

from __future__ import annotations

from returnn.config import Config
from returnn.options.dialect import is_mainline


def test_extern_data_decides() -> None:
    assert not is_mainline({})
    assert not is_mainline(Config({"backend": "torch"}))
    assert is_mainline({"extern_data": {"data": {"dim": 3}}})
    assert is_mainline(Config({"extern_data": {}}))
