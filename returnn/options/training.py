"""Options of the engine itself: device, seeds, what to do about inf/nan."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, Literal

from returnn.errors import OptionError
from returnn.options.registry import Option, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["EngineOptions"]

declare(
    Option(
        "device",
        'None | "cpu" | "cuda" | "cuda:N" | "gpu" | "mps"',
        None,
        'Where the model runs; unset: cuda if there is one, else cpu ("gpu" means cuda). '
        "The environment variable PT_DEVICE overrides it.",
        tasks=("train", "forward", "eval", "initialize_model"),
    ),
    Option(
        "random_seed",
        "int",
        42,
        "Seed of the model initialisation, of the loader workers, and (mainline dialect, or several ranks) of each epoch.",
        tasks=("train", "forward", "eval", "initialize_model"),
    ),
    Option(
        "stop_on_nonfinite_train_score",
        "bool",
        True,
        "Stop when a training loss is inf or nan; False: skip the update of that step, and count it. "
        "Either way the weights stay as they were.",
        tasks=("train",),
    ),
    Option(
        "deterministic",
        'bool | "strict"',
        False,
        "True: torch uses deterministic algorithms, the generators of numpy and random are seeded, and the log names what can still "
        'differ; operations without such an algorithm warn. "strict": they are errors. Costs speed on GPUs.',
        tasks=("train", "forward", "eval", "initialize_model"),
    ),
    Option(
        "amp_in_forward",
        "bool",
        False,
        "Use torch_amp_options in the forward task too; by default it runs in full precision.",
        tasks=("forward",),
    ),
)


def _bool(config: Config | Mapping[str, Any], name: str) -> bool:
    value = read(config, name)
    if value is None:
        return False
    if not isinstance(value, (bool, int)):
        raise OptionError(name, expected="True or False", got=value)
    return bool(value)


def _deterministic(config: Config | Mapping[str, Any]) -> bool | Literal["strict"]:
    value = read(config, "deterministic")
    if value == "strict":
        return "strict"
    if value is not None and (not isinstance(value, (bool, int)) or value not in (0, 1)):
        raise OptionError("deterministic", expected='True, False, or "strict"', got=value)
    return bool(value)


@dataclasses.dataclass(frozen=True)
class EngineOptions:
    """Read once when the engine is created."""

    device: str | None
    random_seed: int
    stop_on_nonfinite_train_score: bool
    amp_in_forward: bool
    deterministic: bool | Literal["strict"] = False

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> EngineOptions:
        """
        :param config: the user's
        :raises OptionError: invalid value
        """
        device = read(config, "device")
        if device is not None and not isinstance(device, str):
            raise OptionError("device", expected='a str such as "cpu" or "cuda"', got=device)
        seed = read(config, "random_seed")
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise OptionError("random_seed", expected="an int", got=seed)
        return cls(
            device=device or None,
            random_seed=seed,
            stop_on_nonfinite_train_score=_bool(config, "stop_on_nonfinite_train_score"),
            amp_in_forward=_bool(config, "amp_in_forward"),
            deterministic=_deterministic(config),
        )
