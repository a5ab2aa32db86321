"""From the option ``optimizer`` to an optimizer class and the arguments of its constructor."""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeAlias

import torch

from returnn.errors import ConfigError, NotSupportedError, OptionError
from returnn.log import log
from returnn.options.optimizer import OPTIMIZER_EXAMPLE
from returnn.options.registry import closest_names

__all__ = [
    "OptimizerClass",
    "OptimizerArgs",
    "get_optimizer_class",
    "check_optimizer_options",
    "split_optimizer_options",
    "allowed_arguments",
    "call_optimizer_factory",
    "check_argument_names",
    "check_multiplier",
    "construct",
    "GROUP_OPTIONS",
]

#: A class, or a function of the user with the same arguments.
OptimizerClass: TypeAlias = "type[torch.optim.Optimizer] | Callable[..., torch.optim.Optimizer]"
#: Keyword arguments of an optimizer's constructor. Any: each has its own type.
OptimizerArgs: TypeAlias = dict[str, Any]

#: Keys of the optimizer dict that control the parameter groups and do not go to the constructor.
GROUP_OPTIONS = (
    "learning_rate_multiplier",
    "weight_decay_modules_blacklist",
    "weight_decay_custom_include_check",
    "param_groups_custom",
)


def _classes_by_lower_name() -> dict[str, type[torch.optim.Optimizer]]:
    classes = (value for value in vars(torch.optim).values() if isinstance(value, type))
    return {
        c.__name__.lower(): c
        for c in classes
        if issubclass(c, torch.optim.Optimizer) and c is not torch.optim.Optimizer
    }


def get_optimizer_class(class_name: str | OptimizerClass) -> OptimizerClass:
    """
    :param class_name: name of a class in torch.optim, upper or lower case; dotted name of any class or function, which is
        imported; or the class or function itself
    :return: the class, or the function
    :raises ConfigError: unknown name (also a ValueError and an AssertionError)
    """
    if not isinstance(class_name, str):
        if callable(class_name):
            return class_name
        raise OptionError(
            "optimizer",
            expected='a class or its name under "class"',
            got=class_name,
            todo=f"Set e.g. {OPTIMIZER_EXAMPLE}",
        )
    if "." in class_name:
        return _import_optimizer_class(class_name)
    known = _classes_by_lower_name()
    found = known.get(class_name.lower())
    if found is None:
        guess = closest_names(class_name.lower(), known)
        raise ConfigError(
            f'option "optimizer": unknown class {class_name!r}.'
            + (f" Did you mean {guess[0]!r}?" if guess else "")
            + f" Known are {', '.join(sorted(known))}, and dotted names of own classes."
        )
    return found


def _import_optimizer_class(name: str) -> OptimizerClass:
    module_name, _, attr = name.rpartition(".")
    try:
        found = getattr(importlib.import_module(module_name), attr)
    except (ImportError, AttributeError) as exc:
        raise ConfigError(f'option "optimizer": class {name!r} cannot be imported: {exc}.') from exc
    if not callable(found):
        raise ConfigError(f'option "optimizer": {name!r} is a {type(found).__name__}, not an optimizer class.')
    return found


def allowed_arguments(optimizer_class: OptimizerClass) -> list[str] | None:
    """
    :param optimizer_class:
    :return: names that its entry in the config may have, without the learning rate; None: any
    """
    try:
        params = inspect.signature(optimizer_class).parameters
    except (TypeError, ValueError):  # e.g. written in C
        return None
    if any(p.kind is p.VAR_KEYWORD for p in params.values()):
        return None
    names = [p.name for p in params.values() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)]
    return [name for name in names if name not in ("params", "lr")]


def split_optimizer_options(opts: Mapping[str, Any]) -> tuple[OptimizerClass, OptimizerArgs]:
    """
    :param opts: the dict of the config; not changed
    :return: class and all other entries as a new dict, ``epsilon`` renamed to ``eps`` where the class has that
    :raises ConfigError: not a dict, no class, unknown class, or a learning rate inside
    """
    if not isinstance(opts, Mapping):
        raise OptionError(
            "optimizer",
            expected='a dict with "class", an optimizer or a function',
            got=opts,
            todo=f"Set e.g. {OPTIMIZER_EXAMPLE}",
        )
    args = dict(opts)
    if args.get("class") is None:
        raise OptionError(
            "optimizer", expected='a dict with the entry "class"', got=dict(opts), todo=f"Set e.g. {OPTIMIZER_EXAMPLE}"
        )
    optimizer_class = get_optimizer_class(args.pop("class"))
    if "learning_rate" in args:
        raise ConfigError(
            f'option "optimizer": the entry "learning_rate" = {args["learning_rate"]!r} is not possible. '
            'Set the option "learning_rate" or "learning_rates" of the config, or "learning_rate_multiplier" here.'
        )
    if "lr" in args:  # configs that have worked with Mini-RETURNN
        log.print_warning(
            f'option "optimizer": the entry "lr" = {args.pop("lr")!r} has no effect. The learning rate comes from the '
            'options "learning_rate" or "learning_rates" of the config.'
        )
    if "epsilon" in args:
        allowed = allowed_arguments(optimizer_class)
        if allowed is None or "eps" in allowed:
            if "eps" in args:
                raise ConfigError('option "optimizer": "epsilon" and "eps" are the same, set only one of them.')
            args["eps"] = args.pop("epsilon")
    return optimizer_class, args


def check_argument_names(optimizer_class: OptimizerClass, args: Mapping[str, Any]) -> None:
    """
    :param optimizer_class:
    :param args: for the constructor
    :raises ConfigError: an argument that the class does not have; lists those that it has
    """
    allowed = allowed_arguments(optimizer_class)
    if allowed is None:
        return
    for name in args:
        if name in allowed:
            continue
        guess = closest_names(name, [*allowed, *GROUP_OPTIONS])
        raise ConfigError(
            f'option "optimizer": {_name(optimizer_class)} has no argument {name!r}.'
            + (f" Did you mean {guess[0]!r}?" if guess else "")
            + f" Allowed are {', '.join(allowed)}, and {', '.join(GROUP_OPTIONS)}."
        )


def check_optimizer_options(opts: object) -> None:
    """
    Check the option ``optimizer`` before a model exists: class, names of the arguments, and for classes of torch also their values.

    :param opts: value of the option; an Optimizer or a function cannot be checked
    :raises ConfigError: anything wrong, in one sentence that lists what is allowed
    :raises NotSupportedError: an optimizer that needs to evaluate the loss several times per step
    """
    if isinstance(opts, torch.optim.Optimizer) or (callable(opts) and not isinstance(opts, Mapping)):
        _check_no_closure(opts if isinstance(opts, type) else type(opts))
        return
    optimizer_class, args = split_optimizer_options(opts)  # type: ignore[arg-type]  # checks the type
    _check_no_closure(optimizer_class)
    check_multiplier(args.get("learning_rate_multiplier"))
    for name in GROUP_OPTIONS:
        args.pop(name, None)
    check_argument_names(optimizer_class, args)
    if isinstance(optimizer_class, type) and optimizer_class.__module__.startswith("torch."):
        # A matrix suits every class of torch (Muon takes nothing else).
        dummy = torch.nn.Parameter(torch.zeros(2, 2))
        args.pop("fused", None)  # depends on the device
        args.pop("capturable", None)
        construct(optimizer_class, [dummy], args)


def check_multiplier(value: object) -> None:
    """
    :param value: ``learning_rate_multiplier``, or None
    :raises OptionError: not a number >= 0
    """
    if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value >= 0):
        raise OptionError("optimizer", expected='a number >= 0 for "learning_rate_multiplier"', got=value)


def construct(optimizer_class: OptimizerClass, params: list[Any], args: OptimizerArgs) -> torch.optim.Optimizer:
    """
    :param optimizer_class:
    :param params: parameters or group dicts. Any: torch accepts both
    :param args: for the constructor
    :return: new optimizer
    :raises ConfigError: the constructor refuses the arguments
    """
    try:
        optimizer = optimizer_class(params, **args)
    except (TypeError, ValueError) as exc:
        shown = ", ".join(f"{k}={v!r}" for k, v in args.items())
        raise ConfigError(f'option "optimizer": {_name(optimizer_class)}({shown}) is not possible: {exc}.') from exc
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f'option "optimizer": {_name(optimizer_class)} must return a torch.optim.Optimizer, but returned a {type(optimizer).__name__}.'
        )
    return optimizer


def call_optimizer_factory(func: Callable[..., Any], params: list[Any], lr: float) -> torch.optim.Optimizer:
    """
    For ``optimizer = function`` in the config.

    :param func: gets the parameters as first argument, and ``lr=`` if it accepts that
    :param params: parameters or group dicts
    :param lr: current learning rate
    :return: what it returns
    :raises ConfigError: not an optimizer
    """
    signature = inspect.signature(func).parameters
    takes_lr = "lr" in signature or any(p.kind is p.VAR_KEYWORD for p in signature.values())
    return construct(func, params, {"lr": lr} if takes_lr else {})


def _check_no_closure(optimizer_class: object) -> None:
    if isinstance(optimizer_class, type) and issubclass(optimizer_class, torch.optim.LBFGS):
        raise NotSupportedError(
            'option "optimizer": LBFGS evaluates the loss several times per step, which the training loop does not do. Use e.g. adamw.'
        )


def _name(optimizer_class: OptimizerClass) -> str:
    return getattr(optimizer_class, "__name__", None) or repr(optimizer_class)
