"""Options of checkpoints inside an epoch: when to write them, and when to stop."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.registry import Option, declare, read
from returnn.options.values import read_int, to_float

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["InnerCheckpointOptions"]

declare(
    Option(
        "save_every_steps",
        "int | None",
        None,
        "Write a checkpoint inside the epoch each so many training steps, counted over all epochs; only the newest is kept, "
        "and none of an epoch that is done.",
        tasks=("train",),
    ),
    Option(
        "save_every_minutes",
        "float | None",
        None,
        "Write a checkpoint inside the epoch each so many minutes, after the step that is running then.",
        tasks=("train",),
    ),
    Option(
        "stop_after_minutes",
        "float | None",
        None,
        "So many minutes after its start, the training writes a checkpoint and ends with exit code 85, after the step that is "
        "running then; the next start goes on there.",
        tasks=("train",),
    ),
)


@dataclasses.dataclass(frozen=True)
class InnerCheckpointOptions:
    """When a training saves and stops between the ends of its epochs. None: never."""

    save_every_steps: int | None
    save_every_minutes: float | None
    stop_after_minutes: float | None

    @property
    def given(self) -> tuple[str, ...]:
        """Names of the options that are set."""
        return tuple(field.name for field in dataclasses.fields(self) if getattr(self, field.name) is not None)

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> InnerCheckpointOptions:  # Any: raw option values
        """
        :param config: the user's
        :raises OptionError: a value is invalid
        """
        steps = read(config, "save_every_steps")
        return cls(
            save_every_steps=None if steps is None else read_int(config, "save_every_steps", minimum=1),
            save_every_minutes=_read_minutes(config, "save_every_minutes"),
            stop_after_minutes=_read_minutes(config, "stop_after_minutes"),
        )


def _read_minutes(config: Config | Mapping[str, Any], name: str) -> float | None:
    value = read(config, name)
    if value is None:
        return None
    minutes = to_float(value)
    if minutes is None or not math.isfinite(minutes) or minutes <= 0.0:
        raise OptionError(name, expected="a number of minutes > 0", got=value, todo=f"Set e.g. {name} = 30")
    return minutes
