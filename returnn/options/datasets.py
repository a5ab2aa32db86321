"""
What datasets read from the global config: globals named by ``"config:NAME"``, and what the default seed offset depends on.
"""

from __future__ import annotations

import os
from typing import Any

from returnn._state import find_global_config, state
from returnn.config import Config, get_global_config
from returnn.errors import ConfigError, NotSupportedError
from returnn.options.distributed import every_rank_has_all_data
from returnn.options.registry import lookup, read

__all__ = [
    "RANDOM_SEED_OFFSET_ENV_VAR",
    "RANDOM_SEED_OFFSET_PER_RANK",
    "default_random_seed_offset",
    "has_config",
    "config_value",
]

RANDOM_SEED_OFFSET_ENV_VAR = "RETURNN_RANDOM_SEED_OFFSET"
RANDOM_SEED_OFFSET_PER_RANK = 16127


def _value(config: Config, name: str) -> Any:
    """:return: an option that another part declares, and whose presence alone matters here. Any: unchecked"""
    return read(config, name) if lookup(name) else config.typed_value(name)


def default_random_seed_offset() -> int:
    """
    The ``random_seed_offset`` of a dataset that sets none: 0 without a config, else that of the environment, else 0: all ranks
    have the same order, and each reads its part of it. With ``torch_distributed = {"data": "peers"}`` 16127 per rank, so that
    each rank reads all data in its own order.

    :raises NotSupportedError: ``use_horovod`` is set
    """
    config = find_global_config()
    if config is None:
        return 0
    if _value(config, "use_horovod"):
        raise NotSupportedError("use_horovod is not supported. Start the ranks by torchrun, and remove the option.")
    env = os.environ.get(RANDOM_SEED_OFFSET_ENV_VAR)
    if env:
        try:
            return int(env)
        except ValueError as exc:
            raise ConfigError(
                f"environment variable {RANDOM_SEED_OFFSET_ENV_VAR}: expected an int, got {env!r}. Unset it or set an int."
            ) from exc
    return state.rank * RANDOM_SEED_OFFSET_PER_RANK if every_rank_has_all_data(config) else 0


def has_config(name: str) -> bool:
    """:return: whether the global config has that entry"""
    return get_global_config(return_empty_if_none=True).has(name)


def config_value(name: str) -> Any:
    """:return: entry of the global config. Any: the user's own global"""
    return get_global_config(return_empty_if_none=True).typed_value(name)
