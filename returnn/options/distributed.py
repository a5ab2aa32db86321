"""Training with several processes: the option ``torch_distributed``, and which part of the data a process gets."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from returnn._state import find_global_config, state
from returnn.errors import OptionError
from returnn.options.dialect import is_mainline
from returnn.options.registry import Option, closest_names, declare, lookup, read
from returnn.options.sharding import SHARDING_KEYS, ShardingOptions
from returnn.options.task import TaskOptions

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["DistributedOptions", "ReduceType", "Uneven", "data_shard", "every_rank_has_all_data"]

ReduceType = Literal["grad", "grad_explicit", "param"]
Uneven = Literal["join", "stop"]
LossNormalization = Literal["global", "per_rank"]
DataMode = Literal["sharded", "peers"]

declare(
    Option(
        "torch_distributed",
        "dict | None",
        None,
        "Train with the several processes that torchrun, srun or mpirun started; {} enables it with all defaults. Keys: "
        'reduce_type: "grad" (DistributedDataParallel around the step; with class, options), "grad_explicit" (one reduction '
        'before each update), "param" (average the parameters each param_sync_step steps; with sync_on_cpu); '
        'class "fsdp": model, optimizer and checkpoint in shards (with shard_modules, mixed_precision, reshard_after_forward, forward_methods, whole_optimizer_file); '
        'uneven: "join" (ranks without data left wait for the others) or "stop" (the epoch ends with the first such rank); '
        'loss_normalization: "global" (as one process with the batches of all ranks) or "per_rank" (mean over ranks); '
        'data: "sharded" (each rank its part) or "peers" (each rank all data, in another order); '
        "backend, timeout_sec, startup_timeout_sec.",
    ),
)

_DEFAULT_TIMEOUT = 1800.0
_DEFAULT_STARTUP_TIMEOUT = 600.0
_KEYS = (
    *("backend", "timeout_sec", "startup_timeout_sec", "reduce_type", "param_sync_step", "sync_on_cpu"),
    *("class", "options", "uneven", "loss_normalization", "data", *SHARDING_KEYS),
)


@dataclasses.dataclass(frozen=True)
class DistributedOptions:
    """
    :param is_set: whether the config asks for it; else these are the defaults
    :param backend: of torch.distributed, e.g. "gloo"; None: by the device
    :param timeout_sec: of collective operations
    :param startup_timeout_sec: until all ranks are there
    :param reduce_type: see the option
    :param param_sync_step: with "param"
    :param sync_on_cpu: with "param"
    :param wrapper: class or function ``(module, **wrapper_options)`` instead of DistributedDataParallel; str: its dotted name
    :param wrapper_options: its arguments. Any: each has its own type
    :param fsdp: of the class "fsdp"; None: another class
    :param uneven: what happens when a rank has no data left
    :param loss_normalization: see the option
    :param data: see the option
    """

    is_set: bool = False
    backend: str | None = None
    timeout_sec: float = _DEFAULT_TIMEOUT
    startup_timeout_sec: float = _DEFAULT_STARTUP_TIMEOUT
    reduce_type: ReduceType = "grad"
    param_sync_step: int | None = None
    sync_on_cpu: bool = False
    wrapper: str | Callable[..., Any] | None = None
    wrapper_options: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    fsdp: ShardingOptions | None = None
    uneven: Uneven = "join"
    loss_normalization: LossNormalization = "global"
    data: DataMode = "sharded"

    @property
    def is_fsdp(self) -> bool:
        """:return: whether the model is sharded"""
        return self.fsdp is not None

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> DistributedOptions:
        """
        :param config: the user's
        :raises OptionError: unknown keys, invalid or contradicting values
        """
        value = _value(config)
        opts: Mapping[str, Any] = value or {}
        for key in opts:
            if key not in _KEYS:
                similar = closest_names(str(key), _KEYS)
                raise _error(
                    f"only the keys {', '.join(_KEYS)}", key, f'Did you mean "{similar[0]}"' if similar else None
                )
        reduce_type = _choice(opts, "reduce_type", ("grad", "grad_explicit", "param"))
        wrapper = opts.get("class")
        fsdp = None
        if isinstance(wrapper, str) and wrapper.lower() == "fsdp":
            wrapper, fsdp = None, ShardingOptions.from_dict(opts)
        _check_wrapper(opts, wrapper, reduce_type, is_fsdp=fsdp is not None)
        _check_param_keys(opts, reduce_type)
        default_norm: LossNormalization = "per_rank" if is_mainline(config) or reduce_type == "param" else "global"
        loss_normalization = _choice(opts, "loss_normalization", ("global", "per_rank"), default_norm)
        if reduce_type == "param" and loss_normalization == "global":
            raise _error(
                '"loss_normalization" "per_rank" with reduce_type "param", where each rank updates by itself', "global"
            )
        backend = opts.get("backend")
        if backend is not None and (not isinstance(backend, str) or not backend):
            raise _error('"backend" to be a str such as "gloo", "nccl" or "cpu:gloo,cuda:nccl"', backend)
        timeout = _seconds(opts, "timeout_sec", _DEFAULT_TIMEOUT)
        return cls(
            is_set=value is not None,
            backend=backend,
            timeout_sec=timeout,
            startup_timeout_sec=_seconds(opts, "startup_timeout_sec", min(timeout, _DEFAULT_STARTUP_TIMEOUT)),
            reduce_type=reduce_type,
            param_sync_step=opts.get("param_sync_step"),
            sync_on_cpu=bool(opts.get("sync_on_cpu", False)),
            wrapper=wrapper,
            wrapper_options=dict(opts.get("options") or {}),
            fsdp=fsdp,
            uneven=_choice(opts, "uneven", ("join", "stop")),
            loss_normalization=loss_normalization,
            data=_choice(opts, "data", ("sharded", "peers")),
        )


def data_shard() -> tuple[int, int]:
    """
    What the ranks make of the data: each reads every n-th sequence of the order, which is the same on all of them.

    :return: (index, number) of the shard of this process; (0, 1) if each rank has an order of its own over all data
    """
    if state.world_size <= 1:
        return 0, 1
    config = find_global_config()
    if config is not None and every_rank_has_all_data(config):
        return 0, 1
    return state.rank, state.world_size


def every_rank_has_all_data(config: Config | Mapping[str, Any]) -> bool:
    """
    :param config: the user's
    :return: whether each rank reads all data in an order of its own, as with the peers; only in training
    """
    if TaskOptions.from_config(config).task != "train":
        return False
    return _choice(_value(config) or {}, "data", ("sharded", "peers")) == "peers"


def _value(config: Config | Mapping[str, Any]) -> Mapping[str, Any] | None:
    # Datasets ask too, in worker processes which may not have declared all options.
    name = "torch_distributed"
    assert lookup(name) is not None, "the module declares it"
    value = read(config, name)
    if value is None or value is False:
        return None
    if not isinstance(value, Mapping):
        raise _error("a dict; {} enables it with all defaults", value)
    return value


def _check_wrapper(opts: Mapping[str, Any], wrapper: Any, reduce_type: str, *, is_fsdp: bool) -> None:
    if wrapper is not None and not isinstance(wrapper, str) and not callable(wrapper):
        raise _error('"class" to be "fsdp", a class, or its dotted name', wrapper)
    options = opts.get("options")
    if options is not None and not isinstance(options, Mapping):
        raise _error('"options" to be a dict', options)
    if is_fsdp:
        if reduce_type != "grad" or options:
            raise _error(
                'with class "fsdp" no other "reduce_type" than "grad", and no "options"',
                dict(opts),
                f"Its own keys are {', '.join(SHARDING_KEYS)}",
            )
        return
    if reduce_type != "grad" and (wrapper is not None or options):
        raise _error(
            f'no "class" and "options" with reduce_type "{reduce_type}", which has none',
            dict(opts),
            'Remove them, or use reduce_type "grad"',
        )
    for key in SHARDING_KEYS:
        if key in opts:
            raise _error(f'"{key}" only with "class": "fsdp"', dict(opts))


def _check_param_keys(opts: Mapping[str, Any], reduce_type: str) -> None:
    step = opts.get("param_sync_step")
    if reduce_type == "param":
        if isinstance(step, bool) or not isinstance(step, int) or step < 1:
            raise _error(
                '"param_sync_step" to be an int >= 1 with reduce_type "param"',
                step,
                'Set e.g. torch_distributed = {"reduce_type": "param", "param_sync_step": 100}',
            )
    elif step is not None or opts.get("sync_on_cpu"):
        raise _error(
            f'no "param_sync_step" and "sync_on_cpu" with reduce_type "{reduce_type}"',
            dict(opts),
            'Remove them, or set "reduce_type": "param"',
        )
    if not isinstance(opts.get("sync_on_cpu", False), (bool, int)):
        raise _error('"sync_on_cpu" to be True or False', opts["sync_on_cpu"])


def _choice(opts: Mapping[str, Any], key: str, values: tuple[str, ...], default: str | None = None) -> Any:
    """:return: the value of that key. Any: one of the literals"""
    value = opts.get(key)
    if value is None:
        return default or values[0]
    if value not in values:
        similar = closest_names(str(value), values)
        expected = " or ".join(f'"{v}"' for v in values)
        raise _error(f'"{key}" to be {expected}', value, f'Did you mean "{similar[0]}"' if similar else None)
    return value


def _seconds(opts: Mapping[str, Any], key: str, default: float) -> float:
    value = opts.get(key)
    if value is None:
        return default
    if isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0:
        raise _error(f'"{key}" to be a number of seconds > 0', value)
    return float(value)


def _error(expected: str, got: object, todo: str | None = None) -> OptionError:
    return OptionError("torch_distributed", expected=expected, got=got, todo=todo)
