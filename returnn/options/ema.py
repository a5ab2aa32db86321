"""Options of the exponential moving average of the weights."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.registry import Option, check_known_keys, declare, read
from returnn.options.values import to_float

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["EmaOptions"]

declare(
    Option(
        "ema",
        "dict(decay, start_step, every_n_steps, eval, forward, buffers) | None",
        None,
        "Keep an exponential moving average of the weights: average = decay * average + (1 - decay) * weights, after each "
        "every_n_steps-th (1) update of the optimizer, from the update after start_step (0) on. It is in the checkpoints under the key "
        '"ema" (a whole state dict, e.g. for checkpoint_key of preload_from_files). eval, forward: use it in evaluation, and in the '
        "task forward (both False). buffers: average floating-point buffers as well (False).",
        tasks=("train", "eval", "forward"),
    ),
)

_EXAMPLE = 'Set e.g. ema = {"decay": 0.999, "eval": True, "forward": True}'


@dataclasses.dataclass(frozen=True)
class EmaOptions:
    """How the weights are averaged, and where the average is used."""

    decay: float = 0.999
    # Number of updates before the first that counts.
    start_step: int = 0
    every_n_steps: int = 1
    eval: bool = False
    forward: bool = False
    buffers: bool = False

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> EmaOptions | None:
        """
        :param config:
        :return: None: off
        :raises OptionError: unknown keys, or wrong values
        """
        value = read(config, "ema")
        if value is None:
            return None
        if not isinstance(value, Mapping):
            raise OptionError("ema", expected="a dict or None", got=value, todo=_EXAMPLE)
        keys = [field.name for field in dataclasses.fields(cls)]
        check_known_keys("ema", value, keys, example=_EXAMPLE)
        decay = to_float(value.get("decay", cls.decay))
        if decay is None or not 0 <= decay < 1:
            raise OptionError("ema", expected='0 <= "decay" < 1', got=value["decay"], todo=_EXAMPLE)
        flags = {key: _bool(value, key) for key in ("eval", "forward", "buffers")}
        return cls(decay, _int(value, "start_step", 0, minimum=0), _int(value, "every_n_steps", 1, minimum=1), **flags)


def _int(value: Mapping[str, Any], key: str, default: int, *, minimum: int) -> int:
    number = value.get(key, default)
    if isinstance(number, bool) or not hasattr(number, "__index__") or int(number) < minimum:
        raise OptionError("ema", expected=f'int >= {minimum} for "{key}"', got=number, todo=_EXAMPLE)
    return int(number)


def _bool(value: Mapping[str, Any], key: str) -> bool:
    flag = value.get(key, False)
    if not isinstance(flag, bool):
        raise OptionError("ema", expected=f'True or False for "{key}"', got=flag, todo=_EXAMPLE)
    return flag
