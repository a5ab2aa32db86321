"""PostprocessingDataset: golden data, the functions' view, processes, and what goes wrong."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import signal
from typing import Any

import numpy
import pytest

from returnn.datasets._loading.source import known_num_seqs
from returnn.datasets._procs.seq_blocks import BlockSender
from returnn.datasets.basic import DatasetSeq, init_dataset
from returnn.datasets.postprocessing import LaplaceOrdering, PostprocessingDataset, Sequential
from returnn.errors import DatasetError, DatasetOptionError, WorkerError
from returnn.tensor import Dim
from tests.datasets.everyday_use import (
    assert_same_seqs,
    check_everyday_use,
    check_jump,
    read_epoch,
    read_epoch_of_loader,
)
from tests.datasets.proc_datasets import GOLDEN, UnknownNumDataset, assert_golden, hdf, iter_all, wait_gone, wait_until
from tests.datasets.proc_functions import (
    add_random,
    check_input,
    die_at_third,
    drop_every_second,
    duplicate,
    fail_at_third,
    no_tensor_dict,
    raise_stop_iteration,
    replace_by_random,
    swallow_everything,
    to_labels,
    wrong_frac,
)

_CASES: dict[str, Any] = json.loads((GOLDEN / "main_wrappers.json").read_text())


def postproc(dataset: Any, **opts: Any) -> dict[str, Any]:
    """:return: dataset dict"""
    return {"class": "PostprocessingDataset", "dataset": dataset, **opts}


_GOLDEN_OPTS: dict[str, dict[str, Any]] = {
    "map_seq": {"dataset": hdf("c_a"), "map_seq": add_random},
    "stream_drop": {"dataset": hdf("c_a"), "map_seq_stream": drop_every_second},
    "rngstream": {"dataset": hdf("c_a"), "map_seq_stream": replace_by_random},
    "laplace4": {"dataset": hdf(seq_ordering="random"), "map_seq_stream": LaplaceOrdering(4)},
    "sequential": {
        "dataset": hdf(seq_ordering="random"),
        "map_seq_stream": Sequential(drop_every_second, LaplaceOrdering(3)),
    },
}


@pytest.mark.parametrize("case", [name for name in _CASES if name.startswith("postproc/")])
def test_golden(case: str, make: Any) -> None:
    _, name, *workers = case.split("/")
    opts = _GOLDEN_OPTS[name]
    assert_golden(make(postproc(**opts, num_workers=int(workers[0][1:]) if workers else 0)), _CASES[case])


@pytest.mark.parametrize("buf_size", [1, 3, 100])
@pytest.mark.parametrize("num_workers", [1, 2, 3])
def test_workers_give_the_same(num_workers: int, buf_size: int, make: Any) -> None:
    """With random numbers per sequence; and a stream function that needs no other sequences."""
    child = hdf(seq_ordering="random")
    opts = postproc(child, map_seq=add_random, random_state_per_seq=True)
    expected = [read_epoch(make(opts), epoch) for epoch in (1, 2)]
    dataset = make({**opts, "num_workers": num_workers, "buf_size": buf_size})
    for epoch in (1, 2):
        assert_same_seqs(read_epoch(dataset, epoch), expected[epoch - 1])


def test_no_empty_epoch(make: Any) -> None:
    """The race of the peers: many first epochs, and many starts of an epoch before the end of the one before."""
    opts = postproc(hdf(seq_ordering="random"), map_seq_stream=LaplaceOrdering(4), num_workers=2)
    for _ in range(5):
        dataset = init_dataset(opts)
        assert len(read_epoch(dataset, 1)) == 17
        assert isinstance(dataset, PostprocessingDataset)
        dataset.close()
    dataset = make(opts)
    expected = {epoch: [tag for tag, _ in read_epoch(make(opts), epoch)] for epoch in (1, 2, 3)}
    for i in range(100):
        epoch = i % 3 + 1
        dataset.init_seq_order(epoch=epoch)
        assert dataset.num_seqs == 17
        num = (i * 7) % 18
        assert list(itertools.islice(iter_all(dataset), num)) == expected[epoch][:num]


def test_pass_is_stopped_although_the_function_catches_all(make: Any) -> None:
    dataset = make(postproc(hdf(), map_seq_stream=swallow_everything, num_workers=2))
    for _ in range(5):
        dataset.init_seq_order(epoch=1)
        assert len(list(itertools.islice(iter_all(dataset), 3))) == 3
    dataset.init_seq_order(epoch=1)
    assert len(list(iter_all(dataset))) == 17


def test_functions_view(make: Any) -> None:
    for num_workers in (0, 1):
        dataset = make(postproc(hdf(), map_seq=check_input, num_workers=num_workers))
        assert_same_seqs(read_epoch(dataset, 2), read_epoch(make(hdf()), 2))


def test_other_outputs(make: Any) -> None:
    outputs = {
        "labels": {"dims": [Dim(None, name="time")], "sparse_dim": Dim(5, name="c"), "dtype": "int32"},
        "mean": {"shape": (), "dtype": "float32"},
    }
    for num_workers in (0, 2):
        dataset = make(postproc(hdf(), map_seq=to_labels, map_outputs=outputs, num_workers=num_workers))
        assert dataset.get_data_keys() == ["labels", "mean"]
        assert dataset.num_outputs == {"labels": (5, 1), "mean": (1, 0)}
        assert dataset.is_data_sparse("labels") and not dataset.is_data_sparse("mean")
        assert dataset.labels == {"labels": ["0", "1", "2", "3", "4"]}
        seqs = read_epoch(dataset, 1)
        for (tag, values), (expected_tag, expected) in zip(seqs, read_epoch(make(hdf()), 1), strict=True):
            assert tag == expected_tag
            numpy.testing.assert_array_equal(values["labels"], (expected["data"][:, 0] % 5).astype("int32"))
    old_form = {"labels": {"dim": 5, "sparse": True}, "mean": {"shape": (), "dtype": "float32"}}
    dataset = make(postproc(hdf(), map_seq=to_labels, map_outputs=old_form))
    assert dataset.num_outputs == {"labels": (5, 1), "mean": (1, 0)} and read_epoch(dataset, 1)


def test_number_of_seqs(make: Any) -> None:
    dataset = make(postproc(hdf(), map_seq_stream=duplicate))
    dataset.init_seq_order(epoch=1)
    assert known_num_seqs(dataset) is None
    assert list(iter_all(dataset)) == [f"seq-{i}" for i in range(34)]
    assert dataset.num_seqs == 34
    for func, count in ((drop_every_second, "only 9"), (duplicate, "more")):
        dataset = make(postproc(hdf(), map_seq_stream=func, map_seq_stream_preserves_num_seqs=True))
        dataset.init_seq_order(epoch=1)
        assert dataset.num_seqs == 17
        with pytest.raises(DatasetError, match=f"preserve the number of sequences, 17, but gave {count}"):
            list(iter_all(dataset))
    dataset = make(postproc(hdf(), map_seq_stream=Sequential(LaplaceOrdering(3), LaplaceOrdering(2))))
    dataset.init_seq_order(epoch=1)
    assert dataset.num_seqs == 17


def test_delegates_and_orders(make: Any) -> None:
    dataset = make(postproc(hdf(seq_ordering="random"), map_seq=add_random))
    tags = dataset.get_all_tags()
    assert dataset.get_total_num_seqs() == len(tags) == 17
    dataset.init_seq_order(epoch=1, seq_list=[tags[4], tags[2]])
    assert list(iter_all(dataset)) == [tags[4], tags[2]] and list(dataset.get_current_seq_order()) == [4, 2]
    dataset.init_seq_order(epoch=1, seq_order=[7])
    assert list(iter_all(dataset)) == [tags[7]]
    dataset.init_seq_order()
    assert list(iter_all(dataset)) == []
    dataset = make(postproc(hdf(), map_seq_stream=drop_every_second))
    for order in ({"seq_list": tags}, {"seq_order": [1]}):
        with pytest.raises(DatasetError, match="seq_list and seq_order are not possible with map_seq_stream"):
            dataset.init_seq_order(epoch=1, **order)
    with pytest.raises(NotImplementedError):
        dataset.get_all_tags()


def test_everyday_use() -> None:
    opts = postproc(hdf(seq_ordering="random"), map_seq=add_random)
    check_everyday_use(opts, random_draws=True)


@pytest.mark.parametrize("num_workers", [1, 3])
def test_jump_with_processes(num_workers: int) -> None:
    """Without processes: test_jump.py."""
    opts = postproc(hdf(seq_ordering="random"), map_seq=add_random, num_workers=num_workers)
    check_jump(opts, positions=2, epochs=(2,))


@pytest.mark.slow
def test_everyday_use_with_processes() -> None:
    multi = {"class": "MultiProcDataset", "dataset": hdf(seq_ordering="random"), "num_workers": 2, "buffer_size": 3}
    stream = postproc(multi, map_seq_stream=LaplaceOrdering(4), num_workers=2)
    check_everyday_use(stream, workers=(2,))
    nested = {"class": "MultiProcDataset", "num_workers": 1, "buffer_size": 3}
    inner = postproc(hdf(), map_seq=add_random, num_workers=1, seq_ordering="default")
    check_everyday_use({**nested, "dataset": inner}, random_draws=True, workers=(1,))


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({}, "exactly one of map_seq and map_seq_stream, got neither"),
        ({"map_seq": add_random, "map_seq_stream": duplicate}, "got both"),
        ({"map_seq": add_random, "seq_ordering": "random"}, "specify seq_ordering in wrapped dataset"),
        ({"map_seq": add_random, "map_seq_stream_preserves_num_seqs": True}, "only for map_seq_stream"),
        ({"map_seq": add_random, "buf_size": 0}, "buf_size.*int >= 1, got 0"),
        ({"map_seq": add_random, "num_workers": -1}, "num_workers.*int >= 0, got -1"),
        ({"map_seq": "x"}, "map_seq.*a function"),
        ({"map_seq": iter_all}, r"must take \*\*kwargs"),
        ({"map_seq": add_random, "map_outputs": {"data": {"dimm": 3}}}, "map_outputs.*data.*dimm"),
        ({"map_seq": add_random, "map_outputs": {"data": 3}}, "map_outputs.*expected a dict"),
    ],
)
def test_wrong_options(opts: dict[str, Any], text: str) -> None:
    with pytest.raises(DatasetOptionError, match=text):
        init_dataset(postproc(hdf(), **opts))


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize(
    ("outputs", "text"),
    [
        ({"labels": {"dim": 5, "sparse": True}, "x": {"dim": 3}}, r"no stream 'x', only \['labels', 'mean'\]"),
        ({"labels": {"dim": 5}}, r"'labels' with shape \(\d+,\).*expected shape \(None, 5\).*float32"),
        ({"labels": {"dim": 5, "sparse": True, "dtype": "int16"}}, "dtype int32: expected.*dtype int16"),
    ],
)
def test_wrong_results(outputs: Any, text: str, num_workers: int, make: Any) -> None:
    dataset = make(postproc(hdf(), map_seq=to_labels, map_outputs=outputs, num_workers=num_workers))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match=text):
        dataset.load_seqs(0, 1)


def test_wrong_fracs_and_types(make: Any) -> None:
    dataset = make(postproc(hdf(), map_seq_stream=wrong_frac))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match=r"complete_frac 0.25 .* after 0.5"):
        list(iter_all(dataset))
    dataset = make(postproc(hdf(), map_seq=no_tensor_dict))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(DatasetError, match="map_seq no_tensor_dict must give a TensorDict, got dict"):
        list(iter_all(dataset))


def test_laplace_needs_complete_frac(make: Any) -> None:
    dataset = make(postproc({"class": UnknownNumDataset}, map_seq_stream=LaplaceOrdering(2)))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(KeyError, match="no 'complete_frac'"):
        list(iter_all(dataset))


def test_errors_of_processes(make: Any) -> None:
    dataset = make(postproc(hdf(), map_seq=fail_at_third, num_workers=2, name="train"))
    dataset.init_seq_order(epoch=3)
    text = "KeyError: 'a bug' .*process 1 of PostprocessingDataset 'train'.*epoch 3, sequence 'corp/r0/s2'.*position 2"
    with pytest.raises(WorkerError, match=text) as exc_info:
        list(iter_all(dataset))
    assert "fail_at_third" in str(exc_info.value.__cause__)
    dataset = make(postproc(hdf(), map_seq=die_at_third, num_workers=2, name="train"))
    dataset.init_seq_order(epoch=1)
    with pytest.raises(WorkerError, match="'train': process 1 of 2 .* was killed by signal SIGKILL"):
        list(iter_all(dataset))
    with pytest.raises(WorkerError):  # not an end of the data
        dataset.load_seqs(16, 17)


def test_dead_process_while_data_is_sent_to_it(make: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The error says what happened to the process, not to the pipe."""
    dataset = make(postproc(hdf(), map_seq=add_random, num_workers=2, name="train"))
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    pids = dataset._pool.pids
    send = BlockSender.send

    def kill_and_send(self: BlockSender, *args: Any) -> None:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pids[0], signal.SIGKILL)
        assert not wait_gone(pids[:1])
        send(self, *args)

    monkeypatch.setattr(BlockSender, "send", kill_and_send)
    dataset.init_seq_order(epoch=2)
    with pytest.raises(WorkerError, match="'train': process 1 of 2 .* was killed by signal SIGKILL"):
        list(iter_all(dataset))


def test_process_that_is_ready_before_its_first_sequence(make: Any) -> None:
    """The feeder must not wait for it: it has nothing to do yet."""
    datasets: list[Any] = []

    class SlowDataset(UnknownNumDataset):
        """Has its first sequence after the second process is ready."""

        def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
            if seq_idx == 0:
                assert wait_until(datasets[0]._pool._workers[1].process.conn.poll)
            return super()._collect_single_seq(seq_idx)

    datasets.append(make(postproc({"class": SlowDataset}, map_seq=add_random, num_workers=2)))
    datasets[0].init_seq_order(epoch=1)
    assert len(list(iter_all(datasets[0]))) == 7


@pytest.mark.parametrize("num_workers", [0, 2])
def test_place_of_errors(num_workers: int, make: Any) -> None:
    """Exactly one, also through the workers of a loader."""
    dataset = make(postproc(hdf(), map_seq=raise_stop_iteration, num_workers=num_workers, name="train"))
    dataset.init_seq_order(epoch=1)
    with pytest.raises((RuntimeError, WorkerError), match="raise_stop_iteration raised StopIteration"):
        dataset.load_seqs(0, 1)
    for num_loader_workers in (0, 1):
        with pytest.raises((RuntimeError, WorkerError)) as exc_info:
            read_epoch_of_loader(dataset, 1, num_loader_workers)
        text = "".join([str(exc_info.value), *getattr(exc_info.value, "__notes__", ())])
        assert text.count("sequence 'corp/r0/s") == text.count("(position ") == 1 and "None" not in text
        if num_loader_workers:
            frames = getattr(exc_info.value.__cause__, "frames", ())
            assert any(name == "raise_stop_iteration" for _, _, name, _ in frames)


def test_error_of_the_wrapped_dataset(make: Any) -> None:
    child = {"class": UnknownNumDataset, "fail_at": "error:4"}
    for num_workers in (0, 2):
        dataset = make(postproc(child, map_seq_stream=drop_every_second, num_workers=num_workers))
        dataset.init_seq_order(epoch=1)
        with pytest.raises(DatasetError, match="the data is bad"):
            list(iter_all(dataset))


def test_processes_end_with_the_dataset() -> None:
    dataset = init_dataset(postproc(hdf(), map_seq=add_random, num_workers=2))
    assert isinstance(dataset, PostprocessingDataset)
    dataset.init_seq_order(epoch=1)
    dataset.load_seqs(0, 1)
    assert dataset._pool is not None
    pids = dataset._pool.pids
    del dataset
    assert not wait_gone(pids)
