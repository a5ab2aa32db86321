"""The data loader with the datasets of the package, in-process and with workers, against the golden data of the peers."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn._state import process_state_ctx
from returnn.config import Config, set_global_config
from returnn.datasets import init_dataset
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, Loader, create_loader
from tests.torch.data.test_loader import assert_same_batches

GOLDEN = Path(__file__).parents[2] / "golden"
WORKER_BATCHES = json.loads((GOLDEN / "04-datasets-meta" / "worker_batches_mini.json").read_text())
SHARDING = json.loads((GOLDEN / "02-datasets-base" / "worker_sharding.json").read_text())


@contextmanager
def _loader(opts: dict[str, Any], num_workers: int, batching: BatchingOptions, **kwargs: Any) -> Iterator[Loader]:
    loader = create_loader(
        init_dataset(opts),
        batching=batching,
        loader=LoaderOptions(num_workers=num_workers, **kwargs),
        epoch_source=EpochSource(1),
        name="train",
    )
    try:
        yield loader
    finally:
        loader.close()


def _with_paths(opts: Any) -> Any:  # Any: part of a dataset dict
    if isinstance(opts, dict):
        return {key: _with_paths(value) for key, value in opts.items()}
    if isinstance(opts, list):
        return [_with_paths(value) for value in opts]
    if isinstance(opts, str) and opts.endswith(".hdf"):
        return str(GOLDEN / "04-datasets-meta" / opts)
    return opts


def _all_tags() -> list[str]:
    return sorted(json.loads((GOLDEN / "04-datasets-meta" / "corpus.json").read_text())["feat_tags"])


@pytest.mark.slow
@pytest.mark.parametrize("case", list(WORKER_BATCHES))
def test_worker_batches_golden(case: str) -> None:
    golden = WORKER_BATCHES[case]
    opts = _with_paths(golden["opts"])
    if "data_map" in opts:
        opts["data_map"] = {key: tuple(v) for key, v in golden["opts"]["data_map"].items()}
    batching = BatchingOptions(batch_size=golden["batch_size"], max_seqs=golden["max_seqs"])
    with _loader(opts, golden["num_workers"], batching) as loader:
        for epoch, expected in golden["epochs"].items():
            loader.epoch_source.value = int(epoch)
            batches = list(loader)
            if isinstance(expected, str):  # a bug of the peer
                assert sorted(tag for b in batches for tag in b["seq_tag"]) == _all_tags()
                continue
            assert [{"seq_tag": b["seq_tag"], "seq_idx": b["seq_idx"]} for b in batches] == expected
            assert sorted(batches[0]) == golden["keys"]


@pytest.mark.slow
def test_worker_sharding_golden() -> None:
    for case, golden in SHARDING.items():
        text, _, epoch = case.partition(", epoch ")
        name, *pairs = text.split()
        opts: dict[str, Any] = {"class": name}
        for key, _, value in (pair.partition("=") for pair in pairs):
            opts[key] = int(value) if value.isdigit() else value
        for num_workers, shards in golden.items():
            with _loader(opts, int(num_workers), BatchingOptions(batch_size=None)) as loader:
                loader.epoch_source.value = int(epoch)
                got = [[int(tag.removeprefix("seq-")) for tag in b["seq_tag"]] for b in loader]
                assert got == shards, (case, num_workers)


def _static() -> dict[str, Any]:
    rnd = numpy.random.RandomState(1)
    data = [
        {"data": rnd.randn(n, 3).astype("float32"), "classes": rnd.randint(0, 5, (n,)).astype("int32")}
        for n in rnd.randint(1, 20, (30,))
    ]
    return {"class": "StaticDataset", "data": data, "output_dim": {"data": (3, 2), "classes": (5, 1)}}


DATASETS = {
    "Task12AX": {"class": "Task12AXDataset", "num_seqs": 40, "seq_ordering": "random"},
    "Static": {**_static(), "seq_ordering": "laplace:.5"},
    "HDF": {
        "class": "HDFDataset",
        "files": [str(GOLDEN / "04-datasets-meta" / "feat.hdf")],
        "seq_ordering": "laplace:.4",
    },
}


@pytest.mark.slow
@pytest.mark.parametrize("name", list(DATASETS))
def test_any_number_of_workers(name: str) -> None:
    opts = DATASETS[name]
    batching = BatchingOptions(batch_size=60, max_seqs=7, max_seq_length=50)
    with _loader(opts, 0, batching) as loader:
        expected = []
        for loader.epoch_source.value in (1, 2):
            expected += list(loader)
    assert expected
    for num_workers in (1, 2):
        with _loader(opts, num_workers, batching, worker_batching="global") as loader:
            batches = []
            for loader.epoch_source.value in (1, 2):
                batches += list(loader)
        assert_same_batches(batches, expected)
    with _loader(opts, 1, batching) as loader:
        batches = []
        for loader.epoch_source.value in (1, 2):
            batches += list(loader)
    assert_same_batches(batches, expected)


CONFIG = '''#!rnn.py
import numpy
from returnn.datasets.basic import DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.config import get_global_config

factor = 3


def scale(x):
    return x * factor


class MyDataset(CachedDataset2):
    """A class of a config, which uses functions and options of it."""

    def __init__(self, func, **kwargs):
        super().__init__(**kwargs)
        self.func = func
        self.num_outputs = {"data": (2, 2)}

    def init_seq_order(self, epoch=None, seq_list=None, seq_order=None):
        super().init_seq_order(epoch=epoch, seq_list=seq_list, seq_order=seq_order)
        self._num_seqs = get_global_config().int("my_num_seqs", 0)
        return True

    def supports_sharding(self):
        return True

    def _collect_single_seq(self, seq_idx):
        if seq_idx >= self._num_seqs:
            return None
        return DatasetSeq(seq_idx, features={"data": self.func(numpy.full((seq_idx + 1, 2), seq_idx, "float32"))})


my_num_seqs = 5
train = {"class": MyDataset, "func": scale}
train_lambda = {"class": MyDataset, "func": lambda x: x + factor}
'''


@pytest.mark.slow
@pytest.mark.parametrize("name", ["train", "train_lambda"])
def test_class_and_functions_of_the_config(name: str, tmp_path: Path) -> None:
    config_file = tmp_path / "my.config"
    config_file.write_text(CONFIG)
    config = Config()
    with process_state_ctx():
        set_global_config(config)
        config.load_file(str(config_file))
        opts = config.typed_dict[name]
        for num_workers in (0, 1, 2):
            with _loader(opts, num_workers, BatchingOptions(batch_size=None, max_seqs=1)) as loader:
                batches = list(loader)
            assert sorted(b["data:size1"].item() for b in batches) == [1, 2, 3, 4, 5]
            values = sorted(b["data"][0, 0, 0].item() for b in batches)
            assert values == ([0, 3, 6, 9, 12] if name == "train" else [3, 4, 5, 6, 7])


def test_workers_do_not_repeat_log_lines(tmp_path: Path) -> None:
    path = tmp_path / "x.log"
    golden = WORKER_BATCHES[next(iter(WORKER_BATCHES))]
    opts = {
        "class": "MetaDataset",
        "name": "train",
        "datasets": {"feat": {"class": "HDFDataset", "files": _first_files(golden["opts"])}},
        "data_map": {"data": ("feat", "data")},
        "seq_order_control_dataset": "feat",
    }
    saved = dict(vars(log))
    log.initialize(logs=[str(path)], verbosity=[4, 0])
    try:
        with _loader(opts, 2, BatchingOptions(batch_size=100)) as loader:
            for _ in loader:
                pass
    finally:
        log.initialize()
        vars(log).update(saved)
    lines = path.read_text().splitlines()
    assert [line for line in lines if line.startswith(("Created", "Reading", "Reinitialize"))] == [
        "Created Dataset train_feat",
        "Reading sequence list for MetaDataset 'train' from sub-dataset 'train_feat'",
        "Created Dataset train",
        "Reinitialize dataset seq order for epoch 1.",
    ]


def _first_files(opts: Any) -> list[str]:  # Any: part of a dataset dict
    """:return: the first list of HDF files in the options"""
    if isinstance(opts, dict):
        if "files" in opts:
            return [str(file) for file in _with_paths(opts["files"])]
        return next((files for value in opts.values() if (files := _first_files(value))), [])
    return []
