"""Tests of the buffers that a step with inf or nan has changed: as before, whatever it did to them."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.torch.buffer_guard import BufferGuard

_DTYPES = [torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.uint8, torch.bool, torch.complex64]


class Model(torch.nn.Module):
    """Buffers of all kinds."""

    def __init__(self) -> None:
        super().__init__()
        for i, dtype in enumerate(_DTYPES):
            self.register_buffer(f"in_place_{i}", torch.tensor([0, 1, 3]).to(dtype))
        self.register_buffer("replaced", torch.zeros(2))
        self.register_buffer("constant", torch.arange(5.0))
        self.register_buffer("late", torch.zeros(1))
        self.register_buffer("scalar", torch.zeros((), dtype=torch.int64), persistent=False)
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("none", None)
        self.register_buffer("transposed", torch.zeros(2, 3).t())
        self.norm = torch.nn.BatchNorm1d(2)
        self.frozen = torch.nn.BatchNorm1d(2).eval()

    def step(self, num: int, *, nonfinite: bool = False) -> None:
        """Like a forward pass."""
        value = float("nan") if nonfinite else float(num)
        for i, dtype in enumerate(_DTYPES):
            buffer = self.get_buffer(f"in_place_{i}")
            buffer.copy_(torch.tensor([num % 2, num, value if dtype.is_floating_point or dtype.is_complex else num]))
        self.replaced = self.get_buffer("replaced") + value
        self.get_buffer("scalar").add_(1)
        self.get_buffer("transposed").add_(value)
        for norm in (self.norm, self.frozen):
            norm(torch.full((3, 2), value))


def values(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    """:return: bit by bit; nothing has nan"""
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


@given(
    st.lists(st.tuples(st.integers(1, 3), st.booleans(), st.sets(st.integers(0, 2))), min_size=4, max_size=12),
    st.booleans(),
)
@settings(max_examples=25, deadline=None)
def test_only_what_counts_is_left(groups: list[tuple[int, bool, set[int]]], on_device: bool) -> None:
    """
    Groups of steps, some of which do not count; compared with a model that only does those that do.

    :param groups: number of steps, whether the gradients of the group are nan, indices of the steps with a loss of nan
    :param on_device: whether only a tensor tells that
    """
    model, expected = Model(), Model()
    guard = BufferGuard(model)
    num = step_idx = 0
    for size, group_is_bad, bad_losses in groups:
        num_accumulated = 0
        good = []
        for idx in range(size):
            num += 1
            guard.before_step(step_idx, starts_group=not num_accumulated)
            step_idx += 1
            bad_loss = idx in bad_losses and not on_device
            model.step(num, nonfinite=bad_loss or group_is_bad)
            if bad_loss:
                guard.undo_step()
            else:
                good.append(num)
                num_accumulated += 1
        if num_accumulated:
            guard.after_update(torch.tensor(float(group_is_bad)) if on_device else group_is_bad)
        if not group_is_bad:
            for good_num in good:
                expected.step(good_num)
        assert same(values(model), values(expected))


def test_same_tensors_stay() -> None:
    """Views of them, e.g. of a compiled step, go on working."""
    model = Model()
    guard = BufferGuard(model)
    before = dict(model.named_buffers())
    for flag in (True, torch.tensor(1.0)):
        guard.before_step(0, starts_group=True)
        model.step(1)
        guard.after_update(flag)
        assert all(buffer is before[name] for name, buffer in model.named_buffers())


def test_only_what_changes_is_copied() -> None:
    model = Model()
    guard = BufferGuard(model)
    for step in range(6):
        guard.before_step(step, starts_group=True)
        model.step(step)
        guard.after_update(False)
    unchanged = {"constant", "late", "empty"} | {f"frozen.{name}" for name, _ in model.frozen.named_buffers()}
    assert set(guard.changing) == {name for name, _ in model.named_buffers()} - unchanged
    assert {buffer.name for buffer in guard._group.buffers} == set(guard.changing)


def test_buffers_that_never_change_cost_nothing() -> None:
    model = torch.nn.Module()
    model.register_buffer("positions", torch.arange(5))
    guard = BufferGuard(model)
    for step in range(6):
        guard.before_step(step, starts_group=True)
        guard.after_update(False)
    assert guard.has_buffers and not guard.changing and not guard._group.buffers
    assert not BufferGuard(torch.nn.Linear(2, 3)).has_buffers


def test_a_buffer_that_changes_late() -> None:
    model = Model()
    guard = BufferGuard(model)
    for step in range(10):
        guard.before_step(step, starts_group=True)
        model.step(step)
        if step == 7:
            model.get_buffer("late").add_(1)
        guard.after_update(step == 7)
    assert "late" in guard.changing and "constant" not in guard.changing
    guard.before_step(10, starts_group=True)
    model.get_buffer("late").add_(5)
    guard.after_update(True)
    assert model.get_buffer("late").item() == 1


def test_seen_at_the_next_epoch() -> None:
    model = Model()
    guard = BufferGuard(model)
    for step in range(8):
        guard.before_step(step, starts_group=True)
        if step == 7:
            model.get_buffer("late").add_(1)
    guard.before_step(0, starts_group=True)
    model.get_buffer("late").add_(1)
    guard.undo_step()
    assert "late" in guard.changing and model.get_buffer("late").item() == 1


def test_statistics_that_begin_to_change_with_an_epoch() -> None:
    model = Model()
    guard = BufferGuard(model)
    for step in range(8):
        guard.before_step(step, starts_group=True)
        model.step(step)
    model.frozen.train()
    before = values(model)
    guard.before_step(0, starts_group=True)
    model.step(0, nonfinite=True)
    guard.after_update(True)
    assert same(values(model), before)
