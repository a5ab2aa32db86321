"""What ``mark_as_output`` makes of its arguments: a tensor with axes that fits to what is expected."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from returnn.errors import ModelError
from returnn.frontend.axes import AxisSpec, check_lengths, in_order, resolve_dims
from returnn.tensor import Dim, Tensor

__all__ = ["make_output"]


def make_output(
    tensor: torch.Tensor | Tensor, name: str, *, dims: Sequence[AxisSpec] | None, expected: Tensor | None
) -> Tensor:
    """
    :param tensor: as given by the user
    :param name: of the output
    :param dims: as given: an entry per axis. None: those expected; else of a raw tensor: the batch, then static axes;
        of a Tensor: its own in the order batch, time, other
    :param expected: template, if the outputs are described (option model_outputs)
    :return: the output
    :raises ModelError: it has no value, it does not fit to dims or to the template, or lengths are unknown
    """
    where = f"mark_as_output: {name!r}"
    sparse_dim = None if expected is None else expected.sparse_dim
    given_dims = dims
    if dims is None and expected is not None:
        dims = expected.dims
    if isinstance(tensor, Tensor):
        if tensor.raw_tensor is None:
            raise ModelError(f"{where} is {tensor} without value (its raw_tensor is None).")
        if dims is None:
            dims = _usual_order(tensor.dims, where=where)
        if expected is None:
            sparse_dim = tensor.sparse_dim
        elif tensor.sparse_dim is not sparse_dim:
            raise ModelError(f"{where} has sparse_dim {tensor.sparse_dim}, expected {sparse_dim}.")
        tensor = in_order(tensor, dims, name=where)
    if not isinstance(tensor, torch.Tensor):
        raise ModelError(f"{where} is {type(tensor).__name__}, expected a torch tensor.")
    if expected is not None:
        if tensor.ndim != len(expected.dims):
            raise ModelError(
                f"{where} has {tensor.ndim} axes (shape {tuple(tensor.shape)}), expected the {len(expected.dims)} axes "
                f"{list(expected.dims)}."
            )
        if given_dims is not None:
            _check_same_dims(given_dims, expected.dims, where=where)
    try:
        resolved = resolve_dims(tensor, dims, name=name)
        _check_sizes(tensor, resolved, name=name)
    except ModelError as exc:
        raise ModelError(f"mark_as_output: {exc}") from exc
    if expected is not None and any(
        e.size != r.size or e.is_batch_dim() != r.is_batch_dim() or e.is_dynamic() != r.is_dynamic()
        for e, r in zip(expected.dims, resolved, strict=True)
    ):
        raise ModelError(f"{where} has dims {list(resolved)}, expected {list(expected.dims)}.")
    dtype = str(tensor.dtype).removeprefix("torch.")
    if expected is not None and expected.dtype != dtype:
        raise ModelError(
            f"{where} has dtype {dtype}, expected {expected.dtype}. Convert it, or set the dtype of its entry in model_outputs."
        )
    feature_dim = None if expected is None or expected.feature_dim not in resolved else expected.feature_dim
    return Tensor(name, resolved, dtype, sparse_dim=sparse_dim, feature_dim=feature_dim, raw_tensor=tensor)


def _usual_order(dims: Sequence[Dim], *, where: str) -> list[Dim]:
    batch = [d for d in dims if d.is_batch_dim()][:1]
    time = [d for d in dims if d.is_dynamic()][:1]
    rest = [d for d in dims if d not in batch and d not in time]
    if len(rest) > 1:
        raise ModelError(
            f"{where} is a Tensor with the axes {list(dims)}: beside batch and time there are {len(rest)}, so their order "
            "in the output is not clear. Give dims=[...]."
        )
    return [*batch, *time, *rest]


def _check_same_dims(given: Sequence[AxisSpec], expected: Sequence[Dim], *, where: str) -> None:
    # Sizes and lengths are compared later; a Dim must be the one that is described, so that axes are not mixed up.
    bad = len(given) != len(expected) or any(
        isinstance(g, Dim) and g is not e and not (g.is_batch_dim() and e.is_batch_dim())
        for g, e in zip(given, expected, strict=False)
    )
    if bad:
        raise ModelError(
            f"{where} has dims {list(given)}, expected {list(expected)}. Use the same Dim objects in model_outputs and here, "
            "or leave dims away."
        )


def _check_sizes(tensor: torch.Tensor, dims: Sequence[Dim], *, name: str) -> None:
    batch_axis = next((i for i, d in enumerate(dims) if d.is_batch_dim()), None)
    for axis, dim in enumerate(dims):
        if not dim.is_dynamic():
            continue
        lens = dim.lengths()
        if lens is None:
            raise ModelError(
                f"{name!r}: Cannot infer dynamic size of {dim}: its dyn_size_ext.raw_tensor is not set. Set it before, e.g. "
                f'run_ctx.expected_outputs["{name}"].dims[{axis}].dyn_size_ext.raw_tensor = lengths, int [B], '
                "or give the lengths [B] directly in dims."
            )
        if lens.ndim == 1 and batch_axis is not None and lens.shape[0] != tensor.shape[batch_axis]:
            raise ModelError(
                f"{name!r}: there are {lens.shape[0]} lengths for axis {axis}, but {tensor.shape[batch_axis]} sequences."
            )
        if isinstance(lens, torch.Tensor):
            check_lengths(lens, int(tensor.shape[axis]), axis=axis, name=name)
