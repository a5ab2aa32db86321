"""Datasets of users, defined in a config, through the loader: the same data as by the per-sequence protocol."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn._state import process_state_ctx
from returnn.config import Config, load_config, set_global_config
from returnn.datasets import init_dataset
from returnn.datasets.basic import Dataset
from returnn.datasets.hdf import SimpleHDFWriter
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, create_loader

CONFIG = Path(__file__).with_name("user_datasets_config.py")
Seqs = list[tuple[str, dict[str, Any]]]  # tag; data key -> data as lists


@pytest.fixture(scope="module")
def config(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Config]:
    """:return: with the HDF file it needs"""
    path = tmp_path_factory.mktemp("data") / "data.hdf"
    with SimpleHDFWriter(path, dim=2, ndim=2, extra_type={"classes": (5, 1, "int32")}) as writer:
        for i in range(16):
            data = numpy.full((1, i % 6 + 1, 2), i, dtype="float32")
            classes = numpy.full((1, 2), i % 5, dtype="int32")
            writer.insert_batch(data, [i % 6 + 1], [f"h-{i}"], extra={"classes": classes})
    with process_state_ctx(), pytest.MonkeyPatch.context() as patch:
        patch.setenv("USER_DATASETS_HDF", str(path))
        loaded = load_config(str(CONFIG))
        set_global_config(loaded)
        yield loaded


def read_per_seq(dataset: Dataset, epoch: int) -> Seqs:
    """:return: all sequences of an epoch, as client code reads them"""
    dataset.init_seq_order(epoch=epoch)
    seqs = []
    i = 0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        data = {key: dataset.get_data(i, key).tolist() for key in dataset.get_data_keys()}
        seqs.append((dataset.get_tag(i), data))
        i += 1
    return seqs


def seqs_of_batch(batch: dict[str, Any]) -> Seqs:
    """:return: without padding"""
    keys = [key for key in batch if ":" not in key and key not in ("seq_tag", "seq_idx")]
    seqs = []
    for i, tag in enumerate(batch["seq_tag"]):
        data = {}
        for key in keys:
            value = numpy.asarray(batch[key][i])
            if f"{key}:size1" in batch:
                value = value[: int(batch[f"{key}:size1"][i])]
            data[key] = value.tolist()
        seqs.append((tag, data))
    return seqs


def shards(seqs: Seqs, num_workers: int, max_seqs: int) -> Seqs:
    """:return: in the order of the batches of several workers"""
    parts = [seqs[i::num_workers] for i in range(num_workers)]
    batches = [[part[i : i + max_seqs] for i in range(0, len(part), max_seqs)] for part in parts]
    longest = max(map(len, batches))
    return [seq for i in range(longest) for worker in batches if i < len(worker) for seq in worker[i]]


def check(config: Config, name: str, num_workers: int, **loader_opts: Any) -> None:
    """Two epochs."""
    opts = config.typed_value("datasets")[name]
    expected = {epoch: read_per_seq(init_dataset(opts, default_kwargs={"name": name}), epoch) for epoch in (1, 2)}
    loader = create_loader(
        init_dataset(opts, default_kwargs={"name": name}),
        batching=BatchingOptions(batch_size=None, max_seqs=3),
        loader=LoaderOptions(num_workers=num_workers, **loader_opts),
        epoch_source=EpochSource(1),
        name=name,
        role="train",
    )
    try:
        for epoch, seqs in expected.items():
            assert seqs
            loader.epoch_source.value = epoch
            got = [seq for batch in loader for seq in seqs_of_batch(batch)]
            assert got == (shards(seqs, 2, 3) if num_workers == 2 and not loader_opts else seqs)
    finally:
        loader.close()


NAMES = """old|old laplace|old get_data|stream|stream with lambda|one|known|map class|map lambda|map instance|map order
map list|hdf|hdf get_data|hdf num_seqs|hdf tag|hdf order|generating|static|static get_data|function|lambda|str|instance
meta of instance|meta of user class|meta of user class without tags|meta of hdf get_data|meta subclass
meta of generating|meta of static|meta of map|meta of meta""".replace("\n", "|").split("|")


def test_names(config: Config) -> None:
    assert NAMES == list(config.typed_value("datasets"))


@pytest.mark.parametrize("name", NAMES)
def test_in_process(config: Config, name: str) -> None:
    check(config, name, 0)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_with_workers(config: Config, name: str) -> None:
    check(config, name, 1)
    check(config, name, 2)
    check(config, name, 2, worker_batching="global")
