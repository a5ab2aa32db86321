"""From datasets to numpy batches: both ways of reading, shards, limits."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets._loading.limits import BatchLimits, BatchState, SeqPosition, cut_batches
from returnn.datasets._loading.passes import iter_blocks
from returnn.datasets._loading.source import PassContext, Role, SourceOptions, alloc_on_heap
from returnn.errors import ConfigError, DatasetError, OptionError
from returnn.options.batching import BatchingOptions, ChunkingOptions, ChunkStream
from tests.datasets.loading_datasets import BulkDataset, PerSeqDataset, StreamDataset


def _batches(
    dataset: PerSeqDataset,
    batching: BatchingOptions,
    *,
    epoch: int = 1,
    role: Role = "train",
    worker: tuple[int, int] = (0, 0),
    is_global: bool = False,
    block_bytes: int = 2000,
) -> tuple[list[dict[str, Any]], PassContext]:
    options = SourceOptions.create(batching, name="train", role=role, is_global=is_global).for_worker(*worker)
    ctx = PassContext(dataset, dataclasses.replace(options, block_bytes=block_bytes), epoch)
    blocks = list(iter_blocks(ctx, alloc_on_heap))
    for block in blocks:
        for batch, info in zip(block.batches, block.infos, strict=True):
            assert info.num_seqs == len(batch["seq_tag"])
            assert info.frames["data"] == batch["data:size1"].sum()
            assert info.padded_frames["data"] == batch["data"].shape[0] * batch["data"].shape[1]
    return [batch for block in blocks for batch in block.batches], ctx


def assert_same_batches(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    """Bit for bit, key order and dtypes included."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert list(x) == list(y)
        for key in x:
            if isinstance(x[key], numpy.ndarray):
                assert x[key].dtype == y[key].dtype and x[key].shape == y[key].shape, key
                assert x[key].tobytes() == y[key].tobytes(), key
            elif isinstance(x[key][0], numpy.ndarray):
                assert [v.tolist() for v in x[key]] == [v.tolist() for v in y[key]]
            else:
                assert x[key] == y[key]


seq_lens = st.lists(st.integers(0, 30), max_size=40)
limits = (
    st.none()
    | st.integers(1, 60)
    | st.dictionaries(st.sampled_from(["data", "classes", "text", "seq_tag"]), st.integers(1, 60))
)
streams = st.builds(ChunkStream, st.integers(1, 8), st.integers(1, 8), st.integers(0, 9))
chunkings = st.none() | st.builds(ChunkingOptions, st.fixed_dictionaries({"data": streams}), st.none(), st.booleans())
batchings = st.builds(
    BatchingOptions,
    batch_size=limits,
    max_seqs=st.none() | st.integers(1, 7),
    packed_batch_size=limits,
    drop_last=st.sampled_from([False, True, "incomplete"]),
    min_seq_length=st.none() | st.integers(0, 10) | st.fixed_dictionaries({"data": st.integers(0, 10)}),
    max_seq_length=st.none() | st.integers(5, 30) | st.fixed_dictionaries({"classes": st.integers(0, 12)}),
    chunking=chunkings,
)


@given(seq_lens, batchings, st.integers(1, 3), st.integers(1, 5000))
def test_bulk_equals_per_seq(lens: list[int], batching: BatchingOptions, epoch: int, block_bytes: int) -> None:
    bulk, bulk_ctx = _batches(BulkDataset(lens), batching, epoch=epoch, block_bytes=block_bytes)
    per_seq, per_seq_ctx = _batches(PerSeqDataset(lens), batching, epoch=epoch)
    assert_same_batches(bulk, per_seq)
    assert bulk_ctx.stats.dropped == per_seq_ctx.stats.dropped
    assert bulk_ctx.stats.num_seqs == per_seq_ctx.stats.num_seqs == len(lens)


@given(seq_lens, batchings, st.integers(2, 4))
def test_global_batches_do_not_depend_on_workers(lens: list[int], batching: BatchingOptions, num_workers: int) -> None:
    expected, _ = _batches(BulkDataset(lens), batching)
    for cls in (BulkDataset, PerSeqDataset):
        parts = [_batches(cls(lens), batching, worker=(w, num_workers), is_global=True)[0] for w in range(num_workers)]
        merged = [parts[i % num_workers][i // num_workers] for i in range(sum(map(len, parts)))]
        assert_same_batches(merged, expected)


@given(seq_lens, st.integers(1, 4), st.integers(1, 5))
def test_shards_partition_the_epoch(lens: list[int], num_workers: int, max_seqs: int) -> None:
    batching = BatchingOptions(batch_size=None, max_seqs=max_seqs)
    order = [tag for b in _batches(BulkDataset(lens), batching)[0] for tag in b["seq_tag"]]
    for cls in (BulkDataset, PerSeqDataset, StreamDataset):
        for w in range(num_workers):
            batches, _ = _batches(cls(lens), batching, worker=(w, num_workers))
            assert [tag for b in batches for tag in b["seq_tag"]] == order[w::num_workers]
            assert [i for b in batches for i in b["seq_idx"]] == list(range(len(order[w::num_workers])))


@given(seq_lens, limits, st.none() | st.integers(1, 7))
def test_batches_respect_limits(lens: list[int], batch_size: Any, max_seqs: int | None) -> None:
    batches, _ = _batches(BulkDataset(lens), BatchingOptions(batch_size=batch_size, max_seqs=max_seqs))
    for batch in batches:
        num = len(batch["seq_tag"])
        assert max_seqs is None or num <= max_seqs
        for key in ("data", "classes"):
            limit = batch_size.get(key) if isinstance(batch_size, dict) else batch_size
            assert limit is None or num == 1 or batch[key].shape[0] * batch[key].shape[1] <= limit
    assert sorted(tag for b in batches for tag in b["seq_tag"]) == sorted(f"seq-{i}" for i in range(len(lens)))


@given(
    st.lists(st.tuples(st.integers(0, 20), st.integers(0, 20)), min_size=1, max_size=50),
    limits,
    st.none() | st.integers(1, 5),
    limits,
)
def test_cut_batches_equals_state(lens: list[tuple[int, int]], batch_size: Any, max_seqs: Any, packed: Any) -> None:
    batch_limits = BatchLimits(batch_size, max_seqs, packed)
    state = BatchState(batch_limits)
    expected = [
        i for i, (n, m) in enumerate(lens) if state.add({"data": n, "classes": m, "seq_tag": 1})
    ] + [len(lens)]  # fmt: skip
    arrays = {"data": numpy.array([n for n, _ in lens]), "classes": numpy.array([m for _, m in lens])}
    ends, dropped = cut_batches(batch_limits, arrays, extra_keys=["seq_tag"], is_end=True, is_first=True)
    assert (ends, dropped) == (expected, 0)


def test_functions_as_limits() -> None:
    def max_seqs(*, epoch: int, seq_idx: int, epoch_continuous: float, **_: Any) -> int:
        assert epoch == 2 and epoch_continuous == 1 + (seq_idx + 1) / 10
        return 1 + seq_idx // 4

    batching = BatchingOptions(batch_size=None, max_seqs=max_seqs)
    for cls in (BulkDataset, PerSeqDataset):
        batches, _ = _batches(cls([3] * 10), batching, epoch=2)
        assert [b["seq_idx"] for b in batches] == [[0], [1], [2], [3, 4], [5, 6], [7, 8, 9]]


@pytest.mark.parametrize(
    ("lens", "drop_last", "role", "batches"),
    [
        ([3] * 8, True, "train", [4]),
        ([3] * 8, True, "eval", [4]),
        ([3] * 8, True, "forward", [4]),
        ([3] * 8, "incomplete", "train", [4, 4]),
        ([3] * 9, "incomplete", "train", [4, 4]),
        ([3] * 9, "incomplete", "eval", [4, 4, 1]),
        ([3] * 3, "incomplete", "train", [3]),
        ([3] * 3, True, "train", []),
        ([3] * 4 + [50], "incomplete", "train", [4, 1]),
    ],
)
def test_drop_last(lens: list[int], drop_last: Any, role: Role, batches: list[int]) -> None:
    for cls in (BulkDataset, PerSeqDataset):
        batching = BatchingOptions(batch_size=40, max_seqs=4, drop_last=drop_last)
        got, ctx = _batches(cls(lens, shuffled=False), batching, role=role)
        assert [len(b["seq_tag"]) for b in got] == batches
        assert ctx.stats.dropped == (
            {("drop_last", None): len(lens) - sum(batches)} if sum(batches) < len(lens) else {}
        )


def test_long_order_is_planned_in_segments(monkeypatch: pytest.MonkeyPatch) -> None:
    lens = [i % 7 + 1 for i in range(50)]
    batching = BatchingOptions(batch_size=20, max_seq_length=6, drop_last=True, packed_batch_size=18)
    expected, _ = _batches(PerSeqDataset(lens), batching)
    monkeypatch.setattr("returnn.datasets._loading.plan.SEGMENT_SEQS", 3)
    assert_same_batches(_batches(BulkDataset(lens), batching)[0], expected)


def test_chunks_of_one_long_sequence_read_once() -> None:
    dataset = BulkDataset([1000, 5])
    batching = BatchingOptions(batch_size=None, max_seqs=1, chunking=ChunkingOptions({"data": ChunkStream(10, 10)}))
    batches, _ = _batches(dataset, batching, block_bytes=1)
    assert len(batches) == 101
    assert dataset.num_reads == 3  # one to look at the types


def test_reads_in_blocks() -> None:
    dataset = BulkDataset([5] * 200)
    batches, _ = _batches(dataset, BatchingOptions(batch_size=None, max_seqs=2), block_bytes=2**20)
    assert len(batches) == 100 and dataset.num_reads <= 8


def _numpy_state() -> list[int]:
    state = numpy.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    return state[1].tolist()


def test_random_chunk_start_is_reproducible_and_private() -> None:
    chunking = ChunkingOptions({"data": ChunkStream(4, 4)}, random_start=True)
    batching = BatchingOptions(batch_size=None, chunking=chunking)
    state = _numpy_state()
    runs = [_batches(BulkDataset([9, 8, 7] * 5), batching, epoch=e)[0] for e in (1, 1, 2)]
    assert_same_batches(runs[0], runs[1])
    starts = [[float(x[0, 0]) for b in run for x in b["data"]] for run in runs]
    assert sorted(starts[0]) != sorted(starts[2])
    assert _numpy_state() == state
    workers = [_batches(PerSeqDataset([9] * 10), batching, worker=(w, 2))[0] for w in (0, 1)]
    assert workers[0][0]["data:size1"].tolist() != workers[1][0]["data:size1"].tolist()


def test_unknown_keys_are_noted() -> None:
    batching = BatchingOptions(batch_size={"audio": 3, "seq_tag": 3}, max_seq_length={"audio_features": 5, "data": 9})
    for cls in (BulkDataset, PerSeqDataset):
        _, ctx = _batches(cls([3, 4]), batching)
        assert len(ctx.stats.notes) == 2
        assert "'audio_features'" in ctx.stats.notes[0] and "'data', 'classes', 'scalar', 'text'" in ctx.stats.notes[0]
        assert "\"batch_size\" has the key 'audio'" in ctx.stats.notes[1]


@pytest.mark.parametrize("cls", [BulkDataset, PerSeqDataset])
def test_chunk_key_unknown(cls: type[PerSeqDataset]) -> None:
    with pytest.raises(ConfigError, match="'audio', which the data does not have"):
        _batches(cls([3]), BatchingOptions(chunking=ChunkingOptions({"audio": ChunkStream(4, 4)})))


@pytest.mark.parametrize("cls", [BulkDataset, PerSeqDataset])
def test_chunk_numbers_differ(cls: type[PerSeqDataset]) -> None:
    chunking = ChunkingOptions({"data": ChunkStream(4, 4), "classes": ChunkStream(3, 3)})
    with pytest.raises(
        DatasetError, match="different number of chunks for different data keys.*'data': 3, 'classes': 2"
    ):
        _batches(cls([10]), BatchingOptions(chunking=chunking))


@pytest.mark.parametrize("cls", [BulkDataset, PerSeqDataset])
def test_empty(cls: type[PerSeqDataset]) -> None:
    assert _batches(cls([]), BatchingOptions())[0] == []
    batches, ctx = _batches(cls([3, 4]), BatchingOptions(min_seq_length=10))
    assert batches == [] and sum(ctx.stats.dropped.values()) == 2


def test_complete_frac() -> None:
    for cls in (BulkDataset, PerSeqDataset):
        options = SourceOptions.create(BatchingOptions(batch_size=None, max_seqs=3), name="train", role="train")
        ctx = PassContext(cls([3] * 10), options, 1)
        infos = [info for block in iter_blocks(ctx, alloc_on_heap) for info in block.infos]
        assert [info.complete_frac for info in infos] == [0.3, 0.6, 0.9, 1.0]
    ctx = PassContext(StreamDataset([3] * 10), options, 1)
    assert all(block.infos[0].complete_frac is None for block in iter_blocks(ctx, alloc_on_heap))


def test_error_says_where() -> None:
    ctx = PassContext(
        PerSeqDataset([3] * 10, fail_at="error:5"),
        SourceOptions.create(BatchingOptions(), name="train", role="train"),
        3,
    )
    with pytest.raises(DatasetError) as exc_info:
        list(iter_blocks(ctx, alloc_on_heap))
    assert ctx.locate(exc_info.value).startswith("dataset 'train', epoch 3, sequence 'seq-5' (position ")
    assert str(exc_info.value).startswith("the data is bad. (While reading dataset 'train', epoch 3, sequence 'seq-5'")
    ctx.locate(exc_info.value)
    assert str(exc_info.value).count("While reading") == 1


@pytest.mark.parametrize("name", ["batch_size", "max_seqs", "packed_batch_size"])
@pytest.mark.parametrize("value", ["x", 0, True, [3]])
def test_limits_of_functions_are_checked(name: str, value: Any) -> None:
    options = BatchingOptions.from_config({"batch_size": 10, name: lambda **_: value})
    state = BatchState(BatchLimits.from_options(options, drop_last=False))
    with pytest.raises(OptionError, match=rf'option "{name}" is invalid: expected the function to return int > 0.*got'):
        state.add({"data": 3}, SeqPosition(4, epoch=2))


@pytest.mark.parametrize("value", [numpy.int64(4), 4.0, numpy.float32(4)])
def test_limits_of_functions_may_be_any_numbers(value: Any) -> None:
    options = BatchingOptions.from_config({"batch_size": None, "max_seqs": lambda **_: value})
    state = BatchState(BatchLimits.from_options(options, drop_last=False))
    assert [state.add({"data": 3}) for _ in range(9)] == [i in (4, 8) for i in range(9)]
