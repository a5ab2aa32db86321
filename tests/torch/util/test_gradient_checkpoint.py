"""Checkpointed modules: the same gradients bit by bit, less kept for the backward pass, the same names."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any

import pytest
import torch

from returnn.errors import ModelError
from returnn.torch.util.gradient_checkpoint import checkpoint_modules, gradient_checkpoint


class Layer(torch.nn.Module):
    """Feed-forward with dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.up = torch.nn.Linear(4, 32)
        self.drop = torch.nn.Dropout(0.2)
        self.down = torch.nn.Linear(32, 4)
        self.num_calls = 0

    def forward(self, x: torch.Tensor, *, scale: float = 1.0) -> torch.Tensor:
        """[B,4] -> [B,4]"""
        self.num_calls += 1
        y: torch.Tensor = self.down(self.drop(torch.relu(self.up(x)))) * scale
        return y


class Model(torch.nn.Module):
    """Some layers."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = torch.nn.ModuleList(Layer() for _ in range(3))
        self.out = torch.nn.Linear(4, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,4] -> [B,2]"""
        for layer in self.layers:
            x = x + layer(x, scale=0.5)
        y: torch.Tensor = self.out(x)
        return y


def make_model() -> Model:
    torch.manual_seed(1)
    return Model()


def run(model: torch.nn.Module, *, autocast: bool = False) -> tuple[list[torch.Tensor], int]:
    """:return: output and gradients; number of elements kept for the backward pass, without parameters"""
    params = {p.data_ptr() for p in model.parameters()}
    kept: dict[int, int] = {}

    def pack(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in params:
            kept[tensor.data_ptr()] = tensor.numel()
        return tensor

    x = torch.randn(5, 4, generator=torch.Generator().manual_seed(2))
    torch.manual_seed(3)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda t: t):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = model(x)
            loss = out.float().pow(2).sum()
        num_kept = sum(kept.values())
    torch.rand(7)  # other random numbers between forward and backward pass
    loss.backward()
    grads = [p.grad for p in model.parameters() if p.grad is not None]
    assert len(grads) == len(list(model.parameters()))
    return [out.detach(), *grads], num_kept


@pytest.mark.parametrize("autocast", [False, True])
@pytest.mark.parametrize("what", [[Layer], ["layers.*"], ["layers.0", "layers.2"], ["layers.1.up", Layer]])
def test_gradients_are_bit_identical_with_less_memory(what: list[Any], autocast: bool) -> None:
    plain, num_plain = run(make_model(), autocast=autocast)
    model = make_model()
    names = list(model.state_dict())
    changed = checkpoint_modules(model, what)
    assert changed == (["layers.0", "layers.2"] if "layers.0" in what else ["layers.0", "layers.1", "layers.2"])
    assert list(model.state_dict()) == names and [n for n, _ in model.named_parameters()] == names
    checkpointed, num_checkpointed = run(model, autocast=autocast)
    assert all(torch.equal(a, b) for a, b in zip(checkpointed, plain, strict=True))
    assert num_checkpointed < 0.6 * num_plain
    assert model.layers[0].num_calls == 2


def test_evaluation_is_a_plain_call() -> None:
    model = make_model().eval()
    x = torch.ones(2, 4)
    with torch.no_grad():
        expected = model(x)
        checkpoint_modules(model, [Layer])
        assert torch.equal(model(x), expected)
    assert model.layers[0].num_calls == 2


def test_twice_is_as_once() -> None:
    model = make_model()
    checkpoint_modules(model, [Layer])
    checkpoint_modules(model, ["layers.*"])
    run(model)
    assert model.layers[0].num_calls == 2


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_copies_are_checkpointed_and_independent(how: Callable[[Model], Model]) -> None:
    model = make_model()
    checkpoint_modules(model, [Layer])
    other = how(model)
    expected, _ = run(make_model())
    with torch.no_grad():
        next(model.layers[0].parameters()).zero_()
    got, _ = run(other)
    assert all(torch.equal(a, b) for a, b in zip(got, expected, strict=True))
    assert other.layers[0].num_calls == 2 and model.layers[0].num_calls == 0


def test_hooks_of_the_module_run() -> None:
    model = make_model()
    heard: list[str] = []
    model.layers[0].register_forward_hook(lambda *_args: heard.append("forward"))
    checkpoint_modules(model, [Layer])
    run(model)
    assert heard == ["forward"]


def test_functions() -> None:
    w = torch.randn(4, 4, requires_grad=True)
    x = torch.randn(3, 4)

    def func(x: torch.Tensor, *, power: int) -> torch.Tensor:
        return torch.nn.functional.dropout(torch.tanh(x @ w), 0.3).pow(power)

    grads: list[torch.Tensor | None] = []
    calls: list[Any] = [func, lambda x, power: gradient_checkpoint(func, x, power=power)]
    for call in calls:
        torch.manual_seed(1)
        w.grad = None
        call(x, power=2).sum().backward()
        grads.append(w.grad)
    assert grads[0] is not None and torch.equal(grads[0], grads[1])  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("what", "text"),
    [
        (["encoder.*"], r"'encoder.\*' fits to no submodule of Model. It has layers, layers.0, "),
        ([torch.nn.LSTM], "LSTM.* fits to no submodule of Model"),
        ([3], r"expected classes of modules or names of submodules, got 3 \(int\)"),
    ],
)
def test_mistakes(what: list[Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        checkpoint_modules(make_model(), what)
