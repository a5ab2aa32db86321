"""The data loader, in-process and with real worker processes."""

from __future__ import annotations

import functools
import gc
import itertools
import os
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch
from torch.utils.data.datapipes.iter import IterableWrapper

from returnn._state import process_state_ctx
from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError, DatasetError, OptionError, WorkerError
from returnn.options.batching import BatchingOptions, ChunkingOptions, ChunkStream, OnlineShuffleOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, Loader, Role, create_loader
from tests.datasets.loading_datasets import (
    BulkDataset,
    FailsInWorker,
    NestedProcessDataset,
    OptionErrorDataset,
    PerSeqDataset,
    RandomDataset,
    SelfShardingDataset,
    StreamDataset,
    ThreadLimitDataset,
    Unpicklable,
)

LENS = [3, 9, 4, 7, 1, 12, 5, 5, 8, 2, 6, 10, 11, 3, 4, 4, 7]
MAX_SEQS_3 = BatchingOptions(batch_size=None, max_seqs=3)

MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader() -> Iterator[MakeLoader]:
    """:return: function (dataset, num_workers, ...) -> loader; all are closed at the end"""
    loaders: list[Loader] = []

    def make(
        dataset: Dataset,
        num_workers: int = 0,
        batching: BatchingOptions = MAX_SEQS_3,
        *,
        epoch: int = 1,
        role: Role = "train",
        resumed: bool = False,
        **loader_opts: Any,
    ) -> Loader:
        loaders.append(
            create_loader(
                dataset,
                batching=batching,
                loader=LoaderOptions(num_workers=num_workers, **loader_opts),
                epoch_source=EpochSource(epoch),
                name="train",
                role=role,
                resumed=resumed,
            )
        )
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def assert_same_batches(a: list[dict[str, Any]], b: list[dict[str, Any]]) -> None:
    """Bit for bit, key order and dtypes included."""
    assert len(a) == len(b)
    for x, y in zip(a, b, strict=True):
        assert list(x) == list(y)
        for key, value in x.items():
            if isinstance(value, torch.Tensor):
                assert value.dtype == y[key].dtype and torch.equal(value, y[key]), key
            elif isinstance(value[0], numpy.ndarray):
                assert [v.tolist() for v in value] == [v.tolist() for v in y[key]]
            else:
                assert value == y[key]


def _is_running(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat") as f:
            return f.read().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def _wait_until(condition: Callable[[], bool], secs: float = 20.0) -> bool:
    deadline = time.monotonic() + secs
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.02)
    return True


def test_batch_entries(make_loader: MakeLoader) -> None:
    batch = next(iter(make_loader(BulkDataset([2, 3], shuffled=False))))
    assert list(batch) == [
        *("data:size1", "data:size2", "data", "data:size0", "classes:size1", "classes", "classes:size0"),
        *("scalar", "scalar:size0", "text", "seq_idx", "seq_tag"),
    ]
    assert batch["data"].shape == (2, 3, 2) and batch["classes"].dtype == torch.int32
    assert batch["data"][0].tolist() == [[0, 1], [2, 3], [0, 0]]
    assert batch["data:size0"].shape == () and batch["data:size0"].item() == 2
    assert batch["seq_idx"] == [0, 1] and batch["seq_tag"] == ["seq-0", "seq-1"]


def test_stats(make_loader: MakeLoader) -> None:
    batching = BatchingOptions(batch_size=None, max_seqs=2, max_seq_length={"data": 8}, min_seq_length={"data": 2})
    loader = make_loader(BulkDataset([3, 9, 4, 1, 5]), batching=batching)
    for i, batch in enumerate(loader):
        assert loader.stats.num_batches == i + 1
        assert loader.stats.num_seqs_seen == sum([2, 1][: i + 1])
        assert len(batch["seq_tag"]) == [2, 1][i]
    stats = loader.stats
    assert stats.num_seqs == 5 and stats.num_seqs_dropped == {("too long", "data"): 1, ("too short", "data"): 1}
    assert stats.dropped_text() in (
        "2 of 5 seqs: 1 data longer than 8, 1 data shorter than 2",
        "2 of 5 seqs: 1 data shorter than 2, 1 data longer than 8",
    )
    assert stats.frames["data"] == 12 and stats.padding_ratio is not None and 0 < stats.padding_ratio < 1
    assert set(stats.padding_ratios()) == {"data", "classes"} and stats.secs_waited > 0


def test_filter_warns_once(make_loader: MakeLoader, capsys: pytest.CaptureFixture[str]) -> None:
    loader = make_loader(PerSeqDataset([3]), batching=BatchingOptions(max_seq_length={"audio": 3}))
    list(loader)
    list(loader)
    assert capsys.readouterr().out.count("has the key 'audio', which dataset 'train' does not have") == 1


def test_forward_warnings(make_loader: MakeLoader, capsys: pytest.CaptureFixture[str]) -> None:
    batching = BatchingOptions(max_seq_length=3, drop_last=True)
    make_loader(PerSeqDataset([3]), batching=batching, role="forward")
    out = capsys.readouterr().out
    assert "allow_skipping_seqs_in_forward = True" in out and 'batch_drop_last = "incomplete"' in out
    make_loader(
        PerSeqDataset([3]),
        batching=BatchingOptions(max_seq_length=3, allow_skipping_seqs_in_forward=True),
        role="forward",
    )
    assert not capsys.readouterr().out
    with pytest.raises(ConfigError, match="allow_skipping_seqs_in_forward"):
        make_loader(
            PerSeqDataset([3]),
            batching=BatchingOptions(max_seq_length=3, allow_skipping_seqs_in_forward=False),
            role="forward",
        )


def test_online_shuffle_batches(make_loader: MakeLoader) -> None:
    plain = BatchingOptions(batch_size=None, max_seqs=3)
    shuffled = BatchingOptions(batch_size=None, max_seqs=3, online_shuffle=OnlineShuffleOptions(4))
    expected = [b["seq_tag"] for b in make_loader(BulkDataset(LENS * 2), batching=plain)]
    loader = make_loader(BulkDataset(LENS * 2), batching=shuffled)
    runs = []
    for _ in range(2):
        batches = list(loader)
        runs.append([b["seq_tag"] for b in batches])
        assert [i for b in batches for i in b["seq_idx"]] == list(range(len(LENS) * 2))
        assert loader.stats.complete_frac == 1.0 and loader.stats.num_seqs_seen == len(LENS) * 2
    assert runs[0] == runs[1] != expected
    for i in range(0, len(expected), 4):
        assert sorted(runs[0][i : i + 4]) == sorted(expected[i : i + 4])
    assert [b["seq_tag"] for b in make_loader(BulkDataset(LENS * 2), batching=shuffled, role="eval")] == expected


def test_dataloader_opts_without_effect(make_loader: MakeLoader, capsys: pytest.CaptureFixture[str]) -> None:
    with process_state_ctx(shown_warnings=set()):
        for _ in range(2):
            make_loader(PerSeqDataset([3]), unused_keys=("timeout", "drop_last"))
    (line,) = capsys.readouterr().out.splitlines()
    assert line.startswith(
        "WARNING: torch_dataloader_opts: without effect here: timeout (a worker that died is noticed"
    )
    assert line.endswith(", drop_last (the option for this is batch_drop_last).")


def test_worker_init_fn(make_loader: MakeLoader, tmp_path: Path) -> None:
    init = functools.partial(_note_worker, str(tmp_path))
    loader = make_loader(PerSeqDataset([3, 4, 5]), 2, worker_init_fn=init)
    for _ in range(2):
        assert len(list(loader)) == 2
    assert sorted(os.listdir(tmp_path)) == ["0", "1"]  # once per process, not per pass
    loader = make_loader(PerSeqDataset([3]), 1, worker_init_fn=_fail_to_start)
    with pytest.raises(WorkerError, match="ValueError: no such worker 0.*worker_init_fn"):
        list(loader)


def _note_worker(folder: str, worker_id: int) -> None:
    with open(os.path.join(folder, str(worker_id)), "x"):
        pass


def _fail_to_start(worker_id: int) -> None:
    raise ValueError(f"no such worker {worker_id}")


def _draws_of(func: Callable[[], Any]) -> int:
    """:return: number of int64 draws from torch's global generator"""
    torch.manual_seed(1)
    func()
    state = torch.get_rng_state()
    torch.manual_seed(1)
    for i in range(10):
        if torch.equal(torch.get_rng_state(), state):
            return i
        torch.empty((), dtype=torch.int64).random_()
    raise AssertionError("some other number of draws")


def _numpy_state() -> list[int]:
    state = numpy.random.get_state(legacy=True)
    assert isinstance(state, tuple)
    return state[1].tolist()


def test_rng_draws_in_process(make_loader: MakeLoader) -> None:
    loader = make_loader(PerSeqDataset(LENS))
    numpy_state = _numpy_state()
    assert [_draws_of(lambda: list(loader)) for _ in range(2)] == [2, 2]
    assert _draws_of(loader.consume_rng) == 2
    assert _draws_of(lambda: iter(loader)) == 2
    assert _numpy_state() == numpy_state


def test_rng_draws_with_workers(make_loader: MakeLoader) -> None:
    loader = make_loader(PerSeqDataset(LENS), 1)
    assert [_draws_of(loader.consume_rng) for _ in range(2)] == [3, 1]
    assert _draws_of(make_loader(PerSeqDataset(LENS), 1, resumed=True).consume_rng) == 1


def test_in_process_equals_torch_data_loader_draws(make_loader: MakeLoader) -> None:
    pipe = IterableWrapper([1, 2], deepcopy=False)
    assert _draws_of(lambda: list(torch.utils.data.DataLoader(pipe, batch_size=None))) == 2


def test_newer_iterator_ends_older(make_loader: MakeLoader) -> None:
    loader = make_loader(PerSeqDataset(LENS))
    first = iter(loader)
    next(first)
    list(loader)
    with pytest.raises(RuntimeError, match="this iterator ended"):
        list(first)


def test_error_in_process(make_loader: MakeLoader, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(
        DatasetError, match=r"the data is bad\. \(While reading dataset 'train', epoch 1, sequence 'seq-5'"
    ):
        list(make_loader(PerSeqDataset(LENS, fail_at="error:5")))
    with pytest.raises(KeyError, match="a bug"):
        list(make_loader(PerSeqDataset(LENS, fail_at="key_error:5")))
    assert "Error while reading dataset 'train', epoch 1, sequence 'seq-5'" in capsys.readouterr().out


def test_batches_own_their_memory(make_loader: MakeLoader) -> None:
    loader = make_loader(BulkDataset(LENS))
    before = [b["data"].clone() for b in loader]
    batches = list(loader)
    for batch in batches:
        batch["data"].fill_(-1)
        batch["data:size1"].fill_(-1)
        assert batch["data"].untyped_storage().nbytes() == batch["data"].numel() * 4
    assert all(torch.equal(a, b["data"]) for a, b in zip(before, loader, strict=True))


def test_not_shardable(make_loader: MakeLoader) -> None:
    dataset = StreamDataset(LENS)
    dataset.supports_sharding = lambda: False  # type: ignore[method-assign]
    with pytest.raises(AssertionError, match="does not support sharding but 'num_workers_per_gpu' is > 0"):
        make_loader(dataset, 2)


# ---- real processes


@pytest.mark.slow
@pytest.mark.parametrize("cls", [BulkDataset, PerSeqDataset, StreamDataset])
def test_one_worker_equals_in_process(cls: type[PerSeqDataset], make_loader: MakeLoader) -> None:
    batching = BatchingOptions(
        batch_size=40, min_seq_length=2, chunking=ChunkingOptions({"data": ChunkStream(6, 4)}, random_start=True)
    )
    in_process, worker = (make_loader(cls(LENS), n, batching) for n in (0, 1))
    for epoch in (1, 2, 3):
        in_process.epoch_source.value = worker.epoch_source.value = epoch
        assert_same_batches(list(worker), list(in_process))
        assert worker.stats.num_seqs_dropped == in_process.stats.num_seqs_dropped
        assert worker.stats.num_seqs == in_process.stats.num_seqs
        assert worker.stats.frames == in_process.stats.frames
        assert worker.stats.complete_frac == in_process.stats.complete_frac


def _expected_sharded(batches_per_worker: list[list[Any]]) -> list[Any]:
    rows = itertools.zip_longest(*batches_per_worker)
    return [b for row in rows for b in row if b is not None]


@pytest.mark.slow
@pytest.mark.parametrize("cls", [BulkDataset, SelfShardingDataset])
def test_two_workers(cls: type[PerSeqDataset], make_loader: MakeLoader) -> None:
    order = [tag for b in make_loader(BulkDataset(LENS)) for tag in b["seq_tag"]]
    shards = [order[w::2] for w in (0, 1)]
    expected = _expected_sharded([[s[i : i + 3] for i in range(0, len(s), 3)] for s in shards])
    loader = make_loader(cls(LENS), 2)
    for _ in range(2):
        assert [b["seq_tag"] for b in loader] == expected
        assert loader.stats.num_seqs == len(LENS) and loader.stats.complete_frac == 1.0


@pytest.mark.slow
def test_global_batching_with_workers(make_loader: MakeLoader) -> None:
    expected = list(make_loader(BulkDataset(LENS)))
    for num_workers in (1, 2, 3, 4):
        loader = make_loader(BulkDataset(LENS), num_workers, worker_batching="global")
        assert_same_batches(list(loader), expected)
        loader.close()


@pytest.mark.slow
def test_break_and_iterate_again(make_loader: MakeLoader) -> None:
    expected = list(make_loader(BulkDataset(LENS * 20)))
    loader = make_loader(BulkDataset(LENS * 20), 2, worker_batching="global", prefetch_blocks=1)
    for num in (0, 1, 5):
        for batch in itertools.islice(loader, num):
            assert batch["seq_tag"]
        gc.collect()
    assert_same_batches(list(loader), expected)
    loader.close()
    assert_same_batches(list(loader), expected)  # starts anew


@pytest.mark.slow
def test_large_batches(make_loader: MakeLoader) -> None:
    lens = [100_000, 10, 300_000, 5, 50_000]
    batching = BatchingOptions(batch_size=None, max_seqs=2)
    for cls in (BulkDataset, PerSeqDataset):
        dataset = cls(lens, class_ratio=100_000)
        dataset.get_data_keys = lambda: ["data", "classes", "scalar"]  # type: ignore[method-assign]
        expected = list(make_loader(dataset, 0, batching))
        workers = list(make_loader(cls(lens, class_ratio=100_000), 1, batching))
        for batch in workers:
            del batch["text"]
        assert_same_batches(workers, expected)


@pytest.mark.slow
@pytest.mark.parametrize("num_workers", [1, 2])
def test_worker_error(num_workers: int, make_loader: MakeLoader) -> None:
    loader = make_loader(PerSeqDataset(LENS, fail_at="error:5"), num_workers)
    with pytest.raises(
        DatasetError, match=r"the data is bad\. \(While reading dataset 'train', epoch 1, sequence 'seq-5'"
    ) as info:
        list(loader)
    assert "in get_data" in str(info.value.__cause__)
    loader = make_loader(PerSeqDataset(LENS, fail_at="key_error:5"), num_workers)
    with pytest.raises(WorkerError, match=r"KeyError: 'a bug' .*dataset 'train', epoch 1, sequence 'seq-5'") as info2:
        list(loader)
    assert "Traceback" in str(info2.value.__cause__)


@pytest.mark.slow
def test_worker_kills_itself(make_loader: MakeLoader) -> None:
    loader = make_loader(PerSeqDataset(LENS, fail_at="kill:5"), 1)
    with pytest.raises(
        WorkerError,
        match=r"worker 0 \(pid \d+\) of dataset 'train' was killed by signal SIGKILL \(9\) in epoch 1.*GiB.*memory",
    ):
        list(loader)


@pytest.mark.slow
def test_dataset_cannot_be_constructed_in_worker(make_loader: MakeLoader) -> None:
    with pytest.raises(DatasetError, match="cannot open the file"):
        list(make_loader(FailsInWorker(LENS), 2))


@pytest.mark.slow
def test_workers_see_environment_and_are_seeded(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LOADER_TEST", "17")
    runs = []
    for _ in range(2):
        loader = make_loader(RandomDataset(LENS), 2)
        runs.append([b["data"].flatten().tolist() for epoch in (1, 2) for b in _epoch(loader, epoch)])
        assert all(values[0] == 17 for values in runs[-1])
    assert runs[0] == runs[1]
    values = [v for values in runs[0] for v in values[1::2]]
    assert len(set(values)) == len(values)


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
@pytest.mark.parametrize("method", ["forkserver", "spawn"])
def test_workers_use_one_thread_each(make_loader: MakeLoader, monkeypatch: pytest.MonkeyPatch, method: str) -> None:
    for name in ("OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OMP_NUM_THREADS", "2")  # the user's own value stays
    before = dict(os.environ)
    loader = make_loader(ThreadLimitDataset([1]), 1, start_method=method)
    (batch,) = _epoch(loader, 1)
    assert batch["data"].flatten().tolist() == [1, 1, 2]
    assert dict(os.environ) == before


def _epoch(loader: Loader, epoch: int) -> list[dict[str, Any]]:
    loader.epoch_source.value = epoch
    return list(loader)


@pytest.mark.slow
def test_exceptions_that_are_not_made_from_their_text(make_loader: MakeLoader) -> None:
    with pytest.raises(OptionError, match='option "x" is invalid') as exc_info:
        list(make_loader(OptionErrorDataset(LENS), 1))
    assert exc_info.value.option_name == "x"


def _pids(loader: Loader) -> list[int]:
    assert loader._pool is not None
    return loader._pool.pids()


@pytest.mark.slow
def test_killed_worker_is_noticed(make_loader: MakeLoader) -> None:
    loader = make_loader(BulkDataset([5] * 20_000), 2)
    iterator = iter(loader)
    next(iterator)
    os.kill(_pids(loader)[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match="worker 1 .* was killed by signal SIGKILL"):
        while True:
            next(iterator)
            time.sleep(0.005)
    assert len(list(loader)) > 0  # new processes


@pytest.mark.slow
def test_close_ends_processes(make_loader: MakeLoader) -> None:
    loader = make_loader(BulkDataset(LENS), 2)
    loader.prepare()
    pids = _pids(loader)
    assert len(pids) == 2 and all(map(_is_running, pids))
    loader.close()
    assert not any(map(_is_running, pids))
    loader = make_loader(BulkDataset(LENS), 1, persistent=False)
    list(loader)
    assert loader._pool is None


@pytest.mark.slow
@pytest.mark.parametrize("kill", [False, True])
def test_workers_may_have_children(kill: bool, make_loader: MakeLoader) -> None:
    loader = make_loader(NestedProcessDataset(LENS), 1)
    pid = next(iter(loader))["data"][0, 0].item()
    assert _is_running(pid)
    if kill:
        os.kill(_pids(loader)[0], signal.SIGKILL)
    loader.close()
    assert _wait_until(lambda: not _is_running(pid))


@pytest.mark.slow
@pytest.mark.parametrize("how", ["kill", "exit", "error", "interrupt"])
def test_workers_end_with_parent(how: str, tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(
        textwrap.dedent(
            """
            import sys, os, time
            from tests.datasets.loading_datasets import BulkDataset
            from returnn.torch.data.loader import create_loader
            from returnn.options.batching import BatchingOptions
            from returnn.options.loader import LoaderOptions

            if __name__ == "__main__":
                loader = create_loader(
                    BulkDataset([5] * 1000), batching=BatchingOptions(), loader=LoaderOptions(num_workers=2)
                )
                iterator = iter(loader)
                next(iterator)
                print(*loader._pool.pids(), flush=True)
                if sys.argv[1] == "exit":
                    sys.exit(3)
                if sys.argv[1] == "error":
                    raise ValueError("wrong")
                time.sleep(60)
            """
        )
    )
    root = Path(__file__).parents[3]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join([str(root), os.environ.get("PYTHONPATH", "")])}
    proc = subprocess.Popen(
        [sys.executable, str(script), how],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=env,
        cwd=tmp_path,
        start_new_session=True,
    )
    try:
        assert proc.stdout is not None
        line = proc.stdout.readline()
        pids = [int(p) for p in line.split()]
        assert len(pids) == 2, proc.communicate()[1]
        if how == "kill":
            proc.kill()
        elif how == "interrupt":
            os.killpg(proc.pid, signal.SIGINT)
        _, err = proc.communicate(timeout=30)
    finally:
        proc.kill()
    assert proc.returncode == {"kill": -9, "exit": 3, "error": 1, "interrupt": -2}[how]
    assert _wait_until(lambda: not any(map(_is_running, pids)))
    assert "leaked" not in err and "resource_tracker" not in err
    if how in ("kill", "exit"):
        assert err == ""


@pytest.mark.slow
def test_spawn(make_loader: MakeLoader) -> None:
    expected = list(make_loader(BulkDataset(LENS)))
    assert_same_batches(list(make_loader(BulkDataset(LENS), 1, start_method="spawn")), expected)


def test_unpicklable_option(make_loader: MakeLoader) -> None:
    dataset = PerSeqDataset(LENS, fail_at={"a": [Unpicklable()]})  # type: ignore[arg-type]
    loader = make_loader(dataset, 1)
    with pytest.raises(ConfigError) as exc_info:
        list(loader)
    lines = str(exc_info.value).splitlines()
    assert len(lines) == 3
    assert lines[0].startswith("dataset 'train': dataset option 'fail_at'['a'][0] cannot be sent to a worker process")
    assert "cannot pickle this thing" in lines[1] and "num_workers_per_gpu = 0" in lines[2]


class _DoesNotStoreItsArgument(BulkDataset):
    def __init__(self, lens: list[int], scale: float, **kwargs: Any):
        super().__init__(lens, **kwargs)


def test_argument_not_stored(make_loader: MakeLoader) -> None:
    with pytest.raises(ConfigError) as exc_info:
        list(make_loader(_DoesNotStoreItsArgument(LENS, 0.5), 1))
    lines = str(exc_info.value).splitlines()
    assert "the argument 'scale' of _DoesNotStoreItsArgument.__init__ was not stored" in lines[1]
    assert lines[1].endswith(" in the class attribute _getnewargs_exclude_attrs.")
    assert lines[2] == "With num_workers_per_gpu = 0 it is not sent anywhere."
