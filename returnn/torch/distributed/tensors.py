"""
Tensors of which each rank has a part (``DTensor``): the whole of one, and a part like that of a parameter.

Nothing here imports ``torch.distributed.tensor`` before there is such a tensor: that takes half a second.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

__all__ = ["is_sharded", "is_sharded_model", "whole_tensor", "like_parameter", "map_tensors", "whole_model_state"]


def is_sharded(tensor: object) -> bool:
    """:return: whether it is a tensor that the ranks have parts or copies of"""
    return isinstance(tensor, torch.Tensor) and hasattr(tensor, "full_tensor")


def is_sharded_model(model: torch.nn.Module | None) -> bool:
    """:return: whether any parameter is sharded"""
    return model is not None and any(is_sharded(param) for param in model.parameters())


def whole_tensor(tensor: torch.Tensor) -> torch.Tensor:
    """
    All ranks must call it, with their part of the same tensor.

    :param tensor: sharded, or any other
    :return: the whole one on the same device; the tensor itself if it is not sharded
    """
    return tensor.full_tensor() if is_sharded(tensor) else tensor  # type: ignore[attr-defined, no-any-return]


def like_parameter(value: Any, param: torch.Tensor) -> Any:
    """
    Take this rank's part of a whole tensor. No communication: each rank must have the whole one.

    :param value: whole tensor on any device. Any: other values are returned as they are
    :param param: sharded or not
    :return: sharded as the parameter, on its device, if that is sharded and has the same shape; else the value
    """
    if not is_sharded(param) or not isinstance(value, torch.Tensor) or is_sharded(value):
        return value
    if value.shape != param.shape or not value.ndim:
        return value
    from torch.distributed.tensor import DTensor, Shard

    assert isinstance(param, DTensor)
    local = value
    for mesh_dim, placement in enumerate(param.placements):
        if isinstance(placement, Shard):
            parts = local.chunk(param.device_mesh.size(mesh_dim), dim=placement.dim)
            rank = param.device_mesh.get_local_rank(mesh_dim)
            local = parts[rank] if rank < len(parts) else local.narrow(placement.dim, 0, 0)
    local = local.to(param.to_local().device, copy=True).contiguous()
    return DTensor.from_local(
        local, param.device_mesh, param.placements, run_check=False, shape=param.shape, stride=param.stride()
    )


def map_tensors(obj: Any, func: Any, *, path: tuple[str | int, ...] = ()) -> Any:
    """
    :param obj: nested dicts, lists and tuples, as the states of optimizers are. Any: and any values
    :param func: (path of keys, tensor) -> what takes its place. Any: of the caller's types
    :param path: of ``obj`` itself
    :return: new containers of the same kinds
    """
    if isinstance(obj, torch.Tensor):
        return func(path, obj)
    if isinstance(obj, Mapping):
        return {key: map_tensors(value, func, path=(*path, key)) for key, value in obj.items()}
    if isinstance(obj, list):
        return [map_tensors(value, func, path=(*path, idx)) for idx, value in enumerate(obj)]
    if type(obj) is tuple:
        return tuple(map_tensors(value, func, path=(*path, idx)) for idx, value in enumerate(obj))
    return obj


def whole_model_state(model: torch.nn.Module, *, keep: bool = True) -> dict[str, Any]:
    """
    All ranks must call it. At most one whole parameter at a time is on the device.

    :param model:
    :param keep: False: this rank only helps the others; the tensors are dropped
    :return: the state dict of the model; for a sharded one, with whole tensors in host memory. Any: extra state of modules
    """
    state = model.state_dict()
    if not is_sharded_model(model):
        return state
    first_names: dict[int, str] = {}  # of shared parameters, so that they are shared in the file as well
    same_as = {
        name: first_names.setdefault(id(param), name) for name, param in model.named_parameters(remove_duplicate=False)
    }
    for name, value in list(state.items()):
        first = same_as.get(name, name)
        if first != name and first in state:
            state[name] = state[first]
        elif is_sharded(value):
            whole = whole_tensor(value)
            state[name] = whole.cpu() if keep else torch.empty(0)
    return state
