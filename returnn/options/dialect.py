"""Which of the two config dialects a config is written in."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.options.registry import is_given

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["is_mainline"]


def is_mainline(config: Config | Mapping[str, Any]) -> bool:
    """
    :param config: the user's. Any: options of all types
    :return: whether it is in the dialect of RETURNN: it describes its data by ``extern_data``; else it is in Mini-RETURNN's.
        Decides defaults, score keys, log lines and losses, never the file system
    """
    return is_given(config, "extern_data")
