"""
The backend that a config asks for: PyTorch, or an error.
"""

from __future__ import annotations

from typing import Any

from returnn._state import find_global_config
from returnn.errors import NotSupportedError

__all__ = ["BackendEngine"]


class BackendEngine:
    """
    Namespace of static functions. Only PyTorch is supported; the other numbers exist because client code compares them.
    """

    TensorFlowNetDict = 1
    TensorFlow = 2
    Torch = 3
    Jax = 4

    class CannotSelectEngine(Exception):
        """There is no config and no default."""

    @classmethod
    def select_engine(
        cls, *, engine: int | None = None, default_fallback_engine: int | None = None, config: Any = None
    ) -> None:
        """
        :param engine: one of the numbers; default: what the option ``backend`` of the config says
        :param default_fallback_engine: if the config says nothing
        :param config: Config (Any: a higher layer); default is the global one
        :raises Exception: nothing says which backend
        :raises NotSupportedError: another one than torch
        """
        if engine is None:
            config = config if config is not None else find_global_config()
            backend = config.value("backend", None) if config is not None else None
            if backend is not None:
                if backend != "torch":
                    raise NotSupportedError(f'backend = {backend!r} is not supported. Set backend = "torch".')
                engine = cls.Torch
            elif default_fallback_engine is not None:
                engine = default_fallback_engine
            else:
                raise Exception("No backend defined. Please set the config option 'backend'.")
        if engine != cls.Torch:
            raise NotSupportedError(
                f'Backend {engine} is not supported, only BackendEngine.Torch. Set backend = "torch".'
            )

    @classmethod
    def get_selected_engine(cls) -> int:
        """:return: Torch"""
        return cls.Torch

    @classmethod
    def is_torch_selected(cls) -> bool:
        """:return: True"""
        return True

    @classmethod
    def is_tensorflow_selected(cls) -> bool:
        """:return: False"""
        return False
