"""`Dim`: one axis of a tensor, static or with one length per sequence."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy

from returnn.errors import ModelError, describe
from returnn.tensor._raw import arange_like, is_torch, new_scalar, on_device

if TYPE_CHECKING:
    from returnn.tensor.tensor import Tensor

__all__ = ["Dim", "batch_dim", "single_step_dim"]


class Dim:
    """
    An axis. Two Dims are equal only if they are the same object, whatever their names; so they are keys of dicts.

    Static: ``dimension`` is an int. Dynamic: ``dimension`` is None, and ``dyn_size_ext`` holds the lengths: usually a
    Tensor over the batch axis, int32 ``[B]``, else one length for all sequences, int32 ``[]``.
    The batch axis has its size in ``dyn_size_ext``, int32 ``[]``, once it is known.

    Sizes are kept on the CPU, so that asking for them never waits for the device.
    Copies by pickle and copy.deepcopy are new axes, except those of :data:`batch_dim` and :data:`single_step_dim`.
    """

    class Types:
        """Values of ``kind``."""

        Batch = "batch"
        Spatial = "spatial"
        Feature = "feature"

    #: Name in this module of an axis that exists once per process.
    _global_name: str | None = None
    #: The class Tensor, which sets this itself: Dim and Tensor need each other. Any: because of that.
    _tensor_class: ClassVar[Any]

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
        :raises ModelError: none of these, a negative size, or lengths that are no whole numbers
        """
        if isinstance(dimension, numpy.integer):
            dimension = int(dimension)
        if isinstance(dimension, bool) or not (
            dimension is None or isinstance(dimension, int) or hasattr(dimension, "raw_tensor")
        ):
            raise ModelError(
                describe(
                    f"Dim {name or description or 'without name'} cannot be made",
                    expected="int, None or Tensor as dimension",
                    got=dimension,
                    todo="For lengths of sequences write "
                    'Dim(Tensor("time", [batch_dim], "int32", raw_tensor=lengths), name="time")',
                )
            )
        if dimension is not None and not isinstance(dimension, int):
            dyn_size_ext, dimension = dimension, None
        if dimension is not None and dimension < 0:
            raise ModelError(describe("Dim cannot be made", expected="a size of at least 0", got=dimension))
        if dyn_size_ext is not None and not str(getattr(dyn_size_ext, "dtype", "")).startswith(("int", "uint")):
            raise ModelError(
                describe("Dim cannot be made", expected="lengths as Tensor of an int dtype", got=dyn_size_ext)
            )
        self.size: int | None = dimension
        self.dimension: int | None = dimension
        self.name = name or description
        self.kind = kind
        self.dyn_size_ext = dyn_size_ext

    def __repr__(self) -> str:
        if self.is_batch_dim():
            return "Dim{B}"
        name = repr(self.name or "unnamed")
        if self.size is not None:
            return f"Dim{{{name}({self.size})}}"
        if self.dyn_size_ext is None:
            return f"Dim{{{name}[?]}}"
        return f"Dim{{{name}[{','.join('B' if d.is_batch_dim() else repr(d) for d in self.dyn_size_ext.dims)}]}}"

    def __reduce__(self) -> Any:  # Any: a form of the pickle protocol
        if self._global_name is not None:
            return self._global_name
        return super().__reduce__()

    def __reduce_ex__(self, protocol: Any) -> Any:  # Any: as __reduce__
        if self._global_name is not None:
            return self._global_name
        return super().__reduce_ex__(protocol)

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

    def need_masking(self) -> bool:
        """
        :return: whether there may be padding: there is one length per sequence, and they are not all known to be equal.
            Lengths on another device than the CPU are not looked at
        """
        if self.size is not None or self.is_batch_dim():
            return False
        lens = self.lengths()
        if lens is None:
            return True
        if not lens.ndim:
            return False
        if is_torch(lens) and lens.device.type != "cpu":
            return True
        return bool((lens != lens[:1]).any())

    @property
    def capacity(self) -> int | None:
        """Number of places along this axis: the static size, or the maximum of the lengths; None: not known yet."""
        return self.get_dim_value() if self.is_dim_known() else None

    def get_dim_value(self) -> int:
        """
        :return: static size, or the maximum of the lengths; 0 without any sequence
        :raises ModelError: the lengths are not set
        """
        if self.size is not None:
            return self.size
        raw = self._known_sizes()
        if not raw.ndim:
            return int(raw)
        return int(raw.max()) if raw.shape[0] else 0

    def get_dim_value_tensor(self) -> Tensor:
        """
        :return: the same as 0-dim int32 Tensor, where the lengths are
        :raises ModelError: the lengths are not set
        """
        if self.size is not None:
            return self._new_tensor("dim_value", (), "int32", new_scalar(self.size))
        sizes = self._known_sizes_tensor()
        if not sizes.dims:
            return sizes
        raw = sizes.raw_tensor
        return self._new_tensor("dim_value", (), sizes.dtype, raw.max() if raw.shape[0] else new_scalar(0))

    def get_size_tensor(self, device: Any = None) -> Tensor:
        """
        :param device: where to; None: where they are, which is the CPU. Any: what torch takes as device
        :return: lengths ``[B]`` or ``[]``; of a static axis and of the batch: its size, ``[]``; int32
        :raises ModelError: the lengths are not set
        """
        if self.size is not None:
            return self._new_tensor("size", (), "int32", new_scalar(self.size, device))
        sizes = self._known_sizes_tensor()
        raw = on_device(sizes.raw_tensor, device)
        return sizes if raw is sizes.raw_tensor else self._new_tensor("size", sizes.dims, sizes.dtype, raw)

    def get_mask(self, dim_order: Sequence[Dim] | None = None, device: Any = None) -> Tensor:
        """
        :param dim_order: axes of the result in this order; those that it lacks are left out of it. None: ``[B, axis]``
        :param device: where to; None: where the lengths are. Any: what torch takes as device
        :return: bool Tensor: whether the place belongs to the sequence, so False is padding. Without lengths per
            sequence it is ``[axis]``, all True
        :raises ModelError: the lengths are not set, or dim_order lacks an axis
        """
        sizes = self.get_size_tensor(device)
        index = arange_like(self.get_dim_value(), sizes.raw_tensor)
        dims = (*sizes.dims, self)
        mask = index < sizes.raw_tensor[..., None]
        if dim_order is not None:
            missing = [d for d in dims if d not in dim_order]
            if missing:
                raise ModelError(f"{self}: the mask has the axes {list(dims)}, but dim_order lacks {missing}.")
            order = tuple(dims.index(d) for d in dim_order if d in dims)
            mask = mask.permute(order) if is_torch(mask) else mask.transpose(order)
            dims = tuple(dims[i] for i in order)
        return self._new_tensor("mask", dims, "bool", mask)

    def reset_eager(self) -> None:
        """Forget the lengths of the last step; the description of their axes stays. A static axis stays as it is."""
        if self.size is None and self.dyn_size_ext is not None and self.dyn_size_ext.raw_tensor is not None:
            # A new object: whoever holds the lengths of the last step keeps them.
            self.dyn_size_ext = self.dyn_size_ext.copy_template()

    def copy(self, name: str | None = None) -> Dim:
        """
        :param name: None: the same
        :return: another axis, not equal to this one, with the same sizes
        """
        sizes = None if self.dyn_size_ext is None else self.dyn_size_ext.copy()
        return Dim(self.size, name=name or self.name, kind=self.kind, dyn_size_ext=sizes)

    def _known_sizes_tensor(self) -> Tensor:
        if self.dyn_size_ext is None or self.dyn_size_ext.raw_tensor is None:
            raise ModelError(
                f"{self}: the size is not known yet. Set its dyn_size_ext.raw_tensor, e.g. lengths [B]; for the axes of "
                "extern_data that happens when a step starts."
            )
        return self.dyn_size_ext

    def _known_sizes(self) -> Any:  # Any: raw tensor
        return self._known_sizes_tensor().raw_tensor

    def _new_tensor(self, what: str, dims: tuple[Dim, ...], dtype: str, raw: Any) -> Tensor:
        return self._tensor_class(f"{self.name or 'dim'}:{what}", dims, dtype, raw_tensor=raw)  # type: ignore[no-any-return]


#: The axis over the sequences of a batch.
batch_dim = Dim(None, name="batch", kind=Dim.Types.Batch)
#: The axis of a single step, in step-wise processing.
single_step_dim = Dim(1, name="single-step", kind=Dim.Types.Spatial)
batch_dim._global_name = "batch_dim"
single_step_dim._global_name = "single_step_dim"
