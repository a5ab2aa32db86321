"""The direct update equals that of torch to the last bit, and leaves what it does not know to torch."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.optim.optimizer import register_optimizer_step_pre_hook

from returnn.torch.optim.direct_adam import DirectAdam


def _params(seed: int, num: int, dtype: torch.dtype = torch.float32) -> list[torch.nn.Parameter]:
    gen = torch.Generator().manual_seed(seed)
    shapes = [(5, 3), (7,), (), (2, 3, 4), (1, 1)]
    return [torch.nn.Parameter(torch.randn(shapes[i % 5], generator=gen, dtype=dtype)) for i in range(num)]


def _set_gradients(params: list[torch.nn.Parameter], seed: int, missing: set[int]) -> None:
    gen = torch.Generator().manual_seed(seed)
    for i, param in enumerate(params):
        grad = torch.randn(param.shape, generator=gen, dtype=param.dtype) * 10.0 ** (i % 5 - 2)
        param.grad = None if i in missing else grad


def _assert_same(a: torch.optim.Optimizer, b: torch.optim.Optimizer) -> None:
    for group_a, group_b in zip(a.param_groups, b.param_groups, strict=True):
        for x, y in zip(group_a["params"], group_b["params"], strict=True):
            assert torch.equal(x, y)
            assert a.state[x].keys() == b.state[y].keys()
            for key in a.state[x]:
                assert torch.equal(a.state[x][key], b.state[y][key]), key


@settings(deadline=None, max_examples=40)
@given(
    cls=st.sampled_from([torch.optim.Adam, torch.optim.AdamW]),
    num=st.integers(1, 7),
    split=st.integers(0, 6),
    dtype=st.sampled_from([torch.float32, torch.float64]),
    lr=st.sampled_from([1e-3, 0.1, 0.0]),
    betas=st.sampled_from([(0.9, 0.999), (0.5, 0.98), (0.0, 0.0)]),
    weight_decay=st.sampled_from([0.0, 0.01]),
    missing=st.lists(st.sets(st.integers(0, 6), max_size=3), min_size=1, max_size=8),
)
def test_same_as_torch_to_the_last_bit(
    cls: Any,  # Any: two classes with other arguments; options
    num: int,
    split: int,
    dtype: torch.dtype,
    lr: float,
    betas: tuple[float, float],
    weight_decay: float,
    missing: list[set[int]],
) -> None:
    """Any options, groups, and parameters without gradient in some steps; both of torch's forms."""
    optimizers = []
    for foreach in (True, True, False):
        params = _params(3, num, dtype)
        groups: list[dict[str, Any]] = [{"params": part} for part in (params[:split], params[split:]) if part]
        groups[-1]["weight_decay"] = 0.1
        optimizers.append(cls(groups, lr=lr, betas=betas, weight_decay=weight_decay, foreach=foreach))
    ours, torch_foreach, torch_plain = optimizers
    direct = DirectAdam(ours)
    for i, names in enumerate([set(), set(), *missing, set()]):
        for optimizer in optimizers:
            _set_gradients([p for group in optimizer.param_groups for p in group["params"]], i, names)
        if i == 3:
            for optimizer in optimizers:
                optimizer.param_groups[0]["lr"] = 0.5  # e.g. of the next epoch
        if not direct.step():
            ours.step()
        torch_foreach.step()
        torch_plain.step()
    _assert_same(ours, torch_foreach)
    _assert_same(ours, torch_plain)


def _ready(cls: Any = torch.optim.Adam, **kwargs: Any) -> tuple[torch.optim.Optimizer, DirectAdam]:
    """:return: an optimizer after its first step. Any: class and its options"""
    params = _params(1, 3)
    optimizer = cls(params, **{"lr": 0.01, **kwargs})
    _set_gradients(params, 1, set())
    optimizer.step()
    return optimizer, DirectAdam(optimizer)


def test_does_the_usual_step() -> None:
    """It is in use at all."""
    for cls in (torch.optim.Adam, torch.optim.AdamW):
        _, direct = _ready(cls, foreach=True)
        assert direct.step() and direct.step()


@pytest.mark.parametrize(
    "kwargs",
    [{"foreach": True, "amsgrad": True}, {"foreach": True, "maximize": True}, {"fused": True}, {"foreach": False}],
)
def test_other_forms_are_left_to_torch(kwargs: dict[str, Any]) -> None:  # Any: options
    """Nothing is done."""
    optimizer, direct = _ready(**kwargs)
    before = copy.deepcopy(optimizer.state_dict())
    assert not direct.step()
    assert str(before) == str(optimizer.state_dict())


def test_other_classes_are_left_to_torch() -> None:
    """Classes of users too, which may have their own step."""

    class Own(torch.optim.Adam):
        pass

    for cls in (torch.optim.SGD, torch.optim.NAdam, Own):
        _, direct = _ready(cls, foreach=True)
        assert not direct.step()


def test_first_update_is_left_to_torch() -> None:
    """It makes the states."""
    params = _params(1, 3)
    optimizer = torch.optim.Adam(params, foreach=True)
    direct = DirectAdam(optimizer)
    _set_gradients(params, 1, set())
    assert not direct.step()
    optimizer.step()
    assert direct.step()


def test_hooks_see_each_step() -> None:
    """Those of one optimizer, global ones, and a replaced method, as of torch's schedulers."""
    optimizer, direct = _ready(foreach=True)
    assert direct.step()
    handle = optimizer.register_step_post_hook(lambda *_: None)
    assert not direct.step()
    handle.remove()
    assert direct.step()
    handle = register_optimizer_step_pre_hook(lambda *_: None)
    assert not direct.step()
    handle.remove()
    assert direct.step()
    torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)
    assert not direct.step()


def test_loaded_states_are_used() -> None:
    """load_state_dict makes other tensors."""
    optimizer, direct = _ready(foreach=True)
    assert direct.step()
    saved = copy.deepcopy(optimizer.state_dict())
    direct.step()
    optimizer.load_state_dict(saved)
    assert direct.step()
    assert all(float(state["step"]) == 3.0 for state in optimizer.state.values())


def test_gives_up_if_it_never_can() -> None:
    """Trials cost time."""
    optimizer, direct = _ready(foreach=True)
    optimizer.register_step_post_hook(lambda *_: None)
    for _ in range(100):
        assert not direct.step()
    optimizer._optimizer_step_post_hooks.clear()
    assert not direct.step()
