"""MultiProcDataset: the same data as the dataset alone, and what happens when something ends."""

from __future__ import annotations

import itertools
import json
import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
from typing import Any

import numpy
import pytest

from returnn.datasets.basic import init_dataset
from returnn.errors import DatasetError, DatasetOptionError, WorkerError
from tests.datasets.everyday_use import assert_same_seqs, check_everyday_use, check_jump, read_epoch
from tests.datasets.proc_datasets import (
    GOLDEN,
    RandomDrawsDataset,
    UnknownNumDataset,
    alive,
    assert_golden,
    hdf,
    iter_all,
    wait_gone,
)
from tests.datasets.test_jump import OGG_TEXTS
from tests.helpers import ROOT, program_env

_CASES: dict[str, Any] = json.loads((GOLDEN / "main_wrappers.json").read_text())


def multi_proc(dataset: Any, num_workers: int = 2, buffer_size: int = 4, **opts: Any) -> dict[str, Any]:
    """:return: dataset dict"""
    return {
        "class": "MultiProcDataset",
        "dataset": dataset,
        "num_workers": num_workers,
        "buffer_size": buffer_size,
        **opts,
    }


def _pids(dataset: Any) -> list[int]:
    return [worker.pid for worker in dataset._workers]


@pytest.mark.parametrize("case", [name for name in _CASES if name.startswith("multiproc/")])
def test_golden(case: str, make: Any) -> None:
    parts = case.split("/")
    opts: dict[str, Any] = {}
    if parts[1] == "dedicated":
        opts["sharding_method"] = parts.pop(1)
    child = hdf(seq_ordering={"laplace.4": "laplace:.4"}.get(parts[1], parts[1]))
    if len(parts) == 4:
        child["partition_epoch"] = int(parts[2][1:])
    assert_golden(make(multi_proc(child, int(parts[-1][1:]), **opts)), _CASES[case])


@pytest.mark.parametrize("buffer_size", [1, 2, 5, 1000])
@pytest.mark.parametrize("child", ["hdf", "meta", "random draws", "dummy"])
def test_same_as_child(child: str, buffer_size: int, make: Any) -> None:
    children: dict[str, Any] = {
        "hdf": hdf(seq_ordering="laplace:.4"),
        "meta": {
            "class": "MetaDataset",
            "datasets": {"a": hdf(seq_ordering="random"), "b": hdf("lab_perm")},
            "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
            "seq_order_control_dataset": "a",
        },
        "random draws": {"class": RandomDrawsDataset},
        "dummy": {"class": "DummyDataset", "input_dim": 3, "output_dim": 4, "num_seqs": 50},
    }
    child_opts = children[child]
    dataset, alone = make(multi_proc(child_opts, 3, buffer_size)), make(child_opts)
    for ds in (dataset, alone):
        ds.set_random_per_seq(True)
    for epoch in (1, 3):
        seqs = read_epoch(dataset, epoch)
        assert_same_seqs(seqs, read_epoch(alone, epoch))
        assert len(seqs) == dataset.num_seqs == alone.num_seqs
        for key in alone.get_data_keys():
            assert dataset.get_data_dim(key) == alone.get_data_dim(key)
            assert dataset.get_data_dtype(key) == alone.get_data_dtype(key)
            assert dataset.get_data_shape(key) == alone.get_data_shape(key)
            assert dataset.is_data_sparse(key) == alone.is_data_sparse(key)


def test_everyday_use() -> None:
    check_everyday_use(multi_proc(hdf(seq_ordering="random", partition_epoch=2)))


@pytest.mark.parametrize("child", ["hdf", "ogg"])
def test_jump(child: str) -> None:
    """The processes begin there: with draws per sequence, and also before what they have read ahead already."""
    opts = OGG_TEXTS if child == "ogg" else hdf(seq_ordering="random", partition_epoch=2)
    check_jump(multi_proc(opts, 2, 1), positions=2, epochs=(2,))


def test_cannot_jump(make: Any) -> None:
    for dataset in (
        make(multi_proc({"class": RandomDrawsDataset}, 1)),
        make(multi_proc(hdf(), 1, sharding_method="dedicated")),
    ):
        assert not dataset.supports_jump()
        dataset.init_seq_order(epoch=1)
        assert not dataset.supports_jump()


@pytest.mark.slow
def test_everyday_use_nested_and_dedicated() -> None:
    """A MultiProcDataset in another one, and random draws."""
    check_everyday_use(multi_proc(multi_proc(hdf(seq_ordering="random")), 1), workers=(2,))
    check_everyday_use(multi_proc({"class": RandomDrawsDataset}), random_draws=True, workers=(0, 2))
    dedicated = multi_proc({"class": UnknownNumDataset}, sharding_method="dedicated")
    epochs = check_everyday_use(dedicated, workers=(2,))
    assert sorted(tag for tag, _ in epochs[0]) == [f"u-{i}" for i in range(7)]


def _read_in_process(opts: Any, queue: Any) -> None:
    queue.put([tag for tag, _ in read_epoch(init_dataset(opts), 1)])


@pytest.mark.parametrize("method", ["spawn", "fork"])
def test_in_a_daemonic_process(method: str, make: Any) -> None:
    """As the workers of a plain torch DataLoader are."""
    dataset = make(multi_proc(hdf(seq_ordering="random")))
    expected = [tag for tag, _ in read_epoch(dataset, 1)]
    context: Any = multiprocessing.get_context(method)
    queue = context.Queue()
    proc = context.Process(target=_read_in_process, args=(dataset, queue), daemon=True)
    proc.start()
    assert queue.get(timeout=60) == expected
    proc.join(30)
    assert proc.exitcode == 0
    assert [tag for tag, _ in read_epoch(dataset, 1)] == expected  # ours still work


def test_skipping_sequences(make: Any) -> None:
    """As one of several loader workers reads it."""
    child = hdf(seq_ordering="random")
    dataset, alone = make(multi_proc(child, 3, 2)), make(child)
    for ds in (dataset, alone):
        ds.init_seq_order(epoch=1)
    for i in (1, 2, 7, 8, 16):
        for ds in (dataset, alone):
            ds.load_seqs(i, i + 1)
        assert dataset.get_tag(i) == alone.get_tag(i)
        numpy.testing.assert_array_equal(dataset.get_data(i, "data"), alone.get_data(i, "data"))
    assert not dataset.is_less_than_num_seqs(17)


def test_given_orders(make: Any) -> None:
    dataset = make(multi_proc(hdf(seq_ordering="random")))
    dataset.init_seq_order(epoch=1, seq_order=[5, 3, 8])
    assert [tag.rpartition("s")[2] for tag in iter_all(dataset)] == ["5", "3", "8"]
    assert list(dataset.get_current_seq_order()) == [5, 3, 8]
    tags = dataset.get_all_tags()
    assert len(tags) == dataset.get_total_num_seqs() == 17
    dataset.init_seq_order(epoch=1, seq_list=[tags[9], tags[0]])
    assert list(iter_all(dataset)) == [tags[9], tags[0]]
    dataset.init_seq_order()
    assert dataset.num_seqs == 0 and not list(iter_all(dataset))


def test_epoch_is_begun_again_before_its_end(make: Any) -> None:
    dataset = make(multi_proc(hdf(seq_ordering="random"), buffer_size=1))
    expected = [tag for tag, _ in read_epoch(dataset, 2)]
    for num in range(6):
        dataset.init_seq_order(epoch=1)
        assert len(list(itertools.islice(iter_all(dataset), num))) == num
    dataset.init_seq_order(epoch=2)
    assert list(iter_all(dataset)) == expected


def test_free_resources(make: Any) -> None:
    dataset = make(multi_proc(hdf()))
    expected = read_epoch(dataset, 1)
    dataset.finish_epoch(free_resources=True)
    assert_same_seqs(read_epoch(dataset, 1), expected)


def test_options_go_to_the_child(make: Any) -> None:
    opts = multi_proc(hdf(), seq_ordering="random", partition_epoch=3, random_seed_offset=7, name="train")
    child = make(hdf(seq_ordering="random", partition_epoch=3, random_seed_offset=7))
    copy = pickle.loads(pickle.dumps(make(opts)))
    for dataset in (make(opts), copy):
        assert_same_seqs(read_epoch(dataset, 2), read_epoch(child, 2))
    copy.close()


def test_shards(make: Any) -> None:
    for method in ("seq_order", "dedicated"):
        parts = [
            [
                tag
                for tag, _ in read_epoch(
                    make(multi_proc(hdf(), sharding_method=method, _num_shards=2, _shard_index=i)), 1
                )
            ]
            for i in range(2)
        ]
        assert sorted(parts[0] + parts[1]) == sorted(tag for tag, _ in read_epoch(make(hdf()), 1))


def test_unpickling_starts_no_process(make: Any) -> None:
    dataset = make(multi_proc(hdf()))
    copy = pickle.loads(pickle.dumps(dataset))
    assert copy.num_outputs == dataset.num_outputs and copy.get_data_keys() == ["data"]
    assert not copy._workers


def test_mixed_shapes_and_text(make: Any) -> None:
    child = {"class": UnknownNumDataset, "mixed": True}
    dataset = make(multi_proc(child, 1, 100, sharding_method="dedicated"))
    assert_same_seqs(read_epoch(dataset, 1), read_epoch(make(child), 1))


def test_unknown_number(make: Any) -> None:
    dataset = make(multi_proc({"class": UnknownNumDataset}, 3, sharding_method="dedicated"))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(NotImplementedError):
        _ = dataset.num_seqs
    assert list(iter_all(dataset)) == [f"u-{i}" for i in range(7)]
    assert dataset.num_seqs == 7
    dataset = make(multi_proc({"class": UnknownNumDataset}))
    with pytest.raises(DatasetError, match="does not tell its order.*dedicated"):
        dataset.init_seq_order(epoch=1)


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"num_workers": 0}, "num_workers.*int > 0, got 0"),
        ({"buffer_size": -1}, "buffer_size.*int > 0, got -1"),
        ({"sharding_method": "x"}, "sharding_method.*seq_order"),
        ({"unknown_option": 1}, "no option 'unknown_option'"),
    ],
)
def test_wrong_options(opts: dict[str, Any], text: str) -> None:
    with pytest.raises(DatasetOptionError, match=text):
        init_dataset({**multi_proc(hdf()), **opts})


# ---- errors and ends


def test_error_names_sequence_and_dataset(make: Any) -> None:
    opts = multi_proc({"class": UnknownNumDataset, "fail_at": "error:3"}, 1, sharding_method="dedicated", name="train")
    dataset = make(opts)
    dataset.init_seq_order(epoch=2)
    with pytest.raises(DatasetError, match=r"the data is bad\..*'train_child'.*'train', epoch 2, position 3"):
        list(iter_all(dataset))
    with pytest.raises(DatasetError, match="the data is bad"):  # not an end of the data
        dataset.is_less_than_num_seqs(3)


def test_bug_is_forwarded_with_traceback(make: Any) -> None:
    dataset = make(multi_proc({"class": UnknownNumDataset, "fail_at": "bug:2"}, 2, sharding_method="dedicated"))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(WorkerError, match="KeyError: 'a bug'.*position 1") as exc_info:
        list(iter_all(dataset))
    assert "_collect_single_seq" in str(exc_info.value.__cause__)


def test_wrong_child_options(make: Any) -> None:
    with pytest.raises(DatasetOptionError, match="HDFDataset has no option 'file'"):
        make(multi_proc({"class": "HDFDataset", "file": "x"}))


@pytest.mark.parametrize(("action", "text"), [("kill", "killed by signal SIGKILL"), ("exit", "exit code 3")])
def test_dead_child_while_reading(action: str, text: str, make: Any) -> None:
    child = {"class": UnknownNumDataset, "fail_at": f"{action}:5", "num": 20}
    dataset = make(multi_proc(child, 2, sharding_method="dedicated", name="train"))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(WorkerError, match=f"MultiProcDataset 'train': process 2 of 2.*{text}.* in epoch 1"):
        list(iter_all(dataset))


def test_killed_child(make: Any) -> None:
    """Also one that waits. The next epoch begins with new processes."""
    dataset = make(multi_proc(hdf(), buffer_size=1))
    expected = [tag for tag, _ in read_epoch(dataset, 1)]
    dataset.init_seq_order(epoch=1)
    pids = _pids(dataset)
    os.kill(pids[1], signal.SIGKILL)
    with pytest.raises(WorkerError, match="process 2 of 2 .*was killed by signal SIGKILL"):
        list(iter_all(dataset))
    assert not wait_gone(pids)
    dataset.init_seq_order(epoch=1)
    assert list(iter_all(dataset)) == expected


def test_processes_end_with_the_dataset(make: Any) -> None:
    dataset = init_dataset(multi_proc(multi_proc(hdf(), 1), 2))
    dataset.init_seq_order(epoch=1)
    pids = _pids(dataset)
    assert len(pids) == 2
    del dataset
    assert not wait_gone(pids)


_SCRIPT = """
import os, sys, signal
sys.path.insert(0, {root!r})
from returnn.datasets.basic import init_dataset
from returnn.log import log
if __name__ == "__main__":
    log.initialize(verbosity=[1])
    child = {{"class": "HDFDataset", "files": [{file!r}]}}
    inner = {{"class": "MultiProcDataset", "dataset": child, "num_workers": 1, "buffer_size": 2}}
    dataset = init_dataset({{"class": "MultiProcDataset", "dataset": inner, "num_workers": 2, "buffer_size": 2}})
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    pids = [worker.pid for worker in dataset._workers]
    print(*pids, flush=True)
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"),
    [("pass", 0), ("raise ValueError", 1), ("os._exit(5)", 5), ("os.kill(os.getpid(), signal.SIGKILL)", -9)],
)
def test_no_orphans(end: str, code: int, tmp_path: Any) -> None:
    """Whatever ends the main process. The processes of a process too: those in the session of this script."""
    script = tmp_path / "script.py"
    script.write_text(_SCRIPT.format(root=str(ROOT), file=str(GOLDEN / "feat.hdf"), end=end))
    proc = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=program_env(),
        start_new_session=True,
    )
    assert proc.stdout and proc.stderr
    pids = [int(pid) for pid in proc.stdout.readline().split()]
    assert len(pids) == 2, proc.stderr.read()
    assert proc.wait(60) == code
    assert not wait_gone([*pids, *_session(proc.pid)])
    assert not _session(proc.pid)
    proc.stdout.close()
    proc.stderr.close()


def _session(sid: int) -> list[int]:
    """:return: processes of that session"""
    res = subprocess.run(["ps", "-o", "pid=", "-s", str(sid)], capture_output=True, text=True, check=False)
    return [int(pid) for pid in res.stdout.split() if alive(int(pid))]
