"""returnn.torch.forward_ranks: results of several processes in one order, without processes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.tensor import TensorDict
from returnn.torch.forward_ranks import OrderedMerge, RankExchange, rounds
from returnn.torch.forward_seqs import SeqOutputs


def _seq(position: int) -> SeqOutputs:
    return SeqOutputs(f"seq-{position}", TensorDict())


class _Threads:
    """One thread per rank, which meet at barriers."""

    def __init__(self, size: int):
        self.size = size
        self.objs: list[Any] = [None] * size
        self.barrier = threading.Barrier(size, timeout=60)

    def exchange(self, rank: int, obj: Any) -> list[Any]:
        self.objs[rank] = obj
        self.barrier.wait()
        res = list(self.objs)
        self.barrier.wait()
        return res

    def run(self, func: Callable[[_Rank], None]) -> None:
        errors: list[BaseException] = []

        def run_rank(rank: int) -> None:
            try:
                func(_Rank(self, rank))
            except BaseException as exc:
                errors.append(exc)
                self.barrier.abort()

        threads = [threading.Thread(target=run_rank, args=(rank,)) for rank in range(self.size)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        if errors:
            raise errors[0]


class _Rank:
    def __init__(self, threads: _Threads, rank: int):
        self.rank = rank
        self.size = threads.size
        self._threads = threads

    def all_gather_objects(self, obj: Any) -> list[Any]:
        return self._threads.exchange(self.rank, obj)

    def gather_objects(self, obj: Any) -> list[Any] | None:
        res = self._threads.exchange(self.rank, obj)
        return res if self.rank == 0 else None


@settings(deadline=None, max_examples=40)
@given(
    num_seqs=st.integers(0, 40),
    size=st.integers(1, 4),
    batch_sizes=st.lists(st.integers(1, 5), min_size=4, max_size=4),
    dropped=st.sets(st.integers(0, 39)),
    chunks=st.integers(1, 2),
)
def test_all_sequences_come_in_their_order(
    num_seqs: int, size: int, batch_sizes: list[int], dropped: set[int], chunks: int
) -> None:
    expected = [p for p in range(num_seqs) if p not in dropped for _ in range(chunks)]
    got: list[list[int]] = [[] for _ in range(size)]
    kept: list[int] = []

    def run(rank: _Rank) -> None:
        own = [p for p in expected if p % size == rank.rank]
        k = batch_sizes[rank.rank]
        batches: Iterator[list[int]] = iter([own[i : i + k] for i in range(0, len(own), k)])
        exchange = RankExchange(rank)
        for positions, is_done in rounds(batches, exchange):
            items = [(p, _seq(p)) for p in positions or ()]
            merged = exchange.exchange(items, is_done=is_done)
            got[rank.rank] += [int(seq.seq_tag.removeprefix("seq-")) for seq in merged]
            kept.append(exchange.num_kept)
        assert exchange.num_seqs == len(expected)

    _Threads(size).run(run)
    assert got == [expected, *([] for _ in range(size - 1))]
    assert not dropped.isdisjoint(range(num_seqs)) or max(kept, default=0) <= 4 * max(batch_sizes) * size


def test_a_fast_rank_waits_for_a_slow_one() -> None:
    most_kept = 0

    def run(rank: _Rank) -> None:
        nonlocal most_kept
        k = (50, 1)[rank.rank]
        own = list(range(rank.rank, 1000, 2))
        exchange = RankExchange(rank)
        for positions, is_done in rounds(iter([own[i : i + k] for i in range(0, len(own), k)]), exchange):
            exchange.exchange([(p, _seq(p)) for p in positions or ()], is_done=is_done)
            most_kept = max(most_kept, exchange.num_kept)

    _Threads(2).run(run)
    assert most_kept <= 200


@given(st.permutations(range(12)), st.integers(1, 3))
def test_merge_gives_nothing_out_too_early(arrival: list[int], size: int) -> None:
    merge = OrderedMerge(size)
    queues = {stream: [p for p in range(12) if p % size == stream] for stream in range(size)}
    got: list[str] = []
    for stream in (p % size for p in arrival):
        position = queues[stream].pop(0)
        merge.add(stream, [(position, _seq(position))], last=position, is_done=not queues[stream])
        got += [seq.seq_tag for seq in merge.pop_ready()]
        assert got == [f"seq-{p}" for p in range(len(got))]
    assert len(got) == 12 and merge.num_kept == 0
