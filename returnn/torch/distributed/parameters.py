"""The parameters of all ranks: made equal, averaged, compared."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import torch
import torch.distributed as dist

from returnn.errors import DistributedError, ModelError
from returnn.torch.distributed.context import DistributedContext

__all__ = ["average_parameters", "broadcast_buffers", "broadcast_model", "buckets", "check_equal", "check_same_model"]

#: Tensors are sent together, up to about this size.
_BUCKET_BYTES = 64 * 2**20
_INT_DTYPES = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def check_same_model(ctx: DistributedContext, model: torch.nn.Module) -> None:
    """
    :param ctx: the ranks
    :param model: of this rank
    :raises ModelError: its parameters have no shapes yet
    :raises DistributedError: the models of other ranks have other parameters
    """
    for name, param in model.named_parameters():
        if isinstance(param, torch.nn.parameter.UninitializedParameter):
            raise ModelError(
                f"Parameter {name!r} has no shape yet (lazy module). With several ranks, get_model must give a complete model: "
                "call it once there with some input, or use modules that are not lazy."
            )
    text = [
        f"{name} {tuple(t.shape)} {t.dtype} {t.requires_grad}"
        for name, t in (*model.named_parameters(), *model.named_buffers())
    ]
    digest = hashlib.sha256("\n".join(text).encode()).hexdigest()
    digests = ctx.all_gather_objects(digest)
    others = [rank for rank, other in enumerate(digests) if other != digests[0]]
    if others:
        raise DistributedError(
            f"The model of rank {others[0]} has other parameters than that of rank 0. "
            "get_model must give the same model on all ranks (names, shapes, dtypes, requires_grad)."
        )


def broadcast_model(ctx: DistributedContext, model: torch.nn.Module) -> None:
    """All ranks get parameters and buffers of rank 0. :param ctx: the ranks. :param model: of this rank"""
    _broadcast([*model.parameters(), *model.buffers()])


def broadcast_buffers(ctx: DistributedContext, model: torch.nn.Module) -> None:
    """All ranks get the buffers of rank 0, e.g. BatchNorm's statistics. :param ctx: the ranks. :param model: of this rank"""
    _broadcast(list(model.buffers()))


def average_parameters(
    ctx: DistributedContext, params: Iterable[torch.nn.Parameter], *, weight: float, on_cpu: bool
) -> None:
    """
    :param ctx: the ranks
    :param params: they become the weighted mean over all ranks, on all ranks the same
    :param weight: of this rank, at least 0
    :param on_cpu: do it in host memory
    """
    total = float(ctx.sum_on_host(torch.tensor([weight], dtype=torch.float64))[0])
    if not total:
        return
    group = ctx.object_group if on_cpu else None
    with torch.no_grad():
        for bucket in buckets(params):
            flat = _flatten(bucket)
            if on_cpu:
                flat = flat.cpu()
            if flat.dtype in (torch.bfloat16, torch.float16):
                flat = flat.float()
            flat.mul_(weight / total)
            dist.all_reduce(flat, group=group)
            _unflatten(flat, bucket)


def check_equal(ctx: DistributedContext, model: torch.nn.Module, *, what: str) -> None:
    """
    Compare the parameters of all ranks bit by bit (by sums of their bits). Waits for the device.

    :param ctx: the ranks
    :param model: of this rank
    :param what: when, for the message
    :raises DistributedError: they differ
    """
    params = dict(model.named_parameters())
    with torch.no_grad():
        sums = [_bit_sum(param) for param in params.values()]
        own = torch.stack(sums).cpu() if sums else torch.zeros(0, dtype=torch.int64)
    first = own.clone()
    dist.broadcast(first, src=0, group=ctx.object_group)
    differs = own != first
    counts = ctx.sum_on_host(differs.double())
    wrong = [name for name, count in zip(params, counts.tolist(), strict=True) if count]
    if wrong:
        raise DistributedError(
            f"{what} the parameters of the ranks differ, in {len(wrong)} of {len(params)} (first: {wrong[0]!r}): something "
            "changes them without the gradients of the other ranks. If the config has its own engine or updater, update "
            "through Updater.step; else please report it."
        )


def _bit_sum(tensor: torch.Tensor) -> torch.Tensor:
    """:return: int64 scalar, independent of the order of summation"""
    tensor = tensor.detach()
    if tensor.is_complex():
        tensor = torch.view_as_real(tensor)
    return tensor.contiguous().view(_INT_DTYPES[tensor.element_size()]).sum(dtype=torch.int64)


def buckets(tensors: Iterable[torch.Tensor], max_bytes: int = _BUCKET_BYTES) -> Iterator[list[torch.Tensor]]:
    """
    :param tensors: dense
    :param max_bytes: of a bucket; a larger tensor has its own
    :return: lists of tensors of one dtype, in the same way on all ranks
    """
    by_dtype: dict[torch.dtype, list[torch.Tensor]] = {}
    for tensor in tensors:
        by_dtype.setdefault(tensor.dtype, []).append(tensor)
    for group in by_dtype.values():
        bucket: list[torch.Tensor] = []
        size = 0
        for tensor in group:
            num_bytes = tensor.numel() * tensor.element_size()
            if bucket and size + num_bytes > max_bytes:
                yield bucket
                bucket, size = [], 0
            bucket.append(tensor)
            size += num_bytes
        if bucket:
            yield bucket


def _flatten(tensors: Sequence[torch.Tensor]) -> torch.Tensor:
    return torch.cat([_as_real(tensor).reshape(-1) for tensor in tensors])


def _unflatten(flat: torch.Tensor, tensors: Sequence[torch.Tensor]) -> None:
    """Copy the parts of the flat tensor into the tensors."""
    offset = 0
    for tensor in tensors:
        real = _as_real(tensor)
        real.copy_(flat[offset : offset + real.numel()].view(real.shape))
        offset += real.numel()


def _as_real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor


def _broadcast(tensors: Sequence[torch.Tensor]) -> None:
    with torch.no_grad():
        for bucket in buckets([tensor.detach() for tensor in tensors]):
            flat = _flatten(bucket)
            is_bool = flat.dtype == torch.bool
            if is_bool:
                flat = flat.to(torch.uint8)
            dist.broadcast(flat, src=0)
            _unflatten(flat, bucket)
