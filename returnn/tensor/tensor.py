"""`Tensor`: a raw tensor with named axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn.errors import ModelError
from returnn.tensor.dim import Dim

__all__ = ["Tensor"]


class Tensor:
    """
    A template (``raw_tensor`` None) or a value with its axes.

    The old argument forms (``shape``, ``dim``, ``sparse``, ``time_dim_axis``) belong to the mainline dialect.
    """

    def __init__(
        self,
        name: str,
        dims: Sequence[Dim] | None = None,
        dtype: str | None = None,
        *,
        sparse_dim: Dim | None = None,
        feature_dim: Dim | None = None,
        raw_tensor: Any = None,
    ):
        """
        :param name: for messages
        :param dims: the axes
        :param dtype: e.g. "float32"; default "int32" if sparse, else "float32"
        :param sparse_dim: the values are indices into this axis
        :param feature_dim: which axis is the feature axis
        :param raw_tensor: the value. Any: the framework's tensor type
        :raises ModelError: the number of axes does not fit
        """
        self.name = name
        self.dims: tuple[Dim, ...] = tuple(dims or ())
        self.dtype = dtype or ("int32" if sparse_dim is not None else "float32")
        self.sparse_dim = sparse_dim
        self.feature_dim = feature_dim
        self.raw_tensor = raw_tensor
        if raw_tensor is not None and len(raw_tensor.shape) != len(self.dims):
            raise ModelError(
                f"Tensor {name!r}: raw tensor of shape {tuple(raw_tensor.shape)} does not fit to dims {list(self.dims)}."
            )

    def __repr__(self) -> str:
        return f"Tensor{{{self.name!r}, {list(self.dims)}, {self.dtype}}}"

    @property
    def batch_ndim(self) -> int:
        """Number of axes, the batch axis included."""
        return len(self.dims)

    @property
    def batch_shape(self) -> tuple[int | None, ...]:
        """Static sizes, None where dynamic."""
        return tuple(d.size for d in self.dims)

    def copy_template(self, name: str | None = None) -> Tensor:
        """:return: the same without value"""
        return Tensor(
            name or self.name, self.dims, self.dtype, sparse_dim=self.sparse_dim, feature_dim=self.feature_dim
        )

    def copy(self, name: str | None = None) -> Tensor:
        """:return: the same with the same value"""
        res = self.copy_template(name)
        res.raw_tensor = self.raw_tensor
        return res
