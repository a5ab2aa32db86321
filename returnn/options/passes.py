"""Options of what happens around the passes over the datasets: hooks of the user, memory, the end of the job's time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.model import check_signature
from returnn.options.registry import Option, declare, read
from returnn.options.values import read_bool, read_float

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["PassOptions"]

#: What epoch_start and epoch_end are called with.
_HOOK_KEYWORDS = ("epoch", "step", "model", "dataset_name")

declare(
    Option(
        "epoch_start",
        "callable(epoch=, step=, model=, dataset_name=, **kwargs)",
        None,
        'Called before each pass over the training data ("train") and over each evaluation dataset.',
        tasks=("train", "eval"),
    ),
    Option(
        "epoch_end",
        "callable(epoch=, step=, model=, dataset_name=, **kwargs)",
        None,
        "Called after each of these passes, before checkpoint and scores are written.",
        tasks=("train", "eval"),
    ),
    Option(
        "reset_dev_memory_caches",
        "bool",
        False,
        "Collect garbage and give the cached memory of the device back before each pass.",
        tasks=("train", "eval"),
    ),
    Option(
        "stop_for_resubmission_when_low_time_left",
        "bool",
        False,
        "In a SLURM job: after an epoch, end the run by SIGINT to its process group if the time that the job has left is "
        "less than the last epoch took, times stop_for_resubmission_safety_factor.",
        tasks=("train",),
    ),
    Option(
        "stop_for_resubmission_safety_factor",
        "float",
        1.2,
        "See stop_for_resubmission_when_low_time_left.",
        tasks=("train",),
    ),
)


@dataclasses.dataclass(frozen=True)
class PassOptions:
    """Read once when the engine is created."""

    epoch_start: Callable[..., Any] | None  # Any: user code
    epoch_end: Callable[..., Any] | None
    reset_memory_caches: bool
    stop_when_low_time_left: bool
    stop_safety_factor: float

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> PassOptions:
        """
        :param config:
        :raises ModelError: a hook is no function, or cannot be called as we will call it
        :raises OptionError: another value is invalid
        """
        factor = read_float(config, "stop_for_resubmission_safety_factor")
        if factor <= 0:
            raise OptionError("stop_for_resubmission_safety_factor", expected="a number above 0", got=factor)
        return cls(
            epoch_start=_hook(config, "epoch_start"),
            epoch_end=_hook(config, "epoch_end"),
            reset_memory_caches=read_bool(config, "reset_dev_memory_caches"),
            stop_when_low_time_left=read_bool(config, "stop_for_resubmission_when_low_time_left"),
            stop_safety_factor=factor,
        )


def _hook(config: Config | Mapping[str, Any], name: str) -> Callable[..., Any] | None:
    func: Callable[..., Any] | None = read(config, name)
    if func is not None:
        check_signature(name, func, keywords=_HOOK_KEYWORDS)
    return func
