"""
Less memory for more computation: parts of a model that are computed again in the backward pass, instead of keeping what is in between.

Built on ``torch.utils.checkpoint`` (non-reentrant). Random numbers (dropout) and autocast are in the second computation as in the first, so
that losses and gradients are bit-identical to those without it.
"""

from __future__ import annotations

import fnmatch
import functools
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

import torch
from torch.utils.checkpoint import checkpoint

from returnn.errors import ModelError

__all__ = ["gradient_checkpoint", "checkpoint_modules"]

_T = TypeVar("_T")


def gradient_checkpoint(func: Callable[..., _T], *args: Any, **kwargs: Any) -> _T:
    """
    Call a function or a module such that only its arguments are kept for the backward pass, which computes the rest again.
    For a part of a step, e.g. ``y = gradient_checkpoint(layer, x)``. It must compute the same when it is called again: no counters,
    no random numbers but torch's. Without gradients (evaluation) it is a plain call.

    :param func: function or module
    :param args: for it. Any: as it takes them
    :param kwargs: for it. Any: as it takes them
    :return: what it returns
    """
    if not torch.is_grad_enabled():
        return func(*args, **kwargs)
    result: _T = checkpoint(func, *args, use_reentrant=False, preserve_rng_state=True, **kwargs)
    return result


def checkpoint_modules(model: torch.nn.Module, classes_or_names: Iterable[type[torch.nn.Module] | str]) -> list[str]:
    """
    Let submodules of a model compute their forward pass again in the backward pass, see :func:`gradient_checkpoint`; e.g. in get_model:
    ``checkpoint_modules(model, ["encoder.layers.*"])``. Names of parameters, checkpoints and hooks stay as they are. Of modules
    inside of each other, only the outermost is changed.

    :param model:
    :param classes_or_names: classes of submodules, or their names in the model, where ``*`` stands for one part of a name
    :return: names of the changed submodules
    :raises ModelError: a class or name fits to no submodule
    """
    entries = [classes_or_names] if isinstance(classes_or_names, (str, type)) else list(classes_or_names)
    for entry in entries:
        if not isinstance(entry, str) and not (isinstance(entry, type) and issubclass(entry, torch.nn.Module)):
            raise ModelError(
                f"checkpoint_modules: expected classes of modules or names of submodules, got {entry!r} ({type(entry).__name__})."
            )
    found = {
        name: module for name, module in model.named_modules() if any(_fits(entry, name, module) for entry in entries)
    }
    for entry in entries:
        if not any(_fits(entry, name, module) for name, module in found.items()):
            names = [name for name, _ in model.named_modules() if name]
            raise ModelError(
                f"checkpoint_modules: {entry!r} fits to no submodule of {type(model).__name__}. It has "
                f"{', '.join(names[:20])}{', ...' if len(names) > 20 else ''}."
            )
    changed: list[str] = []
    for name, module in found.items():  # outer ones first
        if any(not outer or name.startswith(f"{outer}.") for outer in changed):
            continue
        changed.append(name)
        if not isinstance(module.forward, _CheckpointedForward):
            module.forward = _CheckpointedForward(module.forward)
    return changed


class _CheckpointedForward:
    """In place of the method ``forward`` of one module; a class, so that models with it can be copied and pickled."""

    def __init__(self, forward: Callable[..., Any]):
        self._forward = forward
        functools.update_wrapper(self, forward, updated=())

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return gradient_checkpoint(self._forward, *args, **kwargs)


def _fits(entry: type[torch.nn.Module] | str, name: str, module: torch.nn.Module) -> bool:
    if not isinstance(entry, str):
        return isinstance(module, entry)
    parts, wanted = name.split("."), entry.split(".")
    return len(parts) == len(wanted) and all(fnmatch.fnmatchcase(p, w) for p, w in zip(parts, wanted, strict=True))
