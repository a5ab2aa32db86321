"""Which parameters get weight decay: parameter groups of an optimizer."""

from __future__ import annotations

import importlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch

from returnn.errors import ConfigError, OptionError
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["ParamGroup", "wrap_user_blacklist_wd_modules", "weight_decay_groups", "custom_groups"]

#: As torch.optim takes it: "params" and options. Any: each option has its own type.
ParamGroup: TypeAlias = dict[str, Any]

#: Parameters of these modules get no weight decay unless the user gives another list.
DEFAULT_BLACKLIST: tuple[type[torch.nn.Module], ...] = (torch.nn.LayerNorm, torch.nn.Embedding)


def wrap_user_blacklist_wd_modules(mods: Sequence[str | type[torch.nn.Module]]) -> tuple[type[torch.nn.Module], ...]:
    """
    :param mods: classes, or dotted names such as "torch.nn.LayerNorm"
    :return: the classes, e.g. for isinstance
    :raises ConfigError: not a list, or a name that is no module class
    """
    name = "weight_decay_modules_blacklist"
    if isinstance(mods, str) or not isinstance(mods, (list, tuple, set, frozenset)):
        raise OptionError(
            "optimizer", expected=f'a list of classes or names like "torch.nn.LayerNorm" for "{name}"', got=mods
        )
    return tuple(_module_class(mod) for mod in mods)


def _module_class(mod: str | type[torch.nn.Module]) -> type[torch.nn.Module]:
    found: object = mod
    if isinstance(mod, str):
        module_name, _, attr = mod.rpartition(".")
        try:
            found = getattr(importlib.import_module(module_name or "torch.nn"), attr)
        except (ImportError, AttributeError) as exc:
            raise ConfigError(
                f'option "optimizer": "weight_decay_modules_blacklist" has the unknown class {mod!r}: {exc}. '
                'Give classes, or names like "torch.nn.LayerNorm".'
            ) from exc
    if not (isinstance(found, type) and issubclass(found, torch.nn.Module)):
        raise ConfigError(
            f'option "optimizer": {mod!r} in "weight_decay_modules_blacklist" is no torch.nn.Module class.'
        )
    return found


def _owners(network: torch.nn.Module) -> Iterator[tuple[str, str, torch.nn.Module, torch.nn.Parameter]]:
    """:return: (full name, local name, owner, parameter); shared parameters once, at their first owner"""
    seen: set[int] = set()
    for module_name, module in network.named_modules():
        for local_name, param in module.named_parameters(recurse=False):
            if id(param) in seen:
                continue
            seen.add(id(param))
            yield (f"{module_name}.{local_name}" if module_name else local_name), local_name, module, param


def weight_decay_groups(
    network: torch.nn.Module,
    weight_decay: float,
    *,
    blacklist: Sequence[str | type[torch.nn.Module]] | None = None,
    include_check: Callable[..., bool | None] | None = None,
) -> list[ParamGroup]:
    """
    Two groups, with and without weight decay; names sorted.

    No decay: the parameter's name ends with "bias", or the module that owns it is in the blacklist.

    :param network:
    :param weight_decay: of the first group
    :param blacklist: None: LayerNorm and Embedding
    :param include_check: called as ``f(module=, rf_module=, full_param_name=, param=)``; True or False decides, None: the rule above
    :return: groups; an empty one is left out
    :raises ConfigError: include_check returns something else
    """
    no_decay_modules = DEFAULT_BLACKLIST if blacklist is None else wrap_user_blacklist_wd_modules(blacklist)
    decay: dict[str, torch.nn.Parameter] = {}
    no_decay: dict[str, torch.nn.Parameter] = {}
    for full_name, local_name, module, param in _owners(network):
        wanted: bool | None = None
        if include_check is not None:
            wanted = include_check(module=module, rf_module=None, full_param_name=full_name, param=param)
            if wanted is not None and not isinstance(wanted, bool):
                raise ConfigError(
                    f'option "optimizer": "weight_decay_custom_include_check" must return True, False or None, '
                    f"but returned {wanted!r} for {full_name}."
                )
        if wanted is None:
            wanted = not (local_name.endswith("bias") or isinstance(module, no_decay_modules))
        (decay if wanted else no_decay)[full_name] = param
    groups = [
        {"params": [params[name] for name in sorted(params)], "weight_decay": value}
        for params, value in ((decay, weight_decay), (no_decay, 0.0))
    ]
    return [group for group in groups if group["params"]]


def custom_groups(
    func: Callable[..., Any], network: torch.nn.Module, optimizer_class: object, optimizer_opts: Mapping[str, Any]
) -> list[ParamGroup]:
    """
    :param func: ``param_groups_custom`` of the user: ``f(model=, rf_model=, optimizer_class=, optimizer_opts=, **kwargs)``
    :param network:
    :param optimizer_class:
    :param optimizer_opts: other entries of the optimizer dict
    :return: its groups
    :raises ConfigError: not a list of dicts with "params"
    """
    groups = func(
        model=network,
        rf_model=network,
        optimizer_class=optimizer_class,
        optimizer_opts=dict(optimizer_opts),
        **get_fwd_compat_kwargs(),
    )
    if not isinstance(groups, (list, tuple)) or not all(isinstance(g, Mapping) and "params" in g for g in groups):
        raise OptionError(
            "optimizer", expected='"param_groups_custom" to return a list of dicts with "params"', got=groups
        )
    return [dict(group) for group in groups]
