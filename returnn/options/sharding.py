"""The part of the option ``torch_distributed`` that says how the model is sharded: entries of ``{"class": "fsdp"}``."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from returnn.errors import OptionError

__all__ = ["SHARDING_KEYS", "MixedPrecision", "ShardingOptions"]

_OPTION = "torch_distributed"
_DTYPES = ("float32", "float16", "bfloat16")
_PRECISION_KEYS = ("param_dtype", "reduce_dtype", "output_dtype")

#: Entries of the dict that this module reads, beside "class".
SHARDING_KEYS = (
    "shard_modules",
    "mixed_precision",
    "reshard_after_forward",
    "forward_methods",
    "whole_optimizer_file",
)


@dataclasses.dataclass(frozen=True)
class MixedPrecision:
    """Names of dtypes; None: as the parameters are."""

    #: of the gathered parameters, so of the computation
    param_dtype: str | None = None
    #: of the gradients while they are summed over the ranks
    reduce_dtype: str | None = None
    #: of what the sharded modules and the step return
    output_dtype: str | None = None


@dataclasses.dataclass(frozen=True)
class ShardingOptions:
    """How FSDP2 shards the model."""

    #: Names of the classes whose modules are gathered one by one. None: chosen by size. Empty: the whole model at once
    shard_modules: tuple[str, ...] | None = None
    mixed_precision: MixedPrecision | None = None
    #: whether gathered parameters are freed between forward and backward: less memory, more communication
    reshard_after_forward: bool = True
    #: class name -> methods other than forward that gather the parameters of such a module, too
    forward_methods: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    #: whether also the whole optimizer state is written, as ``.opt.pt``
    whole_optimizer_file: bool = False

    @classmethod
    def from_dict(cls, opts: Mapping[str, Any]) -> ShardingOptions:
        """
        :param opts: value of ``torch_distributed``; entries of others are not looked at. Any: checked here
        :raises OptionError: wrong values
        """
        modules = opts.get("shard_modules")
        return cls(
            shard_modules=None if modules is None else _names(modules, "shard_modules"),
            mixed_precision=_mixed_precision(opts.get("mixed_precision")),
            reshard_after_forward=_bool(opts, "reshard_after_forward", True),
            forward_methods=_methods(opts.get("forward_methods")),
            whole_optimizer_file=_bool(opts, "whole_optimizer_file", False),
        )


def _bool(opts: Mapping[str, Any], key: str, default: bool) -> bool:
    value = opts.get(key, default)
    if not isinstance(value, bool):
        raise OptionError(_OPTION, expected=f'True or False as "{key}"', got=value)
    return value


def _names(value: object, what: str) -> tuple[str, ...]:
    if isinstance(value, (list, tuple)) and all(isinstance(name, str) and name for name in value):
        return tuple(value)
    raise OptionError(
        _OPTION,
        expected=f'a list of names as "{what}"',
        got=value,
        todo='Set e.g. "shard_modules": ["ConformerBlock"], or leave it out to choose them by size',
    )


def _methods(value: object) -> dict[str, tuple[str, ...]]:
    if value is None:
        return {}
    if isinstance(value, Mapping) and all(isinstance(name, str) for name in value):
        return {name: _names(methods, "forward_methods") for name, methods in value.items()}
    raise OptionError(
        _OPTION,
        expected='a dict from class names to lists of method names as "forward_methods"',
        got=value,
        todo='Set e.g. "forward_methods": {"Decoder": ["step"]}',
    )


def _mixed_precision(value: object) -> MixedPrecision | None:
    if value is None:
        return None
    example = 'Set e.g. "mixed_precision": {"param_dtype": "bfloat16", "reduce_dtype": "float32"}'
    if not isinstance(value, Mapping):
        raise OptionError(_OPTION, expected='a dict or None as "mixed_precision"', got=value, todo=example)
    for key, dtype in value.items():
        if key not in _PRECISION_KEYS:
            raise OptionError(
                _OPTION, expected=f'"mixed_precision" with the keys {", ".join(_PRECISION_KEYS)}', got=key, todo=example
            )
        if dtype is not None and dtype not in _DTYPES:
            raise OptionError(
                _OPTION,
                expected=f'one of {", ".join(_DTYPES)} as "{key}" of "mixed_precision"',
                got=dtype,
                todo=example,
            )
    return MixedPrecision(**value)
