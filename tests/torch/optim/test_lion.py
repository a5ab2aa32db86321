"""The optimizer Lion."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn.errors import OptionError
from returnn.torch.optim.lion import Lion
from returnn.torch.updater import Updater, get_optimizer_class


def test_two_steps_by_hand() -> None:
    param = torch.nn.Parameter(torch.tensor([1.0, -2.0, 3.0], dtype=torch.float64))
    without_gradient = torch.nn.Parameter(torch.ones(2))
    optimizer = Lion([param, without_gradient], lr=0.1, betas=(0.9, 0.5), weight_decay=0.2)
    param.grad = torch.tensor([4.0, -1.0, 0.0], dtype=torch.float64)
    optimizer.step()
    # p * (1 - 0.1 * 0.2) - 0.1 * sign(0.1 * g)
    assert param.tolist() == pytest.approx([0.98 - 0.1, -1.96 + 0.1, 2.94])
    # m = 0.5 * g = [2, -0.5, 0]; the direction is the sign of 0.9 * m + 0.1 * g
    param.grad = torch.tensor([-1.0, 40.0, -3.0], dtype=torch.float64)
    optimizer.step()
    assert param.tolist() == pytest.approx([0.88 * 0.98 - 0.1, -1.86 * 0.98 - 0.1, 2.94 * 0.98 + 0.1])
    assert optimizer.state[param]["exp_avg"].tolist() == pytest.approx([0.5, 19.75, -1.5])
    assert without_gradient.tolist() == [1, 1] and without_gradient not in optimizer.state


def test_it_learns_and_its_state_can_be_restored() -> None:
    def run(num_steps: int, state: dict[str, Any] | None, start: torch.Tensor) -> tuple[torch.Tensor, dict[str, Any]]:
        param = torch.nn.Parameter(start.clone())
        optimizer = Lion([param], lr=0.01, betas=(0.9, 0.9))  # a longer memory swings for longer
        if state is not None:
            optimizer.load_state_dict(state)
        for _ in range(num_steps):
            optimizer.zero_grad()
            (param - 3).square().sum().backward()
            optimizer.step()
        return param.detach(), optimizer.state_dict()

    start = torch.tensor([1.0, 5.0])
    whole, _ = run(400, None, start)
    assert torch.allclose(whole, torch.tensor(3.0), atol=0.1)
    half, state = run(77, None, start)
    assert torch.equal(run(323, state, half)[0], whole)


def test_closure() -> None:
    param = torch.nn.Parameter(torch.ones(1))

    def closure() -> torch.Tensor:
        loss = param.sum()
        loss.backward()
        return loss

    assert Lion([param], lr=0.5).step(closure).item() == 1 and param.item() == 0.5


def test_from_the_config() -> None:
    name = "returnn.torch.optim.lion.Lion"
    assert get_optimizer_class(name) is Lion
    model = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3))
    config = {"optimizer": {"class": name, "weight_decay": 0.1, "betas": (0.9, 0.98)}, "extern_data": {}}
    updater = Updater(config=config, network=model, device="cpu", initial_learning_rate=0.5)
    updater.create_optimizer()
    optimizer = updater.get_optimizer()
    assert isinstance(optimizer, Lion)
    assert {g["lr"] for g in optimizer.param_groups} == {0.5}


@pytest.mark.parametrize("kwargs", [{"lr": -1.0}, {"betas": (0.9, 1.0)}, {"betas": (0.9,)}, {"weight_decay": -0.1}])
def test_mistakes(kwargs: dict[str, Any]) -> None:
    with pytest.raises(OptionError):
        Lion([torch.nn.Parameter(torch.ones(1))], **kwargs)
