"""Options for reading checkpoints of unknown origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.options.registry import Option, declare
from returnn.options.values import read_bool

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["LoadingOptions"]

declare(
    Option(
        "load_unsafe_checkpoints",
        "bool",
        False,
        "Load checkpoints that contain other objects than tensors and plain values. Such a file can run any code: only for files you trust.",
    ),
)


@dataclasses.dataclass(frozen=True)
class LoadingOptions:
    """What a checkpoint may contain."""

    allow_unsafe: bool = False

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> LoadingOptions:
        """
        :param config:
        :raises OptionError: not a bool
        """
        return cls(allow_unsafe=read_bool(config, "load_unsafe_checkpoints"))
