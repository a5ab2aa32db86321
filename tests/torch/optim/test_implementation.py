"""The form of an optimizer that is chosen must give the numbers of the plain form."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch

from returnn.log import log
from returnn.torch.optim.factory import get_optimizer_class
from returnn.torch.optim.implementation import implementation_args
from returnn.torch.updater import Updater
from tests.torch.test_updater import make_batches, make_loss, make_model

#: All that have more than one form, and options that switch on other parts of their formulas.
_OPTIONS: dict[str, list[dict[str, Any]]] = {
    "Adadelta": [{}, {"weight_decay": 0.1, "rho": 0.5}],
    "Adafactor": [{}],
    "Adagrad": [{}, {"lr_decay": 0.1, "weight_decay": 0.1, "initial_accumulator_value": 0.3}],
    "Adam": [{}, {"amsgrad": True}, {"weight_decay": 0.1}, {"maximize": True, "betas": (0.5, 0.7), "eps": 1e-3}],
    "AdamW": [{}, {"amsgrad": True}, {"weight_decay": 0.0}],
    "Adamax": [{}, {"weight_decay": 0.1, "maximize": True}],
    "ASGD": [{}],
    "NAdam": [{}, {"weight_decay": 0.1, "decoupled_weight_decay": True}],
    "RAdam": [{}, {"weight_decay": 0.1}],
    "RMSprop": [{}, {"centered": True, "momentum": 0.9, "weight_decay": 0.1}],
    "Rprop": [{}, {"etas": (0.3, 1.4)}],
    "SGD": [{}, {"momentum": 0.9, "weight_decay": 0.1, "nesterov": True}, {"momentum": 0.9, "dampening": 0.1}],
}
_CASES = [(name, opts) for name, variants in _OPTIONS.items() for opts in variants]


def _train(name: str, opts: Mapping[str, Any], **forms: Any) -> list[torch.Tensor]:
    """:return: parameters after some updates; one parameter has no gradient in some of them"""
    generator = torch.Generator().manual_seed(1)
    shapes = [(17, 33), (5,), (), (3, 4, 5)]
    params = [torch.nn.Parameter(torch.randn(shape, generator=generator)) for shape in shapes]
    make: Any = get_optimizer_class(name)  # Any: the constructor of any optimizer
    optimizer = make(params, lr=0.01, **opts, **forms)
    for step in range(30):
        for idx, param in enumerate(params):
            grad = torch.randn(param.shape, generator=generator)
            param.grad = None if idx == 1 and step % 3 else grad
        optimizer.step()
    return [param.detach() for param in params]


def test_all_optimizers_with_more_than_one_form_are_tested() -> None:
    classes = (c for c in vars(torch.optim).values() if isinstance(c, type) and issubclass(c, torch.optim.Optimizer))
    forms = {c.__name__ for c in classes if "foreach" in inspect.signature(c).parameters}
    assert forms == set(_OPTIONS)


@pytest.mark.parametrize(("name", "opts"), _CASES)
def test_chosen_form_on_the_cpu_is_bit_identical_to_the_plain_one(name: str, opts: dict[str, Any]) -> None:
    chosen = implementation_args(get_optimizer_class(name), opts, torch.nn.Linear(2, 3))
    plain = _train(name, opts, foreach=False)
    for ours, expected in zip(_train(name, opts, **(chosen or {"foreach": False})), plain, strict=True):
        assert torch.equal(ours, expected)


@pytest.mark.parametrize(("name", "opts"), _CASES)
def test_other_forms_only_round_differently(name: str, opts: dict[str, Any]) -> None:
    plain = _train(name, opts, foreach=False)
    for form in ("foreach", "fused"):
        if form in inspect.signature(get_optimizer_class(name)).parameters:
            for ours, expected in zip(_train(name, opts, **{form: True}), plain, strict=True):
                torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-5)


def test_choice() -> None:
    small = torch.nn.Linear(2, 3)
    assert implementation_args(torch.optim.AdamW, {}, small) == {"foreach": True}
    assert implementation_args(torch.optim.NAdam, {}, small) == {}  # differs in the last bit
    assert implementation_args(torch.optim.AdamW, {}, torch.nn.Linear(512, 512)) == {}  # slower
    assert implementation_args(torch.optim.SGD, {}, small) == {}  # slower with few parameters
    assert implementation_args(torch.optim.SGD, {}, torch.nn.Sequential(small, small, torch.nn.Linear(3, 3)))
    assert implementation_args(torch.optim.AdamW, {}, torch.nn.Linear(2, 3, dtype=torch.bfloat16)) == {}
    assert implementation_args(torch.optim.SGD, {}, torch.nn.Embedding(5, 2, sparse=True)) == {}
    assert implementation_args(torch.optim.SGD, {}, torch.nn.Module()) == {}
    assert implementation_args(lambda params, **kwargs: torch.optim.SGD(params), {}, small) == {}
    for name in ("fused", "foreach", "differentiable", "capturable"):
        assert implementation_args(torch.optim.AdamW, {name: False}, small) == {}


@pytest.mark.parametrize("form", ["fused", "foreach"])
def test_the_user_can_choose(form: str) -> None:
    model = make_model()
    opts: dict[str, Any] = {"class": "adam", form: True}
    updater = Updater(config={"optimizer": opts}, network=model, device="cpu", initial_learning_rate=0.1)
    updater.create_optimizer()
    optimizer = updater.get_optimizer()
    assert optimizer is not None and optimizer.param_groups[0][form] is True
    updater.step(make_loss(model, make_batches(1)[0]))


def test_our_choice_is_neither_shown_nor_saved(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The line of the log and the files are as those of Mini-RETURNN, which clients compare."""
    model = make_model()
    updater = Updater(config={"optimizer": {"class": "adamw"}}, network=model, device="cpu")
    log.initialize(verbosity=[4])
    updater.create_optimizer()
    assert "foreach: None" in capsys.readouterr().out
    optimizer = updater.get_optimizer()
    assert optimizer is not None and [group["foreach"] for group in optimizer.param_groups] == [True]
    updater.step(make_loss(model, make_batches(1)[0]))
    path = str(tmp_path / "opt.pt")
    updater.save_optimizer(path)
    assert [group["foreach"] for group in torch.load(path, weights_only=True)["param_groups"]] == [None]
    updater.load_optimizer(path)
    assert [group["foreach"] for group in optimizer.param_groups] == [True]
    chosen = Updater(config={"optimizer": {"class": "adamw", "foreach": True}}, network=model, device="cpu")
    chosen.create_optimizer()
    chosen.save_optimizer(path)
    assert [group["foreach"] for group in torch.load(path, weights_only=True)["param_groups"]] == [True]
