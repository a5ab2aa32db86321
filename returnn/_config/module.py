"""
The module ``__returnn_config__``: attributes are the names of the global config.

Functions and classes of a directly executed config have this as their ``__module__``. With the module in ``sys.modules``,
``pickle``, ``dataclasses``, ``typing`` and ``inspect`` find what they look for.
"""

from __future__ import annotations

import sys
import types
from typing import Any

from returnn._config.files import CONFIG_MODULE_NAME
from returnn._state import find_global_config, state

__all__ = ["ConfigModule", "install_config_module"]


def _namespace() -> dict[str, Any] | None:
    # What a config is being loaded for comes first: then it is not yet the global one.
    config = state.loading_config or find_global_config()
    return config.typed_dict if config is not None else None


class ConfigModule(types.ModuleType):
    """Reads and writes the typed options of the global config."""

    def __getattribute__(self, item: str) -> Any:
        # dataclasses and typing look names up in the __dict__ of the module.
        if item == "__dict__":
            namespace = _namespace()
            if namespace is not None:
                return namespace
        return super().__getattribute__(item)

    def __getattr__(self, item: str) -> Any:
        namespace = _namespace()
        if namespace is None:
            raise AttributeError(f"module {CONFIG_MODULE_NAME!r} has no attribute {item!r}: there is no global config")
        if item not in namespace:
            raise AttributeError(f"module {CONFIG_MODULE_NAME!r} has no attribute {item!r}: not in the global config")
        return namespace[item]

    def __setattr__(self, key: str, value: Any) -> None:
        namespace = _namespace()
        if key == "__file__" or namespace is None:
            super().__setattr__(key, value)
        else:
            namespace[key] = value

    def __dir__(self) -> list[str]:
        return sorted(_namespace() or ())

    def __reduce__(self) -> tuple[Any, ...]:
        return install_config_module, ()


def install_config_module() -> types.ModuleType:
    """
    Register the module in ``sys.modules`` if it is not there yet.

    :return: the module
    """
    module = sys.modules.get(CONFIG_MODULE_NAME)
    if not isinstance(module, ConfigModule):
        module = ConfigModule(CONFIG_MODULE_NAME)
        sys.modules[CONFIG_MODULE_NAME] = module
    return module
