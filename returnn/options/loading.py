"""The option for reading files of unknown origin."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn._state import find_global_config
from returnn.log import log
from returnn.options.registry import Option, declare
from returnn.options.values import read_bool

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["LoadingOptions"]

declare(
    Option(
        "unsafe_load",
        "bool",
        False,
        "Load checkpoints and pickles (vocabularies, sequence lists) that contain other objects than tensors and plain values. "
        "Such a file can run any code: only for files you trust. A warning at the start says that it is on.",
        aliases=("load_unsafe_checkpoints",),
    ),
)


@dataclasses.dataclass(frozen=True)
class LoadingOptions:
    """What a file may contain."""

    allow_unsafe: bool = False

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> LoadingOptions:
        """
        :param config:
        :raises OptionError: not a bool
        """
        return cls(allow_unsafe=read_bool(config, "unsafe_load"))

    @classmethod
    def from_global_config(cls) -> LoadingOptions:
        """
        :return: of the global config, also in data processes; without one, the default
        :raises OptionError: not a bool
        """
        config = find_global_config()
        return cls.from_config(config) if config is not None else cls()

    def warn(self) -> None:
        """Say once that it is on."""
        if self.allow_unsafe:
            log.print_warning("unsafe_load is set: checkpoints and pickles that are loaded can run any code.")
