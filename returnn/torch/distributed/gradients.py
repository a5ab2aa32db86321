"""The mean of the gradients over all ranks, in few large reductions."""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.distributed as dist

from returnn.errors import NotSupportedError
from returnn.torch.distributed.context import DistributedContext
from returnn.torch.distributed.parameters import buckets

__all__ = ["reduce_gradients"]

#: Gradients are reduced together, up to about this size: so much memory is needed beside them.
_BUCKET_BYTES = 256 * 2**20
#: What gloo cannot sum on the CPU in all versions, or not well.
_SUMMED_AS_FLOAT32 = (torch.bfloat16, torch.float16)


def reduce_gradients(ctx: DistributedContext, params: Iterable[torch.nn.Parameter]) -> None:
    """
    All ranks get the mean over all ranks. A parameter that has a gradient on some ranks only has zero on the others; one that has
    none on any rank keeps having none (only for such parameters, this waits for the device).

    :param ctx: the ranks
    :param params: the same, in the same order, on all ranks; those that are not trained are left out here
    :raises NotSupportedError: a gradient is sparse
    """
    trained = [param for param in dict.fromkeys(params) if param.requires_grad]
    for param in trained:
        if param.grad is not None and param.grad.is_sparse:
            raise NotSupportedError(
                f"A parameter of shape {tuple(param.shape)} has a sparse gradient, which this reduction does not support. "
                'Set sparse=False in its module, or use torch_distributed = {"reduce_type": "grad"}.'
            )
    reductions = [_Reduction(bucket) for bucket in buckets(trained, _BUCKET_BYTES)]
    for reduction in reductions:
        reduction.finish(ctx.size)


class _Reduction:
    """Of one bucket, begun when it is created."""

    def __init__(self, params: list[torch.Tensor]):
        self._params = params
        grads = [_real(torch.zeros_like(p) if p.grad is None else p.grad) for p in params]
        first = grads[0]
        dtype = torch.float32 if first.dtype in _SUMMED_AS_FLOAT32 and first.is_cpu else first.dtype
        self._missing = [p.grad is None for p in params]
        # At the end, per parameter the number of ranks that have a gradient: only ranks without one look at it.
        has_grad = torch.tensor([float(not missing) for missing in self._missing], dtype=dtype)
        if first.device.type == "cuda":
            has_grad = has_grad.pin_memory().to(first.device, non_blocking=True)
        self._flat = torch.cat([*(grad.reshape(-1).to(dtype) for grad in grads), has_grad])
        self._work = dist.all_reduce(self._flat, async_op=True)

    def finish(self, num_ranks: int) -> None:
        """Put the means into the gradients."""
        if self._work is not None:
            self._work.wait()
        num_params = len(self._params)
        counts = self._flat[-num_params:].tolist() if any(self._missing) else [1.0] * num_params
        means = self._flat[:-num_params].div_(num_ranks)
        targets, sources = [], []
        offset = 0
        for param, missing, count in zip(self._params, self._missing, counts, strict=True):
            shape = _real(param.detach()).shape
            part = means[offset : offset + shape.numel()].view(shape)
            offset += shape.numel()
            if missing and not count:
                continue
            if param.grad is None:
                param.grad = torch.empty_like(param)
            targets.append(_real(param.grad))
            sources.append(part)
        if targets:
            torch._foreach_copy_(targets, sources)


def _real(tensor: torch.Tensor) -> torch.Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
