"""
The same number of steps on all ranks, although their data differ in size.

The ranks tell each other, for each step, how many of them have data. That goes over the host (gloo) and is begun a step
ahead: while step i is computed, the numbers of step i+1 travel, and no rank waits for its device. With many ranks, where a
sum over all takes long (gloo sends it around in a ring), one sum tells about several steps, and a rank reads that many
batches ahead.

The same sum tells whether a rank wants a pause, to save or to stop: then all pause after the last step that it told about, and
none has read a batch more than that, so that the positions of the loaders are those after the step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Generic, TypeVar

import torch
import torch.distributed as dist

from returnn.engine.pauses import Pause, PausePlan
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

    def __init__(
        self,
        ctx: DistributedContext,
        *,
        uneven: Uneven,
        block_size: int | None = None,
        pauses: PausePlan | None = None,
        steps_before: int = 0,
    ):
        """
        :param ctx: the ranks
        :param uneven: "join": until no rank has data; "stop": until one has none
        :param block_size: number of steps per sum; None: by the number of ranks
        :param pauses: gets what the ranks agree on; None on all ranks: there are no pauses
        :param steps_before: number of steps done before, over all epochs, the same on all ranks
        """
        self._ctx = ctx
        self._uneven = uneven
        self._block_size = block_size or (1 if ctx.size <= _MAX_RANKS_FOR_SINGLE else _BLOCK_SIZE)
        self._pauses = pauses
        self._steps_before = steps_before
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
        following: list[tuple[T | None, float | None]] = []
        exchange: tuple[torch.Tensor, dist.Work] | None = None
        more = True
        while more:
            if exchange is None:  # at the start, and after a pause
                following = [self._pull(source, complete_frac) for _ in range(self._block_length(self.num_steps))]
                exchange = self._begin(following)
            block = following
            counts, fracs, pause = self._finish(exchange)
            needed = 1 if self._uneven == "join" else self._ctx.size
            num = sum(count >= needed for count in counts)  # a rank without data has none later
            more = num == len(block)
            if pause is None and self._is_planned(self.num_steps + num):
                pause = "save"
            reads_ahead = more and pause is None
            next_length = self._block_length(self.num_steps + num) if reads_ahead else 0
            following, exchange = [], None
            for i, ((batch, _), count, frac) in enumerate(list(zip(block, counts, fracs, strict=True))[:num]):
                if reads_ahead:
                    # One batch per step; the rest, if the next block is longer, with the last one.
                    wanted = next_length if i == num - 1 else min(i + 1, next_length)
                    while len(following) < wanted:
                        following.append(self._pull(source, complete_frac))
                    if exchange is None and len(following) == next_length:
                        exchange = self._begin(following)
                self.num_active, self.complete_frac = count, frac
                self.num_steps += 1
                self.num_partial_steps += count < self._ctx.size
                if pause is not None and self._pauses is not None and i == num - 1 and more:
                    self._pauses.agree(pause)
                yield batch
            if not more:
                self._report(counts, num)
        close = getattr(source, "close", None)
        if close is not None:
            close()

    def _block_length(self, num_steps: int) -> int:
        """:return: number of steps in the block that begins after so many steps of this pass: it ends at a planned pause"""
        planned = None if self._pauses is None else self._pauses.steps_to_planned(self._steps_before + num_steps)
        return self._block_size if planned is None else min(self._block_size, planned)

    def _is_planned(self, num_steps: int) -> bool:
        """:return: whether a pause is planned after so many steps of this pass"""
        if self._pauses is None or not num_steps:
            return False
        num_steps += self._steps_before
        left = self._pauses.steps_to_planned(num_steps - 1)
        return left == 1

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
        rows = [has_data, fracs, unknown]
        if self._pauses is not None:
            pause = self._pauses.wanted()
            rows += [[float(pause == kind)] * len(block) for kind in ("stop", "save")]
        numbers = torch.tensor(rows, dtype=torch.float64)
        return numbers, self._ctx.begin_sum(numbers)

    def _finish(self, exchange: tuple[torch.Tensor, dist.Work]) -> tuple[list[int], list[float | None], Pause | None]:
        """:return: per step the number of ranks with data, and the part of the epoch; the pause that some rank wants"""
        numbers, work = exchange
        work.wait()
        counts, sums, unknown, *wishes = numbers.tolist()
        pause: Pause | None = None
        if wishes:
            pause = "stop" if wishes[0][0] else "save" if wishes[1][0] else None
        fracs = [
            None if num_unknown or not count else min(total / count, 1.0)
            for count, total, num_unknown in zip(counts, sums, unknown, strict=True)
        ]
        return [int(count) for count in counts], fracs, pause

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
