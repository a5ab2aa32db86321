"""
The same number of steps on all ranks, although their data differ in size.

The ranks tell each other, for each step, how many of them have data. That goes over the host (gloo) and is begun a step
ahead: while step i is computed, the numbers of step i+1 travel, and no rank waits for its device. With many ranks, where a
sum over all takes long (gloo sends it around in a ring), one sum tells about several steps, and a rank reads that many
batches ahead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

from returnn.log import log
from returnn.options.distributed import Uneven
from returnn.torch.distributed.context import DistributedContext

__all__ = ["EvenSteps"]

T = TypeVar("T")

#: Up to so many ranks, each step has a sum of its own.
_MAX_RANKS_FOR_SINGLE = 16
_BLOCK_SIZE = 8


class EvenSteps(Generic[T]):
    """One pass of all ranks over their batches."""

    def __init__(self, ctx: DistributedContext, *, uneven: Uneven, block_size: int | None = None):
        """
        :param ctx: the ranks
        :param uneven: "join": until no rank has data; "stop": until one has none
        :param block_size: number of steps per sum; None: by the number of ranks
        """
        self._ctx = ctx
        self._uneven = uneven
        self._block_size = block_size or (1 if ctx.size <= _MAX_RANKS_FOR_SINGLE else _BLOCK_SIZE)
        self._exhausted = False
        #: number of ranks that have data in the current step
        self.num_active = ctx.size
        #: which part of the epoch is done with the current step, the same number on all ranks; None: unknown
        self.complete_frac: float | None = None
        self.num_steps = 0
        self.num_partial_steps = 0

    def iterate(self, batches: Iterable[T], complete_frac: Callable[[], float | None]) -> Iterator[T | None]:
        """
        :param batches: of this rank
        :param complete_frac: which part of the epoch is done with the batch that was read last; None: unknown
        :return: as many entries on all ranks; None: other ranks have data in this step, this one has not
        """
        source = iter(batches)
        block = [self._pull(source, complete_frac) for _ in range(self._block_size)]
        exchange = self._begin(block)
        more = True
        while more:
            counts, fracs = self._finish(exchange)
            needed = 1 if self._uneven == "join" else self._ctx.size
            num = sum(count >= needed for count in counts)  # a rank without data has none later
            more = num == self._block_size
            following: list[tuple[T | None, float | None]] = []
            for (batch, _), count, frac in list(zip(block, counts, fracs, strict=True))[:num]:
                if more:
                    following.append(self._pull(source, complete_frac))
                    if len(following) == self._block_size:
                        exchange = self._begin(following)
                self.num_active, self.complete_frac = count, frac
                self.num_steps += 1
                self.num_partial_steps += count < self._ctx.size
                yield batch
            if not more:
                self._report(counts, num)
            block = following
        close = getattr(source, "close", None)
        if close is not None:
            close()

    def _pull(self, source: Iterator[T], complete_frac: Callable[[], float | None]) -> tuple[T | None, float | None]:
        if not self._exhausted:
            for batch in source:
                return batch, complete_frac()
            self._exhausted = True
        return None, None

    def _begin(self, block: list[tuple[T | None, float | None]]) -> tuple[torch.Tensor, dist.Work]:
        has_data = [float(batch is not None) for batch, _ in block]
        fracs = [frac or 0.0 for _, frac in block]
        unknown = [float(batch is not None and frac is None) for batch, frac in block]
        numbers = torch.tensor([has_data, fracs, unknown], dtype=torch.float64)
        return numbers, self._ctx.begin_sum(numbers)

    def _finish(self, exchange: tuple[torch.Tensor, dist.Work]) -> tuple[list[int], list[float | None]]:
        numbers, work = exchange
        work.wait()
        counts, sums, unknown = numbers.tolist()
        fracs = [
            None if num_unknown or not count else min(total / count, 1.0)
            for count, total, num_unknown in zip(counts, sums, unknown, strict=True)
        ]
        return [int(count) for count in counts], fracs

    def _report(self, counts: list[int], num_steps_in_block: int) -> None:
        if self._ctx.rank:
            return
        if self._uneven == "join" and self.num_partial_steps:
            print(
                f'Uneven data: in {self.num_partial_steps} of {self.num_steps} steps, only some ranks had data (uneven = "join").',
                file=log.v3,
            )
        elif self._uneven == "stop" and counts[num_steps_in_block]:
            left = counts[num_steps_in_block]
            print(
                f"Uneven data: {self._ctx.size - left} of {self._ctx.size} ranks have no data after step {self.num_steps}, "
                f'so the epoch ends here; what the others have left is not used (uneven = "stop").',
                file=log.v3,
            )
