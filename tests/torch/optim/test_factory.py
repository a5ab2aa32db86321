"""Tests of the early check of the option ``optimizer``."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn.errors import ConfigError, NotSupportedError
from returnn.log import log
from returnn.torch.optim.factory import check_optimizer_options, get_optimizer_class, split_optimizer_options


@pytest.mark.parametrize(
    "opts",
    [
        {"class": "adamw", "epsilon": 1e-16, "weight_decay": 1e-3},
        {"class": "RAdam", "eps": 1e-12, "decoupled_weight_decay": True},
        {"class": "adam", "betas": (0.9, 0.98), "learning_rate_multiplier": 0.5},
        {"class": "muon"},
        {"class": "sparseadam"},
        {"class": "torch.optim.SGD", "momentum": 0.9},
        {"class": torch.optim.Adagrad},
        torch.optim.SGD,
        lambda params: torch.optim.SGD(params, lr=1.0),
    ],
)
def test_accepted(opts: object) -> None:
    check_optimizer_options(opts)


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        (None, "expected a dict"),
        ("adam", "expected a dict"),
        ({}, 'the entry "class"'),
        ({"class": None}, 'the entry "class"'),
        ({"class": "adamm"}, "unknown class 'adamm'. Did you mean 'adam"),
        ({"class": 3}, "expected a class or its name"),
        ({"class": "my_module_that_is_not_there.Lion"}, "cannot be imported: No module named"),
        ({"class": "torch.optim.Lion"}, "cannot be imported: .*Lion"),
        ({"class": "adam", "learning_rate": 0.1}, '"learning_rate" = 0.1 is not possible'),
        ({"class": "adam", "epsilon": 1e-8, "eps": 1e-8}, "are the same"),
        ({"class": "sgd", "epsilon": 1e-8}, "SGD has no argument 'epsilon'. Allowed are momentum, dampening"),
        ({"class": "adam", "weight_deca": 1e-8}, "Adam has no argument 'weight_deca'. Did you mean 'weight_decay'"),
        ({"class": "adam", "betas": (1.0, 2.0)}, r"Adam\(betas=\(1.0, 2.0\)\) is not possible: Invalid beta"),
        ({"class": "adam", "betas": 3}, "is not possible"),
        ({"class": "adam", "learning_rate_multiplier": "x"}, "learning_rate_multiplier"),
    ],
)
def test_refused(opts: Any, text: str) -> None:
    with pytest.raises(ConfigError, match=text):
        check_optimizer_options(opts)


def test_lr_is_ignored_with_a_warning(capsys: pytest.CaptureFixture[str]) -> None:
    """As in Mini-RETURNN, where it has no effect: configs with it work."""
    log.initialize(verbosity=[2])
    opts = {"class": "adam", "lr": 0.125}
    assert split_optimizer_options(opts) == (torch.optim.Adam, {})
    assert opts["lr"] == 0.125
    assert 'the entry "lr" = 0.125 has no effect' in capsys.readouterr().out


def test_peers_raise_these_types() -> None:
    for error in (AssertionError, ValueError):
        with pytest.raises(error):
            get_optimizer_class("adamm")
        with pytest.raises(error):
            check_optimizer_options({"class": "adam", "learning_rate": 0.1})


def test_lbfgs_is_not_possible() -> None:
    for form in ({"class": "lbfgs"}, torch.optim.LBFGS):
        with pytest.raises(NotSupportedError, match="LBFGS evaluates the loss several times"):
            check_optimizer_options(form)


def test_all_names_of_torch_are_known() -> None:
    names = "adadelta adafactor adagrad adam adamax adamw asgd nadam radam rmsprop rprop sgd sparseadam"
    for name in names.split():
        cls = get_optimizer_class(name)
        assert isinstance(cls, type) and cls.__name__.lower() == name
