"""Options that describe tensors: the data streams, and the outputs of forward_step."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ModelError, OptionError
from returnn.options.registry import Option, declare, read
from returnn.tensor import Dim, TensorDict

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["ExternDataOptions", "extern_data_from_opts", "templates_from_opts"]

_EXAMPLE = '{"data": {"dim": 9}}'
declare(
    Option(
        "extern_data",
        "dict[str, dict | Tensor]",
        None,
        "Describes the data streams: per key dims, or dim, shape and sparse, and dtype; makes the config one of the mainline "
        "dialect. Those with available_for_inference = False are left out in the task forward.",
    ),
    Option(
        "model_outputs",
        "dict[str, dict | Tensor]",
        None,
        "Describes the outputs that forward_step must mark, in the same form as extern_data.",
        tasks=("forward",),
    ),
)


@dataclasses.dataclass(frozen=True)
class ExternDataOptions:
    """The descriptions as templates. Axes that the config shares between entries are shared here as well."""

    extern_data: TensorDict | None
    model_outputs: TensorDict | None

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> ExternDataOptions:
        """
        :param config: the user's. Any: options of all types
        :return: new templates at each call: axes that are not given as Dim are different ones then
        :raises OptionError: a value is invalid; names the entry
        """
        extern_data = read(config, "extern_data")
        model_outputs = read(config, "model_outputs")
        return cls(
            extern_data=None if extern_data is None else extern_data_from_opts(extern_data),
            model_outputs=None if model_outputs is None else templates_from_opts("model_outputs", model_outputs),
        )


def templates_from_opts(name: str, opts: Mapping[str, Any] | TensorDict) -> TensorDict:
    """
    :param name: of the option, for messages
    :param opts: its value: by key, descriptions (arguments of Tensor) or Tensors. Any: literals of a config
    :return: new templates
    :raises OptionError: not a dict, or an entry is invalid; names the entry
    """
    if isinstance(opts, TensorDict):
        return opts.copy_template()
    if not isinstance(opts, Mapping):
        raise OptionError(
            name, expected="a dict from names to descriptions", got=opts, todo=f"Set e.g. {name} = {_EXAMPLE}"
        )
    res = TensorDict()
    for key, entry in opts.items():
        if not isinstance(key, str) or not key or ":" in key:  # "data:size1" would be taken for lengths
            raise OptionError(name, expected="names without colon as keys", got=key)
        try:
            res.update({key: entry}, auto_convert=True)
        except (ModelError, TypeError, ValueError) as exc:
            raise OptionError(
                f'{name}["{key}"]', expected="the description of a tensor, e.g. {'dim': 9}", got=entry, todo=str(exc)
            ) from exc
    return res.copy_template()


def extern_data_from_opts(opts: Mapping[str, Any] | TensorDict) -> TensorDict:
    """
    :param opts: value of extern_data. Any: literals of a config
    :return: new templates
    :raises OptionError: as templates_from_opts; the first axis of an entry is not the batch
    """
    res = templates_from_opts("extern_data", opts)
    batch: Dim | None = None
    for key, tensor in res.data.items():
        first = tensor.dims[0] if tensor.dims else None
        batch = first if batch is None else batch
        is_batch_first = first is not None and (first is batch or first.is_batch_dim())
        if not is_batch_first or any(dim.is_batch_dim() for dim in tensor.dims[1:]):
            raise OptionError(
                f'extern_data["{key}"]',
                expected="the batch as first axis",
                got=list(tensor.dims),
                todo='The data come as [batch, time, ...]: write dims=[batch_dim, Dim(None, name="time"), ...]',
            )
    return res
