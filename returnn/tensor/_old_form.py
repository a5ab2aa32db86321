"""The old description of a tensor in configs: ``dim``, ``shape``, ``sparse``, ``time_dim_axis`` instead of ``dims``."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy

from returnn.errors import ModelError
from returnn.tensor.dim import Dim, batch_dim

__all__ = ["OLD_ARGUMENTS", "check_arguments", "dims_of_old_form", "dtype_name"]

#: Arguments of the old form; batch_dim_axis can only be its default.
OLD_ARGUMENTS = ("shape", "dim", "sparse", "time_dim_axis", "feature_dim_axis", "batch_dim_axis")

#: The other arguments of a description.
_OTHER_ARGUMENTS = ("dims", "dim_tags", "dtype", "sparse_dim", "feature_dim", "available_for_inference")

#: Names of dtypes that numpy knows, but looks up for long.
_USUAL_DTYPES = ("int32", "float32", "int64", "bool")

#: Names of dtypes that numpy does not know.
_OTHER_DTYPES = ("bfloat16", "string", "str", "object")

_NOT_GIVEN: Any = object()


def dtype_name(dtype: object) -> str | None:
    """
    :param dtype: as given: its name, or a dtype of numpy or torch
    :return: its name, e.g. "float32"; also "string". None: there is no such dtype
    """
    if not isinstance(dtype, str):
        is_numpy = isinstance(dtype, numpy.dtype) or (isinstance(dtype, type) and issubclass(dtype, numpy.generic))
        name = str(numpy.dtype(dtype)) if is_numpy else str(dtype)  # type: ignore[call-overload]
        return name.removeprefix("torch.") if is_numpy or name.startswith("torch.") else None
    if dtype in _USUAL_DTYPES or dtype in _OTHER_DTYPES or dtype.startswith("float8_"):
        return dtype
    try:
        return dtype if numpy.dtype(dtype).name == dtype else None
    except TypeError:
        return None


def check_arguments(name: str, opts: Mapping[str, Any]) -> None:
    """
    :param name: of the tensor
    :param opts: arguments that are not those of the new form. Any: literals of a config
    :raises ModelError: they are not those of the old form either; names what was probably meant
    """
    unknown = [key for key in opts if key not in OLD_ARGUMENTS]
    if not unknown:
        return
    known = [*_OTHER_ARGUMENTS, *OLD_ARGUMENTS]
    guess = difflib.get_close_matches(unknown[0], known, n=1)
    raise ModelError(
        f"Tensor {name!r}: unknown arguments {', '.join(unknown)}."
        + (f" Did you mean {guess[0]!r}?" if guess else "")
        + f" Known are name, {', '.join(known)}."
    )


def dims_of_old_form(
    name: str, opts: Mapping[str, Any], *, sparse_dim: Dim | None = None
) -> tuple[tuple[Dim, ...], Dim | None]:
    """
    :param name: of the tensor; the names of the axes are made from it
    :param opts: of OLD_ARGUMENTS. ``shape`` is without the batch axis, None is a dynamic size; without it: (time, dim), or
        (time,) if sparse; ``time_dim_axis`` None: without the time axis. Any: a literal of a config
    :param sparse_dim: as given, if so
    :return: axes, batch first; axis that sparse values are indices of, or None
    :raises ModelError: unknown arguments, wrong values
    """
    check_arguments(name, opts)
    if opts.get("batch_dim_axis", 0) != 0:
        raise ModelError(
            f"Tensor {name!r}: batch_dim_axis = {opts['batch_dim_axis']!r} is not supported. Give all axes in order: "
            "dims=[Dim(...), batch_dim, ...]."
        )
    dim = opts.get("dim", _NOT_GIVEN)
    size = getattr(dim, "dimension", dim)
    if size is not _NOT_GIVEN and size is not None and (isinstance(size, bool) or not isinstance(size, int)):
        raise ModelError(f"Tensor {name!r}: dim = {dim!r}, expected an int, a Dim or None.")
    if sparse_dim is None and opts.get("sparse"):
        if size is None or size is _NOT_GIVEN:
            raise ModelError(f"Tensor {name!r}: sparse = True needs dim: the number of classes.")
        sparse_dim = dim if isinstance(dim, Dim) else Dim(size, name=f"{name}:sparse-dim", kind=Dim.Types.Feature)
    shape = _shape(name, opts, size, is_sparse=sparse_dim is not None)
    return (batch_dim, *_spatial_and_feature(name, shape, is_sparse=sparse_dim is not None)), sparse_dim


def _shape(name: str, opts: Mapping[str, Any], size: Any, *, is_sparse: bool) -> list[int | None]:
    if opts.get("shape") is not None:
        shape = list(opts["shape"])
        for entry in shape:
            if entry is not None and (isinstance(entry, bool) or not isinstance(entry, int)):
                raise ModelError(
                    f"Tensor {name!r}: shape = {opts['shape']!r}, expected ints, and None for dynamic axes."
                )
        if not is_sparse and isinstance(size, int) and (not shape or shape[-1] != size):
            raise ModelError(f"Tensor {name!r}: dim = {size} does not fit to shape = {opts['shape']!r}.")
        return shape
    has_time = opts.get("time_dim_axis", 1) is not None
    shape = [None] if has_time else []
    if not is_sparse and isinstance(size, int):
        shape.append(size)
    return shape


def _spatial_and_feature(name: str, shape: Sequence[int | None], *, is_sparse: bool) -> list[Dim]:
    dims = []
    num_dynamic = 0
    for i, size in enumerate(shape):
        if size is None:
            kind = "time" if not num_dynamic else f"spatial{num_dynamic}"
            num_dynamic += 1
            dims.append(Dim(None, name=f"{kind}:var-unk:{name}", kind=Dim.Types.Spatial))
        else:
            is_feature = i == len(shape) - 1 and not is_sparse
            dims.append(
                Dim(
                    size,
                    name=f"{name}:{'feature-dense' if is_feature else f'static-dim{i + 1}'}",
                    kind=Dim.Types.Feature if is_feature else Dim.Types.Spatial,
                )
            )
    return dims
