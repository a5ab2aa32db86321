"""Forwarding in several processes: their outputs come to rank 0, in the order of the dataset, a few at a time."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any, Protocol, TypeVar

from returnn.torch.forward_seqs import SeqOutputs

__all__ = ["OrderedMerge", "RankExchange", "Ranks", "rounds"]

T = TypeVar("T")

#: A rank waits when it is so many of the largest batches ahead of the slowest one.
_MAX_BATCHES_AHEAD = 2


class Ranks(Protocol):
    """What is needed of ``returnn.torch.distributed.context.DistributedContext``."""

    rank: int
    size: int

    def gather_objects(self, obj: Any) -> list[Any] | None:
        """:return: on rank 0 the objects of all ranks, else None. Any: what can be pickled"""

    def all_gather_objects(self, obj: Any) -> list[Any]:
        """:return: the objects of all ranks. Any: what can be pickled"""


@dataclasses.dataclass(frozen=True)
class _Status:
    """Of one rank after a round."""

    last_position: int  # in the dataset, of the last sequence that it has done; -1: none
    is_done: bool
    batch_size: int  # of this round


class OrderedMerge:
    """
    Merges streams, each ascending by position, into one. What cannot be given out yet, since another stream may still
    have an earlier item, is kept.
    """

    def __init__(self, num_streams: int):
        """:param num_streams: their number"""
        self._queues: list[collections.deque[tuple[int, SeqOutputs]]] = [
            collections.deque() for _ in range(num_streams)
        ]
        self._last = [-1] * num_streams
        self._is_done = [False] * num_streams

    def add(self, stream: int, items: Sequence[tuple[int, SeqOutputs]], *, last: int, is_done: bool) -> None:
        """
        :param stream: which one
        :param items: position and value, ascending
        :param last: nothing before this position will follow
        :param is_done: nothing at all will follow
        """
        self._queues[stream].extend(items)
        self._last[stream] = max(self._last[stream], last)
        self._is_done[stream] = is_done

    def pop_ready(self) -> Iterator[SeqOutputs]:
        """:return: the items that are next"""
        while True:
            heads = [(queue[0][0], stream) for stream, queue in enumerate(self._queues) if queue]
            if not heads:
                return
            position, stream = min(heads)
            for other, queue in enumerate(self._queues):
                if other != stream and not queue and not self._is_done[other] and self._last[other] < position:
                    return
            yield self._queues[stream].popleft()[1]

    @property
    def num_kept(self) -> int:
        """Number of items that wait."""
        return sum(map(len, self._queues))


class RankExchange:
    """
    Brings outputs to rank 0, once per step. All ranks call :func:`exchange` equally often: those without data, or too far
    ahead, with nothing. So rank 0 never keeps more than a few batches per rank.
    """

    def __init__(self, ranks: Ranks):
        """:param ranks: the processes"""
        self._ranks = ranks
        self.rank = ranks.rank
        self.size = ranks.size
        self._merge = OrderedMerge(ranks.size)
        self._statuses = [_Status(-1, False, 0)] * ranks.size
        self._max_batch = 1
        self.num_seqs = 0  # of all ranks

    @property
    def is_finished(self) -> bool:
        """Whether no rank has more data."""
        return all(status.is_done for status in self._statuses)

    @property
    def num_kept(self) -> int:
        """Number of sequences that rank 0 keeps, since others come first; 0 on the other ranks."""
        return self._merge.num_kept

    @property
    def must_wait(self) -> bool:
        """Whether this rank is so far ahead that it is to skip a round."""
        own = self._statuses[self.rank].last_position
        slowest = min((s.last_position for s in self._statuses if not s.is_done), default=own)
        return own - slowest > _MAX_BATCHES_AHEAD * self._max_batch * self.size

    def exchange(self, items: Sequence[tuple[int, SeqOutputs]], *, is_done: bool) -> list[SeqOutputs]:
        """
        :param items: outputs of this rank, with positions in the dataset, ascending
        :param is_done: this rank has no more data
        :return: on rank 0 the sequences that are next; else none
        """
        own = self._statuses[self.rank]
        last = max([own.last_position, *(position for position, _ in items)])
        status = _Status(last, is_done, len(items))
        self._statuses = self._ranks.all_gather_objects(status)
        self._max_batch = max(self._max_batch, *(s.batch_size for s in self._statuses))
        self.num_seqs += sum(s.batch_size for s in self._statuses)
        gathered = self._ranks.gather_objects(items)
        if gathered is None:
            return []
        for rank, (its_items, its_status) in enumerate(zip(gathered, self._statuses, strict=True)):
            self._merge.add(rank, its_items, last=its_status.last_position, is_done=its_status.is_done)
        return list(self._merge.pop_ready())


def rounds(batches: Iterator[T], exchange: RankExchange) -> Iterator[tuple[T | None, bool]]:
    """
    :param batches: of this rank
    :param exchange: to be called once by the caller for each item
    :return: a batch, or None: nothing to do in this round; whether this rank has no more data. Ends when that holds for all
    """
    is_done = False
    while not exchange.is_finished:
        data = None
        if not is_done and not exchange.must_wait:
            data = next(batches, None)
            is_done = data is None
        yield data, is_done
