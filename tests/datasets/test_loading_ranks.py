"""Which sequences each rank and each of its workers reads. Ranks and workers are simulated in this process."""

from __future__ import annotations

import dataclasses
import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from typing import Any

import numpy
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets._loading.passes import iter_blocks
from returnn.datasets._loading.ranks import data_rank, num_seqs_of_rank
from returnn.datasets._loading.source import BatchInfo, PassContext, PassStats, SourceOptions, alloc_on_heap
from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError
from returnn.options.batching import BatchingOptions, BucketOptions, ChunkingOptions, ChunkStream, DropLast
from tests.datasets.loading_datasets import BulkDataset, PerSeqDataset, SelfShardingDataset, StreamDataset

Batch = dict[str, Any]
MakeDataset = Callable[[Sequence[int]], Dataset]
DATASETS: list[MakeDataset] = [PerSeqDataset, BulkDataset, StreamDataset, SelfShardingDataset]
LENS = [3, 9, 4, 7, 1, 12, 5, 5, 8, 2, 6, 10, 11, 3, 4, 4, 7]


@dataclasses.dataclass
class Read:
    """What one rank got in one pass."""

    batches: list[Batch]
    infos: list[BatchInfo]
    by_worker: list[list[Batch]]
    stats: list[PassStats]

    @property
    def tags(self) -> list[str]:
        """:return: in the order of the batches"""
        return [tag for batch in self.batches for tag in batch["seq_tag"]]


def read_rank(
    make: MakeDataset,
    lens: Sequence[int],
    batching: BatchingOptions,
    *,
    rank: int = 0,
    num_ranks: int = 1,
    num_workers: int = 0,
    is_global: bool = False,
    epoch: int = 1,
) -> Read:
    """:return: one pass, workers in turn as the pool does it"""
    options = SourceOptions.create(
        batching, name="train", role="train", is_global=is_global, rank=rank, num_ranks=num_ranks
    )
    queues = []
    stats = []
    for worker in range(max(num_workers, 1)):
        ctx = PassContext(make(lens), options.for_worker(worker, num_workers), epoch)
        blocks = list(iter_blocks(ctx, alloc_on_heap))
        queues.append([item for b in blocks for item in zip(b.batches, b.infos, strict=True)])
        stats.append(ctx.stats)
    by_worker = [[batch for batch, _ in queue] for queue in queues]
    merged = []
    active = deque(deque(queue) for queue in queues)
    while active:
        if not active[0]:
            active.popleft()
            continue
        merged.append(active[0].popleft())
        active.rotate(-1)
    return Read([batch for batch, _ in merged], [info for _, info in merged], by_worker, stats)


def read_all(
    make: MakeDataset, lens: Sequence[int], batching: BatchingOptions, num_ranks: int, **opts: Any
) -> list[Read]:
    """:return: per rank"""
    return [read_rank(make, lens, batching, rank=r, num_ranks=num_ranks, **opts) for r in range(num_ranks)]


def _epoch_tags(num: int, epoch: int = 1) -> list[str]:
    return [f"seq-{i}" for i in numpy.random.RandomState(epoch).permutation(num)]


def _batch_tags(read: Read) -> list[list[str]]:
    return [batch["seq_tag"] for batch in read.batches]


@pytest.mark.parametrize("make", DATASETS)
@pytest.mark.parametrize("is_global", [False, True])
def test_each_sequence_once(make: MakeDataset, is_global: bool) -> None:
    batching = BatchingOptions(batch_size=None, max_seqs=2)
    order = {tag: i for i, tag in enumerate(_epoch_tags(len(LENS)))}
    for num_ranks, num_workers in itertools.product(range(1, 9), range(4)):
        reads = read_all(make, LENS, batching, num_ranks, num_workers=num_workers, is_global=is_global)
        tags = [tag for read in reads for tag in read.tags]
        assert sorted(tags) == sorted(order), (num_ranks, num_workers)
        for read in reads:
            for batches in read.by_worker:
                positions = [order[tag] for batch in batches for tag in batch["seq_tag"]]
                assert positions == sorted(positions)
            if num_workers <= 1:
                positions = [order[tag] for tag in read.tags]
                assert positions == sorted(positions)


@pytest.mark.parametrize("make", DATASETS)
def test_sharded_formula(make: MakeDataset) -> None:
    """Worker w of rank r of R, with W workers each: order[r + R * w :: R * W]."""
    batching = BatchingOptions(batch_size=None, max_seqs=3)
    order = _epoch_tags(len(LENS))
    for num_ranks, num_workers in itertools.product(range(1, 6), range(4)):
        for rank, read in enumerate(read_all(make, LENS, batching, num_ranks, num_workers=num_workers)):
            for worker, batches in enumerate(read.by_worker):
                expected = order[rank + num_ranks * worker :: num_ranks * max(num_workers, 1)]
                assert [tag for batch in batches for tag in batch["seq_tag"]] == expected
                assert [i for batch in batches for i in batch["seq_idx"]] == list(range(len(expected)))


@pytest.mark.parametrize("make", [PerSeqDataset, BulkDataset, StreamDataset])
@pytest.mark.parametrize("num_workers", [0, 1])
def test_ranks_together_are_one_process(make: MakeDataset, num_workers: int) -> None:
    """R ranks with max_seqs k step through the same sequences as one process with max_seqs R * k."""
    for num_ranks, k in itertools.product(range(1, 9), (1, 2, 3)):
        one = read_rank(make, LENS, BatchingOptions(batch_size=None, max_seqs=k * num_ranks))
        reads = read_all(make, LENS, BatchingOptions(batch_size=None, max_seqs=k), num_ranks, num_workers=num_workers)
        steps = itertools.zip_longest(*map(_batch_tags, reads), fillvalue=[])
        together = [sorted(tag for batch in step for tag in batch) for step in steps]
        assert together == [sorted(tags) for tags in _batch_tags(one)]


@pytest.mark.parametrize("make", DATASETS)
def test_global_batches_are_dealt(make: MakeDataset) -> None:
    batching = BatchingOptions(batch_size=20, max_seqs=3)
    one = read_rank(make, LENS, batching)
    for num_ranks, num_workers in itertools.product(range(1, 9), range(4)):
        reads = read_all(make, LENS, batching, num_ranks, num_workers=num_workers, is_global=True)
        for rank, read in enumerate(reads):
            assert _batch_tags(read) == _batch_tags(one)[rank::num_ranks]


@pytest.mark.parametrize("make", [PerSeqDataset, BulkDataset])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_progress_is_the_same_on_all_ranks(make: MakeDataset, num_workers: int) -> None:
    batching = BatchingOptions(batch_size=None, max_seqs=2)
    for num_ranks in (2, 3, 5):
        reads = read_all(make, LENS, batching, num_ranks, num_workers=num_workers)
        for infos in zip(*(read.infos for read in reads), strict=False):
            full = [info.complete_frac for info in infos if info.num_seqs == 2]
            assert len(set(full)) <= 1


def test_num_seqs_of_rank() -> None:
    for num_ranks, num in itertools.product(range(1, 9), range(20)):
        counts = [num_seqs_of_rank(num, r, num_ranks) or 0 for r in range(num_ranks)]
        assert sum(counts) == num and max(counts) - min(counts) <= 1
    assert num_seqs_of_rank(None, 0, 2) is None


@pytest.mark.parametrize("drop_last", [True, "incomplete"])
@pytest.mark.parametrize("make", [PerSeqDataset, BulkDataset])
def test_drop_last_is_of_each_rank(make: MakeDataset, drop_last: DropLast) -> None:
    batching = BatchingOptions(batch_size=None, max_seqs=4, drop_last=drop_last)
    for num_ranks in (1, 2, 3):
        for rank, read in enumerate(read_all(make, LENS, batching, num_ranks)):
            num = len(range(rank, len(LENS), num_ranks))
            kept = num // 4 if drop_last == "incomplete" else (num - 1) // 4
            assert [info.num_seqs for info in read.infos] == [4] * kept
            assert read.stats[0].dropped == Counter({("drop_last", None): num - 4 * kept} if num > 4 * kept else {})


def _growing(*, epoch: int, seq_idx: int, epoch_continuous: float, **_kwargs: Any) -> dict[str, float]:
    assert epoch - 1 < epoch_continuous <= epoch and seq_idx >= 0
    return {"data": 8 + 20 * (epoch_continuous - epoch + 1), "classes": 10 + seq_idx}


def _limits(draw: st.DrawFn) -> dict[str, Any]:
    if draw(st.booleans()):
        sizes = draw(
            st.lists(st.tuples(st.integers(1, 15), st.integers(1, 4)), min_size=1, max_size=4, unique_by=lambda x: x[0])
        )
        return {"custom": BucketOptions(tuple(sizes), "data", draw(st.sampled_from([0.0, 0.5])))}
    return {
        "batch_size": draw(st.sampled_from([None, 12, {"data": 20}, {"data": 20, "classes": 9}, _growing])),
        "max_seqs": draw(st.sampled_from([-1, 1, 3])),
        "packed_batch_size": draw(st.sampled_from([None, 25])),
    }


@st.composite
def batchings(draw: st.DrawFn) -> BatchingOptions:
    """:return: limits or buckets, maybe with filter and chunks"""
    limits = _limits(draw)
    chunking = None
    if draw(st.booleans()):
        size = draw(st.integers(2, 6))
        streams = {
            "data": ChunkStream(size * 2, size * 2),
            "classes": ChunkStream(size, size),
            "text": ChunkStream(size * 2, size * 2),
        }
        chunking = ChunkingOptions(streams)
    return BatchingOptions(**limits, max_seq_length=draw(st.sampled_from([None, {"data": 9}])), chunking=chunking)


def _content(batch: Batch) -> list[Any]:
    return [
        (key, value.tolist() if hasattr(value, "tolist") else list(map(repr, value))) for key, value in batch.items()
    ]


@settings(max_examples=150, deadline=None)
@given(
    lens=st.lists(st.integers(1, 14), min_size=1, max_size=30),
    num_ranks=st.integers(1, 8),
    num_workers=st.integers(0, 3),
    batching=batchings(),
    is_global=st.booleans(),
    epoch=st.integers(1, 3),
)
def test_any_options(
    lens: list[int], num_ranks: int, num_workers: int, batching: BatchingOptions, is_global: bool, epoch: int
) -> None:
    """Both ways of reading give the same; nothing is lost or twice, whatever the number of ranks and workers."""
    opts: dict[str, Any] = {"num_workers": num_workers, "is_global": is_global, "epoch": epoch}
    one = read_rank(PerSeqDataset, lens, batching, epoch=epoch)
    bulk = read_all(BulkDataset, lens, batching, num_ranks, **opts)
    per_seq = read_all(PerSeqDataset, lens, batching, num_ranks, **opts)
    for a, b in zip(bulk, per_seq, strict=True):
        assert [_content(x) for x in a.batches] == [_content(x) for x in b.batches]
        # Only where sequences are read one by one, the next batch has an address.
        assert a.infos == [info._replace(next=None) for info in b.infos]
        assert [s.dropped for s in a.stats] == [s.dropped for s in b.stats]
    assert Counter(tag for read in bulk for tag in read.tags) == Counter(one.tags)
    if is_global:
        for rank, read in enumerate(bulk):
            assert _batch_tags(read) == _batch_tags(one)[rank::num_ranks]
    else:
        dropped = sum((s.dropped for read in bulk for s in read.stats), Counter())
        assert dropped == one.stats[0].dropped


def test_random_draws_differ_between_ranks_and_workers() -> None:
    stream = ChunkStream(4, 4)
    batching = BatchingOptions(
        batch_size=None,
        max_seqs=1,
        chunking=ChunkingOptions({"data": stream, "classes": stream, "text": stream}, random_start=True),
    )

    def starts(**opts: Any) -> list[float]:
        # One long sequence for each: where its first chunk starts.
        reads = read_all(lambda lens: PerSeqDataset(lens, 1, shuffled=False), [1000] * 6, batching, 3, **opts)
        return [batches[0]["data"][0, 0, 0].item() % 100 for read in reads for batches in read.by_worker]

    many = starts(num_workers=2)
    assert len(set(many)) > 1
    assert many == starts(num_workers=2)  # but the same in each run


class _NoSharding(PerSeqDataset):
    def supports_sharding(self) -> bool:
        return False


class _OwnFiles(PerSeqDataset):
    def _uses_custom_distributed_sharding(self) -> bool:
        return True


def test_who_shards() -> None:
    def rank_of(dataset: Dataset, is_global: bool = False) -> tuple[int, int]:
        return data_rank(dataset, 1, 4, name="train", is_global=is_global)

    assert rank_of(PerSeqDataset(LENS)) == (1, 4)
    assert rank_of(_OwnFiles(LENS)) == (0, 1)
    assert rank_of(PerSeqDataset(LENS, _num_shards=4, _shard_index=1)) == (0, 1)
    assert data_rank(_NoSharding(LENS), 0, 1, name="train", is_global=False) == (0, 1)
    assert rank_of(_NoSharding(LENS), is_global=True) == (1, 4)
    with pytest.raises(DatasetError, match=r"'train' is a _NoSharding.*4 ranks.*worker_batching"):
        rank_of(_NoSharding(LENS))


class _Wrapper(PerSeqDataset):
    """Reads from another one."""

    def __init__(self, child: Dataset):
        super().__init__(LENS)
        self._child = child

    def child_datasets(self) -> list[Dataset]:
        return [self._child]


def test_shards_of_an_inner_dataset(capsys: pytest.CaptureFixture[str]) -> None:
    """What a dataset reads from may give each rank its own data already; it must not be cut once more."""
    files = _Wrapper(_Wrapper(_OwnFiles(LENS)))
    assert data_rank(files, 1, 3, name="train", is_global=False) == (0, 1)
    assert "its part for rank 1 of 3 comes from the dataset" in capsys.readouterr().out
    inner = PerSeqDataset(LENS)
    assert data_rank(_Wrapper(inner), 1, 3, name="train", is_global=False) == (1, 3)
    in_other_processes = PerSeqDataset(LENS)
    opts = {"class": "DistributeFilesDataset", "distrib_shard_files": True}
    in_other_processes.dataset = {"class": "MetaDataset", "datasets": {"a": opts}}  # type: ignore[attr-defined]
    assert data_rank(in_other_processes, 1, 3, name="train", is_global=False) == (0, 1)
    opts["distrib_shard_files"] = False
    assert data_rank(in_other_processes, 1, 3, name="train", is_global=False) == (1, 3)
