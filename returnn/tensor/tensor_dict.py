"""`TensorDict`: tensors by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.errors import BatchKeyError, ModelError
from returnn.tensor._assign import check_shape, lengths_in, set_lengths
from returnn.tensor.dim import Dim
from returnn.tensor.tensor import Tensor

__all__ = ["TensorDict"]


class TensorDict:
    """
    Tensors by name, e.g. the streams of one batch, or the outputs of one forward step.

    The dict itself is the attribute ``data``. This is no dict: it has neither keys() nor items() nor a length.
    """

    __iter__ = None  # "for key in extern_data" would ask for the keys 0, 1, ...

    def __init__(self, data: Mapping[str, Tensor | Mapping[str, Any]] | None = None):
        """
        :param data: copied. Descriptions (dicts of arguments of Tensor) become Tensors. Any: literals of a config
        :raises ModelError: an invalid description
        """
        self.data: dict[str, Tensor] = {}
        if data:
            self.update(data, auto_convert=True)

    def __repr__(self) -> str:
        return f"TensorDict({list(self.data.values())})"

    def __getitem__(self, name: str) -> Tensor:
        """:raises BatchKeyError: there is no such entry; says which there are"""
        try:
            return self.data[name]
        except KeyError:
            raise BatchKeyError(
                f"there is no tensor {name!r}, but {', '.join(map(repr, self.data)) or 'none at all'}. Streams of "
                "extern_data with available_for_inference = False are left out in the task forward."
            ) from None

    def __contains__(self, name: object) -> bool:
        return name in self.data

    def update(
        self, data: Mapping[str, Tensor | Mapping[str, Any]] | TensorDict, *, auto_convert: bool = False
    ) -> None:
        """
        Add or replace entries.

        :param data: by name. Any: literals of a config
        :param auto_convert: make a Tensor of a description: a dict of arguments of Tensor, as in the option extern_data
        :raises ModelError: an entry is neither
        """
        if isinstance(data, TensorDict):
            self.data.update(data.data)
            return
        for name, entry in data.items():
            if isinstance(entry, Mapping) and auto_convert:
                # The name in the description, if any, is only for messages; labels have no use here.
                entry = Tensor(name, **{k: v for k, v in entry.items() if k not in ("name", "vocab")})
            if not isinstance(entry, Tensor):
                raise ModelError(
                    f"TensorDict: the entry {name!r} is {entry!r} ({type(entry).__name__}), expected a Tensor"
                    + (' or a description as {"dim": 9}.' if auto_convert else ".")
                )
            self.data[name] = entry

    def reset_content(self) -> None:
        """Forget the values and the lengths of all axes, the size of the batch included; keep the descriptions."""
        for tensor in self.data.values():
            tensor.raw_tensor = None
            for dim in tensor.dims:
                dim.reset_eager()

    def copy_template(self) -> TensorDict:
        """:return: the same without values, with the same axes"""
        res = TensorDict()
        res.data = {k: v.copy_template() for k, v in self.data.items()}
        return res

    def as_raw_tensor_dict(self, *, with_sizes: bool = True, static_sizes: bool = False) -> dict[str, Any]:
        """
        :param with_sizes: also the known sizes of the batch axis (``<key>:size0``, ``[]``) and of dynamic axes
            (``<key>:size<axis>``, ``[B]`` or ``[]``)
        :param static_sizes: also those of static axes, as ints
        :return: new dict: per entry its raw tensor, and the sizes. Any: raw tensors of any framework
        :raises ModelError: an entry has no value
        """
        res: dict[str, Any] = {}
        for key, tensor in self.data.items():
            if tensor.raw_tensor is None:
                raise ModelError(f"TensorDict: {key!r} has no value (raw_tensor is None).")
            res[key] = tensor.raw_tensor
            for axis, dim in enumerate(tensor.dims) if with_sizes else ():
                if dim.size is not None:
                    if static_sizes:
                        res[f"{key}:size{axis}"] = dim.size
                elif dim.is_dim_known():
                    res[f"{key}:size{axis}"] = dim.get_size_tensor().raw_tensor
        return res

    def assign_from_raw_tensor_dict_(self, raw: Mapping[str, Any]) -> None:
        """
        Set the values of all entries, and the lengths of their axes, which are forgotten before.

        :param raw: as :func:`as_raw_tensor_dict` gives it; other keys are left alone. Any: raw tensors of any framework
        :raises ModelError: an entry is missing; shapes, sizes or lengths do not fit
        """
        self.reset_content()
        for key, tensor in self.data.items():
            if key not in raw:
                raise ModelError(f"TensorDict: there is no value for {key!r}, only for {sorted(map(str, raw))}.")
            value = raw[key]
            check_shape(tensor, value, key=key)
            batch = next((d for d in tensor.dims if d.is_batch_dim()), None)
            tensor.raw_tensor = value
            for axis, dim in enumerate(tensor.dims):
                lens = lengths_in(raw, key, axis)
                if dim.size is None and lens is not None:
                    self._set_size(dim, lens, key=key, axis=axis, value=value, batch=batch)

    def _set_size(self, dim: Dim, lens: Any, *, key: str, axis: int, value: Any, batch: Dim | None) -> None:
        num_seqs = 0
        if batch is not None:
            num_seqs = int(value.shape[self.data[key].dims.index(batch)])
        if lens.ndim and batch is None:
            raise ModelError(f"{key!r}: there are lengths per sequence for axis {axis}, but it has no batch axis.")
        set_lengths(dim, lens, key=key, axis=axis, size=int(value.shape[axis]), batch=batch or dim, num_seqs=num_seqs)
