"""`TensorDict`: tensors by name."""

from __future__ import annotations

from collections.abc import Mapping

from returnn.tensor.tensor import Tensor

__all__ = ["TensorDict"]


class TensorDict:
    """Tensors by name, e.g. the outputs of one forward step. The dict itself is the attribute ``data``."""

    def __init__(self, data: Mapping[str, Tensor] | None = None):
        """:param data: copied"""
        self.data: dict[str, Tensor] = dict(data or {})

    def __repr__(self) -> str:
        return f"TensorDict({list(self.data.values())})"

    def __getitem__(self, name: str) -> Tensor:
        return self.data[name]

    def __contains__(self, name: str) -> bool:
        return name in self.data

    def update(self, data: Mapping[str, Tensor] | TensorDict) -> None:
        """Add or replace entries."""
        self.data.update(data.data if isinstance(data, TensorDict) else data)

    def reset_content(self) -> None:
        """Drop the values, keep the templates."""
        for tensor in self.data.values():
            tensor.raw_tensor = None

    def copy_template(self) -> TensorDict:
        """:return: the same without values"""
        return TensorDict({k: v.copy_template() for k, v in self.data.items()})
