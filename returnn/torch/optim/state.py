"""The state of an optimizer as a file: our form, the bare form, the wrapped form, and the way from one set of parameters to another."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch

import returnn
from returnn.errors import CheckpointError
from returnn.torch.distributed.tensors import like_parameter

__all__ = [
    "OptimizerStateError",
    "StateDict",
    "LoadedState",
    "pack_state",
    "unpack_state",
    "wrap_state",
    "load_into",
    "param_names",
]

#: optimizer.state_dict(). Any: each optimizer has its own entries.
StateDict: TypeAlias = dict[str, Any]

#: Entry of our files next to the bare state dict; the peers ignore it.
EXTRA_KEY = "returnn"
#: Decided by the machine and the config of this run, not by the file.
_RUNTIME_GROUP_KEYS = ("foreach", "fused", "capturable", "differentiable", "learning_rate_multiplier")
#: State entries that have the parameter's shape in all optimizers of torch.
_PARAM_SHAPED = (
    "exp_avg",
    "exp_avg_sq",
    "max_exp_avg_sq",
    "momentum_buffer",
    "square_avg",
    "acc_delta",
    "exp_inf",
    "prev",
    "sum",
)
#: Options by which the kinds of optimizers differ.
_CHARACTERISTIC_KEYS = ("betas", "momentum", "rho", "alpha", "lambd", "etas", "beta2_decay", "lr_decay")


class OptimizerStateError(CheckpointError, ValueError):
    """An optimizer file does not fit to the optimizer of this run. ValueError is what the peers raise."""


@dataclasses.dataclass(frozen=True)
class LoadedState:
    """Content of an optimizer file, whatever its form."""

    filename: str
    optimizer: StateDict  # bare state dict
    param_names: tuple[str, ...] | None  # in the order of the parameter indices; None: unknown
    class_name: str | None
    extra: Mapping[str, Any]  # our entry, else empty. Any: plain values and tensors


def param_names(network: torch.nn.Module, optimizer: torch.optim.Optimizer) -> list[str]:
    """
    :param network:
    :param optimizer:
    :return: names of the optimizer's parameters, in the order of their indices; "?0" and so on if they are not of the network
    """
    names = {id(param): name for name, param in network.named_parameters()}
    params = [param for group in optimizer.param_groups for param in group["params"]]
    return [names.get(id(param), f"?{idx}") for idx, param in enumerate(params)]


def pack_state(optimizer: torch.optim.Optimizer, extra: Mapping[str, Any]) -> StateDict:
    """
    :param optimizer:
    :param extra: our entry: plain values and tensors. Any: as in the file
    :return: for the file: the bare state dict plus our entry
    """
    return {**optimizer.state_dict(), EXTRA_KEY: {"optimizer_class_name": type(optimizer).__name__, **extra}}


def wrap_state(
    packed: StateDict, *, optimizer_opts: object, learning_rate: float, epoch: int | None, step: int | None
) -> StateDict:
    """
    :param packed: of :func:`pack_state`
    :param optimizer_opts: value of the option ``optimizer``; what is no plain value in it is written as text
    :param learning_rate: of the next step
    :param epoch: finished one; None: not known
    :param step: number of training steps done; None: not known
    :return: the same in the form of RETURNN, which has the state under "optimizer"
    """
    extra = packed[EXTRA_KEY]
    return {
        "optimizer": {key: value for key, value in packed.items() if key != EXTRA_KEY},
        "optimizer_class_name": extra["optimizer_class_name"],
        "optimizer_opts": _plain(optimizer_opts),
        "param_names": list(extra.get("param_names", ())),
        "epoch": epoch,
        "step": step,
        "effective_learning_rate": learning_rate,
        "returnn_version": returnn.__version__,
        EXTRA_KEY: extra,
    }


def _plain(value: object) -> Any:
    """:return: for a file that is loaded with weights_only"""
    if isinstance(value, Mapping):
        return {str(key): _plain(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(entry) for entry in value]
    return value if value is None or type(value) in (bool, int, float, str) else repr(value)


def unpack_state(obj: object, filename: str) -> LoadedState:
    """
    :param obj: loaded file
    :param filename: for messages
    :return: its parts
    :raises OptimizerStateError: not an optimizer state
    """
    if isinstance(obj, Mapping) and "param_groups" in obj and "state" in obj:
        extra = obj.get(EXTRA_KEY) or {}
        bare = {"state": obj["state"], "param_groups": obj["param_groups"]}
        return LoadedState(
            filename, bare, _flat_names(extra.get("param_names")), extra.get("optimizer_class_name"), extra
        )
    if isinstance(obj, Mapping) and isinstance(obj.get("optimizer"), Mapping) and "param_groups" in obj["optimizer"]:
        bare = {"state": obj["optimizer"]["state"], "param_groups": obj["optimizer"]["param_groups"]}
        names = _flat_names(obj.get("param_names"))
        return LoadedState(filename, bare, names, obj.get("optimizer_class_name"), obj.get(EXTRA_KEY) or {})
    got = f"a dict with {', '.join(map(str, list(obj)[:10]))}" if isinstance(obj, Mapping) else type(obj).__name__
    raise OptimizerStateError(
        f'{filename} is not an optimizer state: expected a dict with "state" and "param_groups", or with "optimizer", got {got}.'
    )


def _flat_names(names: object) -> tuple[str, ...] | None:
    if not isinstance(names, (list, tuple)):
        return None
    flat: list[str] = []
    for name in names:
        flat.extend(name if isinstance(name, (list, tuple)) else [name])
    return tuple(flat)


def load_into(optimizer: torch.optim.Optimizer, loaded: LoadedState, names: Sequence[str]) -> list[str]:
    """
    Put a state into an optimizer; by parameter names if the file has them, else by order.

    :param optimizer:
    :param loaded:
    :param names: of the optimizer's parameters, see :func:`param_names`
    :return: notes for the log: differences that are no error
    :raises OptimizerStateError: another kind of optimizer, other number of groups, missing parameters, other shapes
    """
    file_groups = loaded.optimizer["param_groups"]
    if (
        not isinstance(file_groups, list)
        or not isinstance(loaded.optimizer["state"], Mapping)
        or not all(
            isinstance(group, Mapping) and isinstance(group.get("params"), (list, tuple)) for group in file_groups
        )
    ):
        raise OptimizerStateError(
            f"{loaded.filename} is broken: it has no parameter groups, or no state, of an optimizer."
        )
    _check_kind(optimizer, loaded)
    if len(file_groups) != len(optimizer.param_groups):
        raise OptimizerStateError(
            f"{loaded.filename} has {len(file_groups)} parameter groups, but the optimizer of this config has "
            f"{len(optimizer.param_groups)}. Use the optimizer options with which the file was made, or start with a fresh optimizer."
        )
    state = _state_by_own_index(optimizer, loaded, list(names))
    _check_shapes(optimizer, state, loaded.filename, names)
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for idx, entries in state.items():
        if isinstance(entries, Mapping):  # this rank's parts, if the model is sharded
            state[idx] = {key: like_parameter(value, params[idx]) for key, value in entries.items()}
    groups, notes = _merge_groups(optimizer, file_groups, loaded.filename)
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except (ValueError, KeyError, TypeError, RuntimeError) as exc:
        raise OptimizerStateError(f"{loaded.filename} does not fit to the optimizer of this config: {exc}.") from exc
    return notes


def _check_kind(optimizer: torch.optim.Optimizer, loaded: LoadedState) -> None:
    own = type(optimizer).__name__
    other = loaded.class_name
    if other is None or other == own:
        defaults = [key for key in _CHARACTERISTIC_KEYS if key in optimizer.defaults]
        for group in loaded.optimizer["param_groups"][:1]:
            if [key for key in _CHARACTERISTIC_KEYS if key in group] != defaults:
                other = f"an optimizer with {', '.join(k for k in group if k != 'params')}"
    if other is not None and other != own:
        raise OptimizerStateError(
            f"{loaded.filename} is the state of {other}, but the config asks for {own}. "
            "Use the optimizer with which the file was made, or remove the file and set allow_missing_optimizer_checkpoint = True "
            "to start with a fresh optimizer."
        )


def _state_by_own_index(optimizer: torch.optim.Optimizer, loaded: LoadedState, names: list[str]) -> dict[int, Any]:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    file_idxs = [idx for group in loaded.optimizer["param_groups"] for idx in group["params"]]
    file_state = loaded.optimizer["state"]
    if loaded.param_names is None:
        if len(file_idxs) != len(params):
            raise OptimizerStateError(
                f"{loaded.filename} has {len(file_idxs)} parameters without names, but the model has {len(params)}. "
                "Use the model with which the file was made, or start with a fresh optimizer."
            )
        return {own: file_state[idx] for own, idx in enumerate(file_idxs) if idx in file_state}
    if len(loaded.param_names) != len(file_idxs):
        raise OptimizerStateError(
            f"{loaded.filename} is broken: it names {len(loaded.param_names)} parameters, but has groups with {len(file_idxs)}."
        )
    idx_by_name = dict(zip(loaded.param_names, sorted(file_idxs), strict=True))
    missing = [
        name for name, param in zip(names, params, strict=True) if name not in idx_by_name and param.requires_grad
    ]
    if missing:
        raise OptimizerStateError(
            f"{loaded.filename} has no state for {len(missing)} of {len(params)} parameters: {', '.join(missing[:5])}"
            f"{', ...' if len(missing) > 5 else ''}. Use the model with which the file was made, or start with a fresh optimizer."
        )
    pairs = ((own, idx_by_name[name]) for own, name in enumerate(names) if name in idx_by_name)
    return {own: file_state[idx] for own, idx in pairs if idx in file_state}


def _check_shapes(
    optimizer: torch.optim.Optimizer, state: Mapping[int, Any], filename: str, names: Sequence[str]
) -> None:
    params = [param for group in optimizer.param_groups for param in group["params"]]
    for idx, entries in state.items():
        for key in _PARAM_SHAPED:
            value = entries.get(key) if isinstance(entries, Mapping) else None
            if isinstance(value, torch.Tensor) and value.shape != params[idx].shape:
                raise OptimizerStateError(
                    f'{filename}: "{key}" of parameter {names[idx]} has shape {list(value.shape)}, but the parameter has '
                    f"{list(params[idx].shape)}. Use the model with which the file was made, or start with a fresh optimizer."
                )


def _merge_groups(
    optimizer: torch.optim.Optimizer, file_groups: Sequence[Mapping[str, Any]], filename: str
) -> tuple[list[dict[str, Any]], list[str]]:
    """Options from the file, as torch does it; parameters and runtime options from this run."""
    groups: list[dict[str, Any]] = []
    notes: list[str] = []
    start = 0
    for own, other in zip(optimizer.param_groups, file_groups, strict=True):
        num_params = len(own["params"])
        # A file of another torch version may lack an option: then the value of this run.
        group = {
            **{k: v for k, v in own.items() if k != "params"},
            **other,
            "params": list(range(start, start + num_params)),
        }
        group.pop("param_names", None)  # torch's own names; we have matched by ours
        start += num_params
        for key in _RUNTIME_GROUP_KEYS:
            group.pop(key, None)
            if key in own:
                group[key] = own[key]
        for key, value in own.items():
            if key in ("params", "lr", "initial_lr") or key in _RUNTIME_GROUP_KEYS or key not in other:
                continue
            if _comparable(other[key]) != _comparable(value):
                note = f"{filename}: {key} = {other[key]!r} of the file is used, not {value!r} of the config."
                if note not in notes:
                    notes.append(note)
        groups.append(group)
    return groups, notes


def _comparable(value: object) -> object:
    if isinstance(value, torch.Tensor):
        return value.tolist()
    return tuple(value) if isinstance(value, list) else value
