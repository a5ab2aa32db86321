"""The state of a loader: a pass goes on after a restart as if it had not been interrupted."""

from __future__ import annotations

import copy
import dataclasses
import io
import random
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn._state import process_state_ctx
from returnn.datasets._loading.user_code import has_user_code
from returnn.datasets.basic import Dataset, init_dataset
from returnn.errors import DatasetError
from returnn.options.batching import BatchingOptions, BucketOptions, ChunkingOptions, ChunkStream, OnlineShuffleOptions
from returnn.options.custom_batching import CustomBatching
from returnn.options.loader import LoaderOptions
from returnn.torch.data.bucketing import BucketOrderingIterDataPipe
from returnn.torch.data.loader import EpochSource, Loader, create_loader
from returnn.torch.data.loader_state import from_plain, to_plain
from returnn.torch.data.shuffling import ShufflingDataPipe
from returnn.torch.rng_state import get_rng_state, set_rng_state
from returnn.util import stop_request
from tests.datasets.loading_datasets import BulkDataset, PerSeqDataset, SelfShardingDataset, StreamDataset
from tests.torch.data.test_loader import assert_same_batches

LENS = [3, 9, 4, 7, 1, 12, 5, 5, 8, 2, 6, 10, 11, 3, 4, 4, 7]
MAX_SEQS_3 = BatchingOptions(batch_size=None, max_seqs=3)
CHUNKED = BatchingOptions(
    batch_size=24,
    max_seqs=4,
    min_seq_length={"data": 2},
    chunking=ChunkingOptions({"data": ChunkStream(4, 2)}, random_start=True),
)


class JumpDataset(PerSeqDataset):
    """Can be read from any sequence on."""

    def __init__(self, *args: Any, **kwargs: Any):  # Any: as the base
        """As the base."""
        super().__init__(*args, **kwargs)
        self.loaded: list[int] = []

    def supports_jump(self) -> bool:
        """:return: yes"""
        return True

    def load_seqs(self, start: int, end: int) -> None:
        """Note it."""
        self.loaded.append(start)


class DrawingDataset(JumpDataset):
    """Draws from the global generators, from some sequence on."""

    def __init__(self, lens: Sequence[int], first: int = 0, **kwargs: Any):  # Any: as the base
        """
        :param lens: of the sequences
        :param first: sequence that draws
        :param kwargs: of the base
        """
        super().__init__(lens, **kwargs)
        self.first = first

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: data with noise"""
        data = super().get_data(seq_idx, key)
        if key == "data" and seq_idx >= self.first:
            data = data + numpy.random.rand() + random.random() + torch.rand(()).item()
        return data


class ReplayedDrawing(DrawingDataset):
    """The same, but it cannot be read from any sequence on."""

    def supports_jump(self) -> bool:
        """:return: no"""
        return False


class StatefulDataset(PerSeqDataset):
    """Has a state of its own, and methods for it."""

    def __init__(self, lens: Sequence[int], **kwargs: Any):  # Any: as the base
        """:param lens: of the sequences. :param kwargs: of the base"""
        super().__init__(lens, **kwargs)
        self.random = numpy.random.RandomState(0)
        self.sums = {"frames": numpy.zeros(2, dtype="uint32")}
        self.num_loaded = 0

    def init_seq_order(
        self, epoch: int | None = None, seq_list: Sequence[str] | None = None, seq_order: Any = None
    ) -> bool:
        """Start of the state."""
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self.random.seed(epoch)
        self.sums = {"frames": numpy.zeros(2, dtype="uint32")}
        return True

    def load_seqs(self, start: int, end: int) -> None:
        """Changes the state."""
        self.num_loaded += 1
        self.noise = self.random.rand()
        self.sums["frames"] += 1

    def get_data(self, seq_idx: int, key: str) -> numpy.ndarray:
        """:return: data that depends on it"""
        data = super().get_data(seq_idx, key)
        return data + self.noise + self.sums["frames"].sum() if key == "data" else data

    def state_dict(self) -> dict[str, Any]:
        """:return: the state itself, no copy"""
        return {"random": self.random.get_state(), "sums": self.sums}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """:param state: of state_dict"""
        self.random.set_state(state["random"])
        self.sums = state["sums"]


class ReplayedDataset(StatefulDataset):
    """The same without methods for it."""

    state_dict = None  # type: ignore[assignment]
    load_state_dict = None  # type: ignore[assignment]


class SlowDataset(PerSeqDataset):
    """Waits before its 10th sequence, until a file is there."""

    def __init__(self, lens: Sequence[int], go_file: str, **kwargs: Any):  # Any: as the base
        """:param lens: of the sequences. :param go_file: to wait for. :param kwargs: of the base"""
        super().__init__(lens, **kwargs)
        self.go_file = go_file

    def load_seqs(self, start: int, end: int) -> None:
        """Wait."""
        while start >= 9 and not Path(self.go_file).exists():
            time.sleep(0.01)


def make(
    dataset: Dataset,
    num_workers: int = 0,
    batching: BatchingOptions = MAX_SEQS_3,
    *,
    epoch: int = 2,
    seed: int = 42,
    rank: int = 0,
    num_ranks: int = 1,
    **loader_opts: Any,
) -> Loader:
    """:return: loader"""
    return create_loader(
        dataset,
        batching=batching,
        loader=LoaderOptions(num_workers=num_workers, **loader_opts),
        epoch_source=EpochSource(epoch),
        name="train",
        seed=seed,
        rank=rank,
        num_ranks=num_ranks,
    )


def _draw() -> None:
    """What a training does between batches."""
    torch.rand(3)


def _through_file(state: dict[str, Any]) -> dict[str, Any]:
    """:return: the state as a checkpoint gives it"""
    file = io.BytesIO()
    torch.save(state, file)
    file.seek(0)
    return torch.load(file, weights_only=True)  # type: ignore[no-any-return]


def _stats(loader: Loader) -> dict[str, Any]:
    return {**dataclasses.asdict(loader.stats), "secs_waited": 0, "len_filter": None}


def check_restart(
    dataset: Dataset,
    num_batches: int,
    *,
    num_workers: int = 0,
    then: int | None = None,
    batching: BatchingOptions = MAX_SEQS_3,
    passes_before: int = 0,
    **kwargs: Any,
) -> Loader:
    """
    Stop behind some batches, go on with a new loader of a fresh copy, and compare with the uninterrupted pass.

    :param dataset: to copy
    :param num_batches: to give before
    :param num_workers: of the first loader
    :param then: of the second one; None: the same
    :param batching: of both
    :param passes_before: of the first loader over the epoch
    :param kwargs: of :func:`make`
    :return: the second loader, at the end of its pass; its workers are ended
    """
    torch.manual_seed(1)
    numpy.random.seed(1)
    random.seed(1)
    first = make(copy.deepcopy(dataset), num_workers, batching, **kwargs)
    try:
        for _ in range(passes_before):
            list(first)
        batches = iter(first)
        for _ in range(num_batches):
            next(batches, None)
            _draw()
        state, rng = _through_file(first.state_dict()), get_rng_state()
        expected_stats_then = _stats(first)
        expected = []
        for batch in batches:
            expected.append(batch)
            _draw()
        expected_stats = _stats(first)
        expected_rng = get_rng_state()
    finally:
        first.close()
    second = make(copy.deepcopy(dataset), num_workers if then is None else then, batching, **kwargs)
    try:
        second.load_state_dict(state)
        again = second.state_dict()
        assert again.keys() == state.keys() and again["stats"] == state["stats"]
        torch_state = torch.get_rng_state()
        batches = iter(second)
        if second.num_workers and num_workers:
            assert torch.equal(torch_state, torch.get_rng_state())
        set_rng_state(rng)
        if not second.num_workers and not num_workers:
            assert _stats(second) == expected_stats_then
        assert second.stats.num_batches == expected_stats_then["num_batches"]
        rest = []
        for batch in batches:
            rest.append(batch)
            _draw()
        assert_same_batches(rest, expected)
        assert _stats(second) == expected_stats
        assert torch.equal(expected_rng["torch"], torch.get_rng_state())
    finally:
        second.close()
    return second


DATASETS = [BulkDataset, PerSeqDataset, JumpDataset, StreamDataset, StatefulDataset, ReplayedDataset]


@pytest.mark.parametrize("cls", DATASETS)
@pytest.mark.parametrize("batching", [MAX_SEQS_3, CHUNKED], ids=["plain", "chunked"])
def test_rest_of_pass(cls: type[PerSeqDataset], batching: BatchingOptions) -> None:
    for num_batches in (0, 1, 2, 5, 100):
        check_restart(cls(LENS), num_batches, batching=batching)


def check_all_positions(loader: Loader, num_passes: int = 8) -> None:
    """
    Go on at several positions of one pass, with the same workers.

    :param loader: closed at the end
    :param num_passes: at so many positions
    """
    try:
        expected = list(loader)
        stats = _stats(loader)
        for i in range(num_passes):
            num_batches = i * len(expected) // (num_passes - 1)
            torch.manual_seed(1)
            batches = iter(loader)
            for batch in expected[:num_batches]:
                assert_same_batches([next(batches)], [batch])
            state = _through_file(loader.state_dict())
            loader.load_state_dict(state)
            torch_state = torch.get_rng_state()
            batches = iter(loader)
            assert torch.equal(torch_state, torch.get_rng_state())
            assert loader.state_dict()["source"]["counts"] == state["source"]["counts"]
            assert_same_batches(list(batches), expected[num_batches:])
            assert _stats(loader) == stats
    finally:
        loader.close()


@pytest.mark.parametrize("num_workers", [1, 2])
@pytest.mark.parametrize("cls", [BulkDataset, JumpDataset, StatefulDataset, ReplayedDataset])
def test_workers(cls: type[PerSeqDataset], num_workers: int) -> None:
    check_all_positions(make(cls(LENS), num_workers, CHUNKED))


@pytest.mark.parametrize("cls", [BulkDataset, JumpDataset])
def test_workers_with_global_batches(cls: type[PerSeqDataset]) -> None:
    check_all_positions(make(cls(LENS), 2, CHUNKED, worker_batching="global", rank=1, num_ranks=2))


def test_workers_with_shuffling() -> None:
    check_all_positions(
        make(JumpDataset(LENS), 2, dataclasses.replace(CHUNKED, online_shuffle=OnlineShuffleOptions(4)))
    )


@pytest.mark.parametrize("cls", [BulkDataset, JumpDataset, ReplayedDataset])
@pytest.mark.parametrize("prob", [0.0, 0.5])
def test_buckets(cls: type[PerSeqDataset], prob: float) -> None:
    options = BucketOptions(((4, 2), (8, 3), (11, 2)), "data", prob)
    for num_batches in (1, 3, 6):
        check_restart(cls(LENS), num_batches, batching=BatchingOptions(custom=options))


@pytest.mark.parametrize("cls", [BulkDataset, JumpDataset, ReplayedDataset])
def test_shuffling(cls: type[PerSeqDataset]) -> None:
    batching = dataclasses.replace(CHUNKED, online_shuffle=OnlineShuffleOptions(4))
    for num_batches in (0, 1, 4, 6, 8, 9, 100):
        check_restart(cls(LENS), num_batches, batching=batching)


def _pairs(dataset: Any, *, train: bool, **_kwargs: Any) -> Iterator[list[Any]]:  # Any: an option of the user
    assert train

    class Pairs(torch.utils.data.IterableDataset):
        """Two sequences each."""

        def __iter__(self) -> Iterator[list[Any]]:
            """:return: batches"""
            seqs = iter(dataset)
            for seq in seqs:
                yield [seq, *([following] if (following := next(seqs, None)) is not None else [])]

    return Pairs()  # type: ignore[return-value]


def _growing(*, seq_idx: int, **_kwargs: Any) -> int:  # Any: what other versions give
    return 1 + seq_idx // 4


def _shuffled(dataset: Any, **_kwargs: Any) -> Iterator[list[Any]]:  # Any: an option of the user
    buckets = BucketOrderingIterDataPipe(dataset, buckets=[(6, 2), (12, 3)], length_key="data", random_bucket_prob=0.5)
    return ShufflingDataPipe(buckets, buffer_size=4, seed=3)  # type: ignore[return-value]


def test_stages_with_random_generators() -> None:
    """What they draw does not depend on the epochs before, which another process may have had."""
    batching = BatchingOptions(custom=CustomBatching(function=_shuffled))
    for num_batches in (1, 5):
        check_restart(PerSeqDataset(LENS), num_batches, batching=batching, passes_before=1)
    orders = []
    for epoch in (1, 2):
        orders.append(
            [batch["scalar"].tolist() for batch in make(PerSeqDataset(LENS, shuffled=False), 0, batching, epoch=epoch)]
        )
    assert orders[0] != orders[1]


@pytest.mark.parametrize("cls", [BulkDataset, JumpDataset])
def test_functions_of_the_user(cls: type[PerSeqDataset]) -> None:
    check_restart(cls(LENS), 3, batching=BatchingOptions(custom=CustomBatching(function=_pairs)))
    check_restart(cls(LENS), 3, batching=BatchingOptions(batch_size=None, max_seqs=_growing))


@pytest.mark.parametrize("first", [0, 6, 8])
def test_global_generators_in_process(first: int) -> None:
    for num_batches in (1, 2, 3, 4, 5):
        check_restart(DrawingDataset(LENS, first), num_batches)


@pytest.mark.parametrize("cls", [DrawingDataset, ReplayedDrawing])
def test_global_generators_in_workers(cls: type[DrawingDataset]) -> None:
    check_all_positions(make(cls(LENS, 7), 1))
    check_all_positions(make(cls(LENS), 2))


def test_jump_reads_nothing_before() -> None:
    for batching, first in (MAX_SEQS_3, 9), (CHUNKED, 2):
        loader = check_restart(JumpDataset(LENS), 3, batching=batching)
        assert isinstance(loader.dataset, JumpDataset) and loader.dataset.loaded == list(range(first, len(LENS)))
    loader = check_restart(StatefulDataset(LENS), 3)
    assert isinstance(loader.dataset, StatefulDataset) and loader.dataset.num_loaded == len(LENS) - 9


def test_replay_says_so(capsys: pytest.CaptureFixture[str]) -> None:
    check_restart(ReplayedDataset(LENS), 3)
    out = capsys.readouterr().out
    assert "Dataset 'train': epoch 2 goes on behind batch 3: 9 sequences read again in 0.0 seconds (" in out
    assert out.count("seconds per million sequences") == 1
    check_restart(JumpDataset(LENS), 3)
    assert "again" not in capsys.readouterr().out


@pytest.mark.parametrize(("num_workers", "then"), [(0, 1), (1, 0)])
def test_one_worker_or_none(num_workers: int, then: int) -> None:
    for cls in (BulkDataset, JumpDataset):
        check_restart(cls(LENS), 3, num_workers=num_workers, then=then)


@pytest.mark.parametrize(("num_workers", "then"), [(0, 2), (2, 1), (3, 2)])
def test_other_number_of_workers_with_global_batches(num_workers: int, then: int) -> None:
    cls = [BulkDataset, JumpDataset, ReplayedDataset][num_workers % 3]
    for num_batches in (3, 4):
        check_restart(
            cls(LENS), num_batches, num_workers=num_workers, then=then, worker_batching="global", rank=1, num_ranks=2
        )


@pytest.mark.parametrize(("num_workers", "then"), [(0, 2), (2, 0)])
def test_other_number_of_workers_with_sharded_batches(
    num_workers: int, then: int, capsys: pytest.CaptureFixture[str]
) -> None:
    loader = check_restart(JumpDataset(LENS), 3, num_workers=num_workers, then=then)
    line = f"the rest of epoch 2 is read with {num_workers} workers, as its beginning, since batches depend on their number"
    assert f"{line}. Then with {then}." in capsys.readouterr().out
    torch.manual_seed(1)
    after = make(JumpDataset(LENS), then)
    try:
        assert_same_batches(list(loader), list(after))
    finally:
        loader.close()
        after.close()


def test_ranks() -> None:
    for rank in range(2):
        check_restart(BulkDataset(LENS), 2, batching=CHUNKED, rank=rank, num_ranks=2)
        check_restart(JumpDataset(LENS), 2, batching=CHUNKED, rank=rank, num_ranks=2)


def test_self_sharding() -> None:
    with process_state_ctx():
        check_restart(SelfShardingDataset(LENS), 2, num_workers=2)


def test_next_pass_draws_as_in_an_uninterrupted_run() -> None:
    for num_workers in (0, 1):
        torch.manual_seed(1)
        loader = make(BulkDataset(LENS), num_workers)
        batches = iter(loader)
        next(batches)
        state, rng = loader.state_dict(), get_rng_state()
        list(batches)
        iter(loader)
        expected = torch.get_rng_state()
        loader.close()
        loader = make(BulkDataset(LENS), num_workers)
        loader.load_state_dict(state)
        batches = iter(loader)
        set_rng_state(rng)
        list(batches)
        iter(loader)
        assert torch.equal(expected, torch.get_rng_state())
        loader.close()


def test_finished_pass() -> None:
    loader = make(BulkDataset(LENS))
    assert loader.state_dict() == {}
    list(loader)
    state = _through_file(loader.state_dict())
    again = make(BulkDataset(LENS))
    again.load_state_dict(state)
    assert list(again) == [] and _stats(again) == _stats(loader)
    assert isinstance(again.dataset, BulkDataset) and again.dataset.num_reads == 0
    assert len(list(again)) == loader.stats.num_batches  # the next pass is a usual one


def test_state_taken_again_before_the_next_batch() -> None:
    for cls in DATASETS:
        expected = list(make(cls(LENS)))
        loader = make(cls(LENS))
        batches = iter(loader)
        next(batches)
        for i in range(2, 5):
            state = _through_file(loader.state_dict())
            loader = make(cls(LENS))
            loader.load_state_dict(state)
            batches = iter(loader)
            assert loader.state_dict()["source"]["counts"] == [i - 1]
            loader = make(cls(LENS))
            loader.load_state_dict(state)
            batches = iter(loader)
            assert_same_batches([next(batches)], [expected[i - 1]])
        assert_same_batches(list(batches), expected[4:])


def _state(**kwargs: Any) -> dict[str, Any]:
    loader = make(BulkDataset(LENS), **kwargs)
    next(iter(loader))
    return loader.state_dict()


def test_other_options_are_refused() -> None:
    state = _state()
    for kwargs, text in (
        ({"batching": BatchingOptions(batch_size=50, max_seqs=4)}, "batch_size was None, is 50; max_seqs was 3, is 4."),
        ({"seed": 1}, "random_seed was 42, is 1."),
        ({"num_ranks": 2, "rank": 1}, "number of ranks was 1, is 2; rank was 0, is 1."),
        ({"batching": CHUNKED}, "chunking was None, is {'chunks'"),
        ({"worker_batching": "global"}, "worker_batching was 'sharded', is 'global'."),
    ):
        with pytest.raises(DatasetError) as exc_info:
            make(BulkDataset(LENS), **kwargs).load_state_dict(state)  # type: ignore[arg-type]
        assert str(exc_info.value).startswith(
            "dataset 'train': epoch 2 cannot go on where it was, since its batches are made in another way now: "
        )
        assert text in str(exc_info.value) or kwargs.get("batching") is CHUNKED
        assert str(exc_info.value).endswith("Restore the options, or start the epoch again.")


def test_another_order_is_refused() -> None:
    static = {
        "class": "StaticDataset",
        "data": [{"data": numpy.zeros((3, 2), dtype="float32")}] * 12,
        "output_dim": {"data": (2, 2)},
    }
    meta = {"class": "MetaDataset", "data_map": {"data": ("a", "data")}, "seq_order_control_dataset": "a"}

    def loader(seq_ordering: str, **opts: Any) -> Loader:  # Any: options
        child = {**static, "seq_ordering": seq_ordering, **opts}
        return make(init_dataset({**meta, "datasets": {"a": child}}))

    before = loader("random", partition_epoch=1)
    next(iter(before))
    state = before.state_dict()
    loader("random").load_state_dict(state)  # the same
    with pytest.raises(DatasetError, match="datasets/a/seq_ordering was 'random', is not set"):
        loader("default").load_state_dict(state)
    with pytest.raises(DatasetError, match="datasets/a/partition_epoch was not set, is 2"):
        loader("random", partition_epoch=2).load_state_dict(state)


def test_other_data_is_refused() -> None:
    loader = make(BulkDataset([*LENS, 3]))
    loader.load_state_dict(_state())
    with pytest.raises(DatasetError, match="has 18 sequences in epoch 2 now, but had 17 when the epoch was begun"):
        iter(loader)
    loader.load_state_dict(None)
    assert len(list(loader)) == 6


def test_other_epoch_or_version_is_refused() -> None:
    state = _state()
    loader = make(BulkDataset(LENS), epoch=3)
    loader.load_state_dict(state)
    with pytest.raises(DatasetError, match="one of epoch 2, but epoch 3 is to be read"):
        iter(loader)
    with pytest.raises(DatasetError, match="has version 99, but only 1 can be read"):
        loader.load_state_dict({**state, "version": 99})
    with pytest.raises(DatasetError, match=r"broken \(KeyError: 'addresses'\)"):
        loader.load_state_dict({**state, "source": {"x": 1}})


def test_stop_while_waiting_for_a_worker(tmp_path: Path) -> None:
    loader = make(SlowDataset(LENS, str(tmp_path / "go")), 1)
    try:
        batches = iter(loader)
        expected = [next(batches)]
        with stop_request.accept_stops():
            stop_request.request("SIGTERM")
            with pytest.raises(stop_request.StopRequested):
                next(batches)
        state = loader.state_dict()
        assert state["source"]["counts"] == [1] and not state["is_finished"]
    finally:
        (tmp_path / "go").touch()
        loader.close()
    loader = make(SlowDataset(LENS, str(tmp_path / "go")), 1)
    try:
        loader.load_state_dict(state)
        expected += list(loader)
        assert_same_batches(list(make(PerSeqDataset(LENS))), expected)
    finally:
        loader.close()


def test_where_code_of_users_may_draw() -> None:
    corpus = {"class": "Task12AXDataset", "num_seqs": 3}
    for opts in (
        corpus,
        {"class": "StaticDataset", "data": [{"data": numpy.zeros((3, 2), "float32")}]},
        {
            "class": "CombinedDataset",
            "datasets": {"a": corpus},
            "data_map": {("a", "data"): "data"},
            "seq_ordering": "default",
        },
    ):
        assert not has_user_code(init_dataset(opts))
    assert has_user_code(JumpDataset(LENS))
    assert has_user_code(
        init_dataset({"class": "PostprocessingDataset", "dataset": corpus, "map_seq": lambda seq, **_: seq})
    )
    ordered = {**corpus, "seq_ordering": lambda **_: "default"}
    assert has_user_code(init_dataset(ordered))


def test_plain_values() -> None:
    value = {
        "a": numpy.arange(6, dtype="uint32").reshape(2, 3),
        "b": (1, 2.5, None, "x", b"y", [True]),
        3: numpy.float32(1.5),
        "c": numpy.random.default_rng(1).bit_generator.state,
        "d": numpy.array(7, dtype=">i8"),
    }
    again = from_plain(_through_file({"v": to_plain(value, what="test")})["v"])
    assert again["a"].dtype == numpy.uint32 and again["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert again["b"] == value["b"] and again["c"] == value["c"] and again[3] == 1.5 and again["d"] == 7
    with pytest.raises(DatasetError, match="test: expected numbers, strings, .*, got object <object"):
        to_plain([object()], what="test")


@settings(max_examples=150, deadline=None)
@given(data=st.data())
def test_any_pass_goes_on(data: st.DataObject) -> None:
    """In-process: any dataset and options."""
    lens = data.draw(st.lists(st.integers(1, 12), min_size=1, max_size=25))
    cls = data.draw(st.sampled_from([*DATASETS, DrawingDataset, ReplayedDrawing]))
    chunking = data.draw(
        st.none()
        | st.builds(
            lambda size, step, least, is_random: ChunkingOptions(
                {"data": ChunkStream(size, step, least)}, random_start=is_random
            ),
            st.integers(1, 6),
            st.integers(1, 6),
            st.integers(1, 3),
            st.booleans(),
        )
    )
    custom = data.draw(st.none() | st.just(BucketOptions(((4, 2), (9, 3)), "data", 0.3)))
    if issubclass(cls, DrawingDataset):
        custom = None  # else the pass is read again, where draws of the training in between are missing
    batching = BatchingOptions(
        batch_size=data.draw(st.none() | st.integers(5, 40)),
        max_seqs=data.draw(st.integers(1, 5)),
        min_seq_length=data.draw(st.none() | st.just({"data": 3})),
        max_seq_length=data.draw(st.none() | st.just({"data": 10})),
        drop_last=data.draw(st.sampled_from([False, True, "incomplete"])) if custom is None else False,
        chunking=chunking,
        custom=custom,
        online_shuffle=data.draw(st.none() | st.builds(OnlineShuffleOptions, st.integers(1, 5))),
    )
    num_ranks = data.draw(st.integers(1, 3))
    check_restart(
        cls(lens),
        data.draw(st.integers(0, 12)),
        batching=batching,
        rank=data.draw(st.integers(0, num_ranks - 1)),
        num_ranks=num_ranks,
        worker_batching=data.draw(st.sampled_from(["sharded", "global"])),
    )
