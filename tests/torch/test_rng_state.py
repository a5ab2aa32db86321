"""Tests of saving and restoring random generators."""

from __future__ import annotations

import pathlib
import random
from typing import Any

import numpy
import pytest
import torch

from returnn.errors import CheckpointError
from returnn.torch.checkpoint import load_file, save_file_atomic
from returnn.torch.rng_state import get_rng_state, set_rng_state


def draw() -> list[float]:
    values = [random.random(), random.gauss(0, 1), float(numpy.random.rand()), float(numpy.random.randn())]
    return values + torch.rand(3).tolist()


@pytest.mark.parametrize("num_before", [0, 1, 2])  # normal distributions keep every second value
def test_sequence_continues(tmp_path: pathlib.Path, num_before: int) -> None:
    for _ in range(num_before):
        draw()
    save_file_atomic({"rng_state": get_rng_state()}, tmp_path / "m.pt")
    expected = draw() + draw()
    draw()
    set_rng_state(load_file(tmp_path / "m.pt")["rng_state"])
    assert draw() + draw() == expected


def test_partial_and_broken_state() -> None:
    before = random.getstate()
    set_rng_state({"torch": torch.get_rng_state()})
    assert random.getstate() == before
    broken: list[dict[str, Any]] = [{"numpy": {}}, {"python": 3}, {"torch": torch.zeros(3)}]
    for bad in broken:
        with pytest.raises(CheckpointError, match="random generator state"):
            set_rng_state(bad)
