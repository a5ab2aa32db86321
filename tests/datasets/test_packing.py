"""The option packed_tensors."""

from __future__ import annotations

from typing import Any

import pytest

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets.packing import packed_batch_config, packed_batch_key_opts


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, None),
        (False, None),
        (True, {"gap": 0, "align": 1, "per_key": {}}),
        ({}, {"gap": 0, "align": 1, "per_key": {}}),
        ({"gap": 3}, {"gap": 3, "align": 1, "per_key": {}}),
        ({"align": 8, "per_key": {"a": {"gap": 1}}}, {"gap": 0, "align": 8, "per_key": {"a": {"gap": 1}}}),
    ],
)
def test_config(value: Any, expected: Any) -> None:
    with process_state_ctx(global_config=Config({"packed_tensors": value})):
        assert packed_batch_config() == expected
    with process_state_ctx(global_config=Config({})):
        assert packed_batch_config() is None


@pytest.mark.parametrize(
    "value",
    [
        {"gaps": 1},
        {"gap": -1},
        {"align": 0},
        {"align": True},
        3,
        {"per_key": 3},
        {"per_key": {"a": {"x": 1}}},
        {"per_key": {"a": {"packed": 1}}},
    ],
)
def test_wrong_values(value: Any) -> None:
    with process_state_ctx(global_config=Config({"packed_tensors": value})):
        with pytest.raises(AssertionError, match="packed_tensors"):
            packed_batch_config()


def test_key_opts() -> None:
    packing = {"gap": 2, "align": 4, "per_key": {"a": {"gap": 0}, "b": {"packed": False}, "c": {"packed": True}}}
    assert packed_batch_key_opts(packing, "a") == {"gap": 0, "align": 4}
    assert packed_batch_key_opts(packing, "b") is None
    assert packed_batch_key_opts(packing, "c") == packed_batch_key_opts(packing, "x") == {"gap": 2, "align": 4}
    assert packed_batch_key_opts(None, "a") is None
