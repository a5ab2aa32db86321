"""`Dim`: one axis of a tensor, static or with one length per sequence."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from returnn.errors import ModelError, describe

if TYPE_CHECKING:
    from returnn.tensor.tensor import Tensor

__all__ = ["Dim", "batch_dim", "single_step_dim"]


class Dim:
    """
    An axis. Two Dims are equal only if they are the same object, whatever their names.

    Static: ``dimension`` is an int. Dynamic: ``dimension`` is None, and ``dyn_size_ext`` holds the lengths,
    usually a Tensor over the batch axis, int32, ``[B]``.
    """

    class Types:
        """Values of ``kind``."""

        Batch = "batch"
        Spatial = "spatial"
        Feature = "feature"

    def __init__(
        self,
        dimension: int | None | Tensor,
        *,
        name: str | None = None,
        kind: str | None = None,
        dyn_size_ext: Tensor | None = None,
        description: str | None = None,
    ):
        """
        :param dimension: int: static size. None: dynamic, sizes set later. Tensor of lengths: dynamic with these sizes
        :param name: for messages
        :param kind: one of Dim.Types
        :param dyn_size_ext: lengths, alternative to a Tensor as ``dimension``
        :param description: old name of ``name``
        """
        if dimension is not None and not isinstance(dimension, int):
            if not hasattr(dimension, "raw_tensor"):
                raise ModelError(
                    describe("Dim cannot be made", expected="int, None or Tensor as dimension", got=dimension)
                )
            dyn_size_ext, dimension = dimension, None
        self.size: int | None = dimension
        self.dimension: int | None = dimension
        self.name = name or description
        self.kind = kind
        self.dyn_size_ext = dyn_size_ext

    def __repr__(self) -> str:
        size = self.size if self.size is not None else "dynamic"
        return f"Dim{{{self.name or 'unnamed'} {size}}}"

    def is_batch_dim(self) -> bool:
        """:return: whether this is the axis over the sequences of a batch"""
        return self.kind == Dim.Types.Batch

    def is_static(self) -> bool:
        """:return: whether the size is a fixed number"""
        return self.size is not None

    def is_dynamic(self) -> bool:
        """:return: whether the size differs per sequence or step; the batch axis does not count"""
        return self.size is None and not self.is_batch_dim()

    def lengths(self) -> Any | None:
        """:return: raw lengths per sequence ``[B]``, or None. Any: the framework's tensor type"""
        if self.dyn_size_ext is None or self.is_batch_dim():
            return None
        return self.dyn_size_ext.raw_tensor

    def is_dim_known(self) -> bool:
        """:return: whether the size is static, or the lengths are set"""
        return self.size is not None or (self.dyn_size_ext is not None and self.dyn_size_ext.raw_tensor is not None)

    def get_dim_value(self) -> int:
        """
        :return: static size, or the maximum of the lengths
        :raises ModelError: the lengths are not set
        """
        if self.size is not None:
            return self.size
        if self.dyn_size_ext is None or self.dyn_size_ext.raw_tensor is None:
            raise ModelError(f"{self}: the size is not known yet. Set its dyn_size_ext.raw_tensor, e.g. lengths [B].")
        raw = self.dyn_size_ext.raw_tensor
        return int(raw.max() if getattr(raw, "ndim", 0) else raw)


#: The axis over the sequences of a batch.
batch_dim = Dim(None, name="batch", kind=Dim.Types.Batch)
#: The axis of a single step, in step-wise processing.
single_step_dim = Dim(1, name="single-step", kind=Dim.Types.Spatial)
