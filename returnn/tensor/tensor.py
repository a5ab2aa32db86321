"""`Tensor`: a raw tensor with named axes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from returnn.errors import ModelError
from returnn.tensor._old_form import check_arguments, dims_of_old_form, dtype_name
from returnn.tensor.dim import Dim

__all__ = ["Tensor"]


class Tensor:
    """
    A template (``raw_tensor`` None) or a value with its axes.

    In a template each dynamic axis has ``dyn_size_ext``: the template of its lengths ``[B]``, int32.
    It has no operations: work on ``raw_tensor``.
    """

    #: dtype of lengths
    size_dtype = "int32"

    def __init__(
        self,
        name: str,
        dims: Sequence[Dim] | None = None,
        dtype: str | None = None,
        *,
        sparse_dim: Dim | None = None,
        feature_dim: Dim | None = None,
        raw_tensor: Any = None,
        available_for_inference: bool = True,
        dim_tags: Sequence[Dim] | None = None,
        **old_form: Any,
    ):
        """
        :param name: for messages
        :param dims: the axes. Without it: the old form
        :param dtype: e.g. "float32", or the dtype itself; default "int32" if sparse, else "float32"
        :param sparse_dim: the values are indices into this axis
        :param feature_dim: which axis is the feature axis
        :param raw_tensor: the value. Any: the framework's tensor type
        :param available_for_inference: whether it exists when there are no targets; False: left out in forward
        :param dim_tags: the same as dims
        :param old_form: ``dim``, ``shape``, ``sparse``, ... as in ``{"dim": 9}``: [batch, time, 9]; see _old_form.
            Any: literals of a config
        :raises ModelError: the number of axes does not fit; unknown arguments; both forms; axes that are no Dims
        """
        dims = dim_tags if dims is None else dims
        check_arguments(name, old_form)
        known_dtype = None if dtype is None else dtype_name(dtype)
        if dtype is not None and known_dtype is None:
            raise ModelError(
                f'Tensor {name!r}: dtype = {dtype!r}, expected the name of one, e.g. "float32" or "int32".'
            )
        if old_form and dims is not None and set(old_form) - {"dim", "sparse"}:  # which are tolerated where they fit
            raise ModelError(f"Tensor {name!r}: dims and {', '.join(old_form)} are both given. Remove the latter.")
        for what, one in (("sparse_dim", sparse_dim), ("feature_dim", feature_dim)):
            if one is not None and not isinstance(one, Dim):
                raise ModelError(
                    f"Tensor {name!r}: {what} is {one!r} ({type(one).__name__}), expected a Dim, e.g. Dim(9)."
                )
        if old_form:
            old_dims, sparse_dim = dims_of_old_form(name, old_form, sparse_dim=sparse_dim)
            if dims is None:
                dims = old_dims
                if feature_dim is None and old_dims[-1].kind == Dim.Types.Feature:
                    feature_dim = old_dims[-1]
        self.name = name
        self.dims: tuple[Dim, ...] = tuple(dims or ())
        self.dtype = known_dtype or ("int32" if sparse_dim is not None else "float32")
        self.sparse_dim = sparse_dim
        self.feature_dim = feature_dim
        self.raw_tensor = raw_tensor
        self.available_for_inference = available_for_inference
        for dim in self.dims:
            if not isinstance(dim, Dim):
                raise ModelError(
                    f"Tensor {name!r}: dims has the entry {dim!r} ({type(dim).__name__}), expected a Dim: batch_dim, "
                    'Dim(None, name="time") for an axis with lengths, Dim(9, name="feature") for a fixed size.'
                )
        if feature_dim is not None and feature_dim not in self.dims:
            raise ModelError(f"Tensor {name!r}: feature_dim {feature_dim} is none of the dims {list(self.dims)}.")
        if raw_tensor is None:
            self._describe_lengths()
        elif len(raw_tensor.shape) != len(self.dims):
            raise ModelError(
                f"Tensor {name!r}: raw tensor of shape {tuple(raw_tensor.shape)} does not fit to dims {list(self.dims)}."
            )

    def _describe_lengths(self) -> None:
        batch = next((d for d in self.dims if d.is_batch_dim()), None)
        if batch is None:
            return
        for dim in self.dims:
            if dim.is_dynamic() and dim.dyn_size_ext is None:
                dim.dyn_size_ext = Tensor(f"{dim.name or self.name}:size", [batch], self.size_dtype)

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
        """
        :param name: None: the same
        :return: the same without value, with the same axes
        """
        res = Tensor.__new__(Tensor)  # all was checked when this one was made
        res.__dict__.update(self.__dict__)
        res.raw_tensor = None
        if name is not None:
            res.name = name
        return res

    def copy(self, name: str | None = None) -> Tensor:
        """
        :param name: None: the same
        :return: the same with the same value and axes; the value is not copied
        """
        res = self.copy_template(name)
        res.raw_tensor = self.raw_tensor
        return res


Dim._tensor_class = Tensor
