"""DistributeFilesDataset: distribution of files, sub epochs, preloading, shards, processes."""

from __future__ import annotations

import functools
import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets._distrib_files import distribute_evenly, leaves_of, load_file_list
from returnn.datasets.basic import init_dataset
from returnn.datasets.distrib_files import DistributeFilesDataset
from returnn.errors import DataFileError, DatasetError, DatasetOptionError, WorkerError
from tests.datasets.everyday_use import check_everyday_use, check_jump, read_epoch
from tests.datasets.proc_datasets import GOLDEN, UnknownNumDataset, assert_golden, iter_all, wait_gone
from tests.datasets.proc_functions import cached_hdf_of_files, hdf_of_files

_CASES: dict[str, Any] = json.loads((GOLDEN / "main_wrappers.json").read_text())


_DEFAULT_ORDER = functools.partial(hdf_of_files, seq_ordering="default")
_RANDOM_ORDER = functools.partial(hdf_of_files, seq_ordering="random")


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    names = []
    for i, name in enumerate(["c_a", "c_b", "c_a", "c_b", "c_a"]):
        names.append(str(tmp_path / f"{i}_{name}.hdf"))
        shutil.copy(GOLDEN / f"{name}.hdf", names[-1])
    return names


def distrib(files: Any, func: Any = _DEFAULT_ORDER, **opts: Any) -> dict[str, Any]:
    """:return: dataset dict"""
    return {
        "class": "DistributeFilesDataset",
        "files": files,
        "get_sub_epoch_dataset": func,
        "partition_epoch": 2,
        **opts,
    }


@pytest.fixture
def make() -> Iterator[Any]:
    """:return: as init_dataset; the processes end after the test"""
    datasets: list[DistributeFilesDataset] = []

    def create(opts: Any) -> DistributeFilesDataset:
        dataset = init_dataset(opts)
        assert isinstance(dataset, DistributeFilesDataset)
        datasets.append(dataset)
        return dataset

    yield create
    for dataset in datasets:
        dataset.close()


@pytest.mark.parametrize("case", _CASES["distribute_evenly_by_size"], ids=lambda case: str(case["num_bins"]))
def test_golden_distribution(case: Any) -> None:
    assert [list(r) for r in distribute_evenly(case["sizes"], case["num_bins"])] == case["bins"]


@hypothesis.given(st.lists(st.integers(0, 1000), min_size=1, max_size=50), st.data())
def test_distribution_is_a_partition(sizes: list[int], data: st.DataObject) -> None:
    num_bins = data.draw(st.integers(1, len(sizes)))
    bins = distribute_evenly(sizes, num_bins)
    assert len(bins) == num_bins and all(len(r) for r in bins)
    assert [i for r in bins for i in r] == list(range(len(sizes)))


@pytest.mark.parametrize("case", ["distrib/default/p2", "distrib/random/p2"])
def test_golden(case: str, files: list[str], make: Any) -> None:
    order = case.split("/")[1]
    func = functools.partial(hdf_of_files, seq_ordering=order)
    assert_golden(make(distrib(files, func, seq_ordering=order)), _CASES[case])


def test_golden_files_of_epochs(files: list[str], make: Any) -> None:
    dataset = make(distrib(files, seq_ordering="random"))
    idxs = [[files.index(f) for f in dataset._files_of_epoch(epoch)] for epoch in (1, 2, 3, 4)]
    assert idxs == [[2, 1, 4], [0, 3], [2, 4], [1, 3, 0]]


def test_forms_of_files(tmp_path: Path) -> None:
    (tmp_path / "a.txt").write_text("# comment\n\nx.hdf\n  y.hdf \n")
    (tmp_path / "a.json").write_text('["x.hdf", {"b": "y", "a": ["z"]}]')
    (tmp_path / "a.py").write_text("[('x.hdf', 'y.hdf')]")
    (tmp_path / "a.csv").write_text("x")
    assert load_file_list(str(tmp_path / "a.txt"), where="d") == ["x.hdf", "y.hdf"]
    trees = load_file_list(str(tmp_path / "a.json"), where="d")
    assert list(leaves_of(trees[1], where="d")) == ["z", "y"]
    assert load_file_list(str(tmp_path / "a.py"), where="d") == [("x.hdf", "y.hdf")]
    assert load_file_list(lambda: ["x"], where="d") == ["x"]
    for wrong, text in (
        (str(tmp_path / "a.csv"), "extension .txt"),
        ([3], "got 3"),
        ({"a": "b"}, "list of file names"),
    ):
        with pytest.raises(DatasetOptionError, match=text):
            load_file_list(wrong, where="d")  # type: ignore[arg-type]
    with pytest.raises(DataFileError, match="cannot read the list of files"):
        load_file_list("/not/there.txt", where="d")


def test_preload_and_end_of_processes(files: list[str], make: Any) -> None:
    dataset = make(distrib(files))
    dataset.init_seq_order(epoch=1)
    assert sorted(dataset._workers) == [1, 2]
    pids = [worker.pid for worker in dataset._workers.values()]
    first = list(iter_all(dataset))
    dataset.init_seq_order(epoch=2)
    assert sorted(dataset._workers) == [2, 3] and dataset._workers[2].pid == pids[1]
    assert not wait_gone(pids[:1])
    dataset.init_seq_order(epoch=1)
    assert list(iter_all(dataset)) == first
    dataset.init_seq_order(epoch=1)  # again, in the same process
    assert list(iter_all(dataset)) == first
    pids = [worker.pid for worker in dataset._workers.values()]
    dataset.finish_epoch(free_resources=True)
    assert not wait_gone(pids)


def test_no_preload_and_numbers(files: list[str], make: Any) -> None:
    dataset = make(distrib(files, preload_next_n_sub_epochs=0, buffer_size=100))
    dataset.init_seq_order(epoch=1)
    assert sorted(dataset._workers) == [1] and dataset.num_seqs == 19
    with pytest.raises(NotImplementedError, match="partition_epoch 1"):
        dataset.get_all_tags()
    dataset = make(distrib(files, partition_epoch=1))
    assert dataset.get_total_num_seqs() == len(dataset.get_all_tags()) == 31
    dataset.init_seq_order()
    assert dataset.num_seqs == 0


def test_shards(files: list[str], make: Any) -> None:
    """Explicit ones, and those of ranks: together they have each file once; the same seeds."""
    whole = sorted(tag for e in (1, 2) for tag, _ in read_epoch(make(distrib(files)), e))
    parts = []
    for i in range(2):
        dataset = make(distrib(files, _RANDOM_ORDER, _num_shards=2, _shard_index=i))
        parts += [tag for e in (1, 2) for tag, _ in read_epoch(dataset, e)]
    assert sorted(parts) == whole
    parts = []
    for i in range(2):
        with process_state_ctx(global_config=Config({"__debug_dummy_distributed_rank_and_size": (i, 2)})):
            dataset = make(distrib(files, _RANDOM_ORDER, distrib_shard_files=True, seq_ordering="random"))
            assert dataset.random_seed_offset == 0
        parts += [tag for e in (1, 2) for tag, _ in read_epoch(dataset, e)]
    assert sorted(parts) == whole


def test_everyday_use(files: list[str]) -> None:
    check_everyday_use(distrib(files, _RANDOM_ORDER, seq_ordering="random"), workers=(0, 2))


def test_jump(files: list[str], make: Any) -> None:
    check_jump(distrib(files, _RANDOM_ORDER, seq_ordering="random"), epochs=(1,), positions=3)


def _unknown_number(files: Any) -> dict[str, Any]:
    return {"class": UnknownNumDataset, "seq_ordering": "default", "num": len(files) + 2}


def test_unknown_number_of_seqs(files: list[str], make: Any) -> None:
    """E.g. with map_seq_stream."""
    dataset = make(distrib(files, _unknown_number, partition_epoch=1))
    for _ in range(2):
        dataset.init_seq_order(epoch=1)
        assert not dataset.supports_jump()
        assert list(iter_all(dataset)) == [f"u-{i}" for i in range(len(files) + 2)]
        assert dataset.num_seqs == len(files) + 2


def test_cached_files(files: list[str], tmp_path: Path, make: Any) -> None:
    config = Config({"file_cache_opts": {"cache_directory": str(tmp_path / "cache")}})
    with process_state_ctx(global_config=config):
        dataset = make(distrib(files, cached_hdf_of_files))
        assert len(read_epoch(dataset, 1)) == 19
        dataset.close()
    assert len(list((tmp_path / "cache").rglob("*.hdf"))) >= 3


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"seq_ordering": "laplace:.3"}, 'seq_ordering.*"default" or "random"'),
        ({"partition_epoch": 6}, "5 files cannot be distributed over partition_epoch 6"),
        ({"buffer_size": 0}, "buffer_size.*int >= 1"),
        ({"preload_next_n_sub_epochs": -1}, "preload_next_n_sub_epochs.*int >= 0"),
        ({"get_sub_epoch_dataset": "x"}, "get_sub_epoch_dataset.*function"),
        ({"sharding_fix": False}, "sharding_fix"),
        ({"distrib_shard_files": True, "_num_shards": 2}, "both given"),
        ({"get_sub_epoch_dataset": hdf_of_files}, "no explicit order"),
        (
            {"get_sub_epoch_dataset": functools.partial(hdf_of_files, seq_ordering="random", partition_epoch=2)},
            "must not have partition_epoch = 2",
        ),
        ({"files": ["/not/there.hdf", "/x"]}, "cannot read '/not/there.hdf'"),
    ],
)
def test_wrong_options(opts: dict[str, Any], text: str, files: list[str]) -> None:
    with pytest.raises(DatasetError, match=text):
        init_dataset({**distrib(files), **opts})


def test_given_orders_are_refused(files: list[str], make: Any) -> None:
    dataset = make(distrib(files))
    for order in ({"seq_list": ["a-0"]}, {"seq_order": [0]}):
        with pytest.raises(DatasetError, match="the files give the order"):
            dataset.init_seq_order(epoch=1, **order)


def test_killed_process(files: list[str], make: Any) -> None:
    dataset = make(distrib(files, name="train"))
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    os.kill(dataset._workers[1].pid, signal.SIGKILL)
    with pytest.raises(WorkerError, match="'train': process of sub epoch 1 .* was killed by signal SIGKILL"):
        for _ in range(3):
            list(iter_all(dataset))
            dataset.init_seq_order(epoch=1)
    assert len(read_epoch(dataset, 1)) == 19
