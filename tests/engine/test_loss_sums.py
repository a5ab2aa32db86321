"""Losses of several ranks together."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from returnn.engine.host_copy import HostCopy
from returnn.engine.losses import LossAccumulator
from returnn.frontend.loss import Loss


def accumulated(
    steps: list[dict[str, tuple[float, float | None]]], dtype: torch.dtype = torch.float32
) -> LossAccumulator:
    """:return: with these losses; per step by name value and norm factor"""
    res = LossAccumulator()
    for i, step in enumerate(steps):
        res.add(
            {k: Loss(loss=torch.tensor(v, dtype=dtype), name=k, inv_norm_factor=n) for k, (v, n) in step.items()}, i
        )
    return res


#: Like losses: float32, not too different in size.
VALUES = st.floats(0.001953125, 65536.0, width=32)
STEPS = st.lists(st.tuples(VALUES, st.integers(1, 5000)), max_size=40)


@given(steps=STEPS, num_ranks=st.integers(1, 6))
def test_any_number_of_ranks_gives_the_score_of_one_process_to_the_last_bit(
    steps: list[tuple[float, int]], num_ranks: int
) -> None:
    losses: list[dict[str, tuple[float, float | None]]] = [{"ce": (v, float(n))} for v, n in steps]
    parts = [accumulated(losses[rank::num_ranks]).sums() for rank in range(num_ranks)]
    merged = LossAccumulator.of_sums(parts)
    assert merged.means() == accumulated(losses).means()
    assert merged.num_steps == len(steps)


def test_losses_that_only_some_ranks_have() -> None:
    parts = [
        accumulated([]).sums(),
        accumulated([{"ce": (3.0, 2.0), "fer": (1.0, None)}]).sums(),
        accumulated([{"ce": (5.0, 2.0)}, {"aux": (1.0, 4.0), "ce": (1.0, 1.0)}]).sums(),
    ]
    merged = LossAccumulator.of_sums(parts)
    assert merged.means() == {"ce": 9.0 / 5.0, "fer": 1.0, "aux": 0.25}
    assert list(merged.means()) == ["ce", "fer", "aux"]
    assert merged.num_steps == 3


def test_no_data_anywhere() -> None:
    merged = LossAccumulator.of_sums([accumulated([]).sums(), accumulated([]).sums()])
    assert merged.num_steps == 0 and merged.means() == {}


def test_inf_and_nan() -> None:
    parts = [
        accumulated([{"a": (math.inf, 1.0), "b": (1.0, 1.0)}]).sums(),
        accumulated([{"a": (-math.inf, 1.0)}]).sums(),
    ]
    merged = LossAccumulator.of_sums(parts)
    assert math.isnan(merged.means()["a"]) and merged.means()["b"] == 1.0
    assert merged.nonfinite_steps == [0, 0]


def test_steps_that_do_not_count() -> None:
    """In a training: as if they were not there, also after the sums were taken over."""
    losses = LossAccumulator(skips_nonfinite=True)
    steps = [(1.0, 2.0), (math.nan, 5.0), (2.0, 3.0), (math.inf, 1.0)]
    for i, (value, norm) in enumerate(steps):
        losses.add({name: Loss(torch.tensor(value), name, inv_norm_factor=norm) for name in ("ce", "mse")}, i)
        losses.add({"never": Loss(torch.tensor(math.nan), "never", inv_norm_factor=1.0)}, 10 + i)
        losses = LossAccumulator.of_sums([losses.sums()], skips_nonfinite=True)
    assert losses.means()["ce"] == losses.means()["mse"] == 3.0 / 5.0
    assert math.isnan(losses.means()["never"])
    assert losses.num_steps == 8 and losses.nonfinite_steps == [10, 1, 11, 12, 3, 13]


@pytest.mark.parametrize("is_ready", [False, True])
def test_numbers_that_come_later_are_added_in_the_order_of_the_steps(
    is_ready: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As from a device: sent in groups, added up when they have come or are asked for; the same sums to the last bit."""
    steps = [{"a": _loss(1 / (i + 3), i % 4), "b": _loss(math.inf if i == 120 else i, 1)} for i in range(257)]
    expected = LossAccumulator(skips_nonfinite=True)
    for i, losses in enumerate(steps):
        expected.add(losses, i)
    monkeypatch.setattr("returnn.engine.losses._are_here", lambda tensors: False)
    monkeypatch.setattr(HostCopy, "is_ready", lambda self: is_ready)
    got = LossAccumulator(skips_nonfinite=True)
    for i, losses in enumerate(steps):
        got.add(losses, i)
        if i == 150:
            assert got.last_step().values["b"] == 150
    assert got.means() == expected.means()
    assert got.sums() == expected.sums() and got.sums().nonfinite_steps == [120]


def _loss(value: float, norm: float) -> Loss:
    return Loss(loss=torch.tensor(value), name="loss", inv_norm_factor=torch.tensor(float(norm)))
