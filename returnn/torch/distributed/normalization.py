"""
Norm factors of losses, summed over all ranks: then the gradients of all ranks together are those of one process that has
the batches of all ranks as one batch.

The factors are summed where they are, on the device, so that the host does not wait. Which loss has which place in the sum is
agreed on in the first step; a loss whose name turns up later has a place that follows from its name.
"""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence

import torch
import torch.distributed as dist

from returnn.errors import ModelError
from returnn.frontend.run_ctx import Loss
from returnn.torch.distributed.context import DistributedContext

__all__ = ["GlobalNorms"]

#: Places for losses that turn up later.
_NUM_LATE_SLOTS = 512


class GlobalNorms:
    """The norm factors of one training."""

    def __init__(self, ctx: DistributedContext):
        """:param ctx: the ranks"""
        self._ctx = ctx
        self._slots: dict[str, int] = {}
        self._num_known: int | None = None  # None: before the first step
        self._late: dict[str, int] = {}
        self._indices: dict[tuple[int, ...], torch.Tensor] = {}

    def total_loss(self, losses: Mapping[str, Loss]) -> torch.Tensor | None:
        """
        To be called on all ranks in each step, on those without data with no losses.

        A loss without norm factor counts as one that is normalised by 1 on each rank: the mean over the ranks with data is
        optimised. Of a loss that is not normalised (mainline dialect), it is the sum over the ranks.

        :param losses: of this rank in this step
        :return: scalar; the mean of its gradients over all ranks is the gradient of the loss of all ranks. None: no losses
        """
        optimised = {name: x for name, x in losses.items() if x.scale and not x.as_error}
        normalised = {name: x for name, x in optimised.items() if x.use_normalized_loss}
        sums = self._sum(
            {name: 1 if x.inv_norm_factor is None else x.inv_norm_factor for name, x in normalised.items()}
        )
        total: torch.Tensor | None = None
        for name, loss in optimised.items():
            value = loss.loss if loss.loss.dtype == torch.float64 else loss.loss.float()
            value = value * (loss.scale * self._ctx.size)
            if name in normalised:
                norm = sums[name].to(value.dtype)
                value = value / torch.where(norm == 0, torch.ones_like(norm), norm)
            total = value.float() if total is None else total + value.float()
        return total

    def agree(self) -> None:
        """To be called on all ranks between epochs: the names of losses that turned up get places of their own."""
        if self._num_known is not None:
            self._agree(self._late)

    def _agree(self, names: Sequence[str] | Mapping[str, int]) -> None:
        merged = sorted({name for part in self._ctx.all_gather_objects(list(names)) for name in part})
        by_slot: dict[int, str] = {}
        for name in merged if self._num_known is not None else ():
            other = by_slot.setdefault(_late_slot(name), name)
            if other != name:
                raise ModelError(_collision_text(name, other))
        for name in merged:
            self._slots.setdefault(name, len(self._slots))
        self._num_known = len(self._slots)
        self._late = {}
        self._indices = {}

    def _sum(self, norms: Mapping[str, int | float | torch.Tensor]) -> dict[str, torch.Tensor]:
        """:return: per name the sum over all ranks, float64 scalar on the device"""
        if self._num_known is None:
            self._agree(list(norms))
        slots = [self._slot(name) for name in norms]
        assert self._num_known is not None
        device = self._ctx.device
        host = torch.zeros(self._num_known + _NUM_LATE_SLOTS, dtype=torch.float64)
        on_device: list[torch.Tensor] = []
        slots_on_device: list[int] = []
        for slot, norm in zip(slots, norms.values(), strict=True):
            if not isinstance(norm, torch.Tensor):
                host[slot] = float(norm)
            elif norm.device.type == "cpu":
                host[slot] = norm.detach().reshape(()).double()
            else:
                on_device.append(norm.detach().reshape(()).double())
                slots_on_device.append(slot)
        if device.type == "cpu":
            self._ctx.sum_on_host(host)
            return {name: host[slot] for name, slot in zip(norms, slots, strict=True)}
        sums = host.pin_memory().to(device, non_blocking=True)
        if on_device:
            sums.index_copy_(0, self._index(tuple(slots_on_device)), torch.stack(on_device))
        dist.all_reduce(sums)
        return {name: sums[slot] for name, slot in zip(norms, slots, strict=True)}

    def _slot(self, name: str) -> int:
        if name in self._slots:
            return self._slots[name]
        slot = _late_slot(name)
        for other, other_slot in self._late.items():
            if other_slot == slot and other != name:
                raise ModelError(_collision_text(name, other))
        self._late[name] = slot
        assert self._num_known is not None
        return self._num_known + slot

    def _index(self, slots: tuple[int, ...]) -> torch.Tensor:
        if slots not in self._indices:
            self._indices[slots] = torch.tensor(slots, device=self._ctx.device)
        return self._indices[slots]


def _late_slot(name: str) -> int:
    return zlib.crc32(name.encode()) % _NUM_LATE_SLOTS


def _collision_text(name: str, other: str) -> str:
    return (
        f"The losses {name!r} and {other!r} turned up after the first step, and their names collide in the sum over the ranks. "
        'Mark them in the first step too (e.g. with the value 0), rename one of them, or set "loss_normalization": "per_rank" '
        "in torch_distributed."
    )
