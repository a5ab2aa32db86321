"""The option torch_batching, in-process and with worker processes, and the golden data of the peers through the loader."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch.utils.data

from returnn.datasets.generating import StaticDataset
from returnn.errors import ConfigError, DatasetError, OptionError
from returnn.options.batching import BatchingOptions, BucketOptions, CustomBatching, OnlineShuffleOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, Loader, Role, create_loader
from returnn.torch.data.pipeline import (
    BatchingIterDataPipe,
    ShufflingDataPipe,
    create_data_loader_from_batches,
    get_batching_iterable_dataset_from_config,
)
from returnn.torch.data.returnn_dataset_wrapper import ReturnnDatasetIterDataPipe
from tests.datasets.loading_datasets import BulkDataset, PerSeqDataset, StreamDataset

GOLDEN = json.loads((Path(__file__).parents[2] / "golden" / "06-engine" / "pipeline_mainline.json").read_text())
MAINLINE = {"extern_data": {"data": {"dim": 2}}}
BUCKETS = {"class": "BucketOrderingIterDataPipe", "buckets": [(6, 3), (3, 2), (9, 2)], "length_key": "data"}
LENS = [3, 9, 4, 7, 1, 12, 5, 5, 8, 2, 6, 10, 11, 3, 4, 4, 7]

MakeLoader = Callable[..., Loader]


@pytest.fixture
def make_loader() -> Iterator[MakeLoader]:
    """:return: function (dataset, config options, ...) -> loader; all are closed at the end"""
    loaders: list[Loader] = []

    def make(
        dataset: Any,
        config: dict[str, Any],
        *,
        num_workers: int = 0,
        epoch: int = 1,
        role: Role = "train",
        worker_batching: Any = "sharded",
        **kwargs: Any,
    ) -> Loader:
        batching = BatchingOptions.from_config({**MAINLINE, **config}, role=role)
        loader = LoaderOptions(num_workers=num_workers, worker_batching=worker_batching)
        loaders.append(
            create_loader(
                dataset,
                batching=batching,
                loader=loader,
                epoch_source=EpochSource(epoch),
                name="train",
                role=role,
                **kwargs,
            )
        )
        return loaders[-1]

    yield make
    for loader in loaders:
        loader.close()


def _golden_dataset(cls: type[PerSeqDataset]) -> PerSeqDataset:
    dataset = cls(GOLDEN["data_lens"], shuffled=False)
    return dataset


def _golden_static() -> StaticDataset:
    """:return: with both streams of the golden data"""
    seqs = [
        {"data": numpy.arange(n, dtype="float32")[:, None], "classes": numpy.arange(m, dtype="int32")}
        for n, m in zip(GOLDEN["data_lens"], GOLDEN["classes_lens"], strict=True)
    ]
    return StaticDataset(seqs, output_dim={"data": (1, 2), "classes": (20, 1)})


def _idxs(loader: Loader) -> list[list[int]]:
    return [batch["seq_idx"] for batch in loader]


@pytest.mark.parametrize("dataset", [PerSeqDataset, BulkDataset, StreamDataset])
def test_bucket_golden(make_loader: MakeLoader, dataset: type[PerSeqDataset]) -> None:
    loader = make_loader(_golden_dataset(dataset), {"torch_batching": BUCKETS})
    assert _idxs(loader) == GOLDEN["bucket"][0] == [[2, 4], [0, 5, 6], [1, 8], [7, 10], [9], [11]]
    assert "1 data longer than all buckets" in str(loader.stats.dropped_text())
    assert loader.stats.complete_frac == (None if dataset is StreamDataset else 1.0)


@pytest.mark.parametrize(
    ("i", "num_workers"),
    [
        *((i, 0) for i in range(len(GOLDEN["batching"]))),
        *((i, 1) for i, (options, _) in enumerate(GOLDEN["batching"]) if isinstance(options, str)),
    ],
)
def test_batching_golden(make_loader: MakeLoader, i: int, num_workers: int) -> None:
    options, expected = GOLDEN["batching"][i]
    if isinstance(options, str):
        options = {
            "max_seqs = lambda: 1 + seq_idx // 4, batch_size None": {"max_seqs": _max_seqs, "batch_size": None},
            "batch_size = lambda: 5 + 10*epoch_continuous": {"batch_size": _batch_size},
        }[options]
    assert _idxs(make_loader(_golden_static(), options, num_workers=num_workers)) == expected


def _max_seqs(*, seq_idx: int, **_kwargs: Any) -> int:
    return 1 + seq_idx // 4


def _batch_size(*, epoch_continuous: float, **_kwargs: Any) -> float:
    return 5 + 10 * epoch_continuous


@pytest.mark.parametrize("num_workers", [0, 1])
def test_shuffle_golden(make_loader: MakeLoader, num_workers: int) -> None:
    config = {"batch_size": None, "max_seqs": 2, "online_shuffle_batches": {"buffer_size": 3, "seed": 5}}
    loader = make_loader(_golden_dataset(BulkDataset), config, num_workers=num_workers)
    batches = list(loader)
    assert [batch["seq_tag"] for batch in batches] == GOLDEN["shuffle_seed5_buf3_maxseqs2"]
    assert [i for batch in batches for i in batch["seq_idx"]] == list(range(12))
    loader.epoch_source.value = 2  # another order, of the same batches
    second = [batch["seq_tag"] for batch in loader]
    assert sorted(second) == sorted(GOLDEN["shuffle_seed5_buf3_maxseqs2"]) and second != [b["seq_tag"] for b in batches]
    assert second == [batch["seq_tag"] for batch in loader]


def sorted_pairs(dataset: Any, *, train: bool, **_kwargs: Any) -> Any:
    """:return: as users write it: all sequences sorted, in pairs; in evaluation one by one"""

    class _Sorted(torch.utils.data.IterableDataset):
        def __iter__(self) -> Iterator[list[dict[str, Any]]]:
            seqs = sorted(dataset, key=lambda seq: (len(seq["data"]), str(seq["seq_tag"])))
            size = 2 if train else 1
            for i in range(0, len(seqs), size):
                yield seqs[i : i + size]

    return _Sorted()


def with_our_pipes(dataset: Any, *, train: bool, **_kwargs: Any) -> Any:
    """:return: made of the classes of the pipeline module"""
    return ShufflingDataPipe(BatchingIterDataPipe(dataset, batch_size=None, max_seqs=3), buffer_size=2, seed=1)


def keys_of_sequences(dataset: Any, **_kwargs: Any) -> Any:
    """:return: single sequences, checked"""
    for seq in dataset:
        assert list(seq) == [
            *("data", "classes", "scalar", "text", "seq_idx", "seq_tag", "epoch", "num_seqs", "complete_frac")
        ]
        assert all(isinstance(seq[key], numpy.ndarray) for key in ("seq_idx", "seq_tag", "epoch", "num_seqs"))
        assert seq["complete_frac"].dtype == numpy.float32
        yield [seq]


class _Again:
    """Its generator can be had for each pass."""

    def __init__(self, dataset: Any):
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        return keys_of_sequences(self._dataset)


def checked(dataset: Any, *, train: bool, **_kwargs: Any) -> Any:
    """:return: iterable, but no torch dataset"""
    return _Again(dataset)


@pytest.mark.parametrize("dataset", [PerSeqDataset, BulkDataset, StreamDataset])
def test_function(make_loader: MakeLoader, dataset: type[PerSeqDataset]) -> None:
    loader = make_loader(dataset(LENS), {"torch_batching": sorted_pairs})
    for loader.epoch_source.value in (1, 2):
        batches = list(loader)
        assert [b["data"].shape[0] for b in batches] == [2] * 8 + [1]
        lens = [n for b in batches for n in b["data:size1"].tolist()]
        assert lens == sorted(LENS)
        assert list(batches[0]) == list(next(iter(make_loader(dataset(LENS), {"batch_size": 100}))))
        assert all(isinstance(tag, str) for b in batches for tag in b["seq_tag"])
    assert [len(idxs) for idxs in _idxs(make_loader(dataset(LENS), {"torch_batching": sorted_pairs}, role="eval"))] == [
        1
    ] * 17


def test_function_that_uses_our_pipes(make_loader: MakeLoader) -> None:
    batches = list(make_loader(BulkDataset(LENS), {"torch_batching": with_our_pipes}))
    assert sorted(tag for b in batches for tag in b["seq_tag"]) == sorted(f"seq-{i}" for i in range(17))
    assert [i for b in batches for i in b["seq_idx"]] == list(range(17))  # they keep their order


def test_sequences_are_as_in_mainline(make_loader: MakeLoader) -> None:
    loader = make_loader(StreamDataset(LENS), {"torch_batching": checked})
    for _ in range(2):
        assert len(list(loader)) == 17


@pytest.mark.parametrize("worker_batching", ["sharded", "global"])
@pytest.mark.parametrize("batching", [sorted_pairs, BUCKETS])
def test_workers(make_loader: MakeLoader, batching: Any, worker_batching: str) -> None:
    config = {"torch_batching": batching}
    loader = make_loader(BulkDataset(LENS), config, num_workers=2, worker_batching=worker_batching)
    one = [batch["seq_tag"] for batch in make_loader(BulkDataset(LENS), config)]
    for _ in range(2):
        tags = [batch["seq_tag"] for batch in loader]
        if worker_batching == "global":
            assert tags == one
        else:
            assert sorted(t for batch in tags for t in batch) == sorted(t for batch in one for t in batch)


def test_class_of_the_pipeline(make_loader: MakeLoader) -> None:
    config = {"torch_batching": {"class": "BatchingIterDataPipe", "batch_size": 20}}
    dataset = _golden_dataset(PerSeqDataset)
    assert _idxs(make_loader(dataset, config)) == _idxs(make_loader(dataset, {"batch_size": 20}))


def test_random_buckets_are_reproducible(make_loader: MakeLoader) -> None:
    config = {"torch_batching": {**BUCKETS, "random_bucket_prob": 0.7}}
    loader = make_loader(BulkDataset(LENS * 3), config)
    first = _idxs(loader)
    assert first == _idxs(loader) == _idxs(make_loader(PerSeqDataset(LENS * 3), config))
    assert first != _idxs(make_loader(BulkDataset(LENS * 3), {"torch_batching": BUCKETS}))
    loader.epoch_source.value = 2
    assert first != _idxs(loader)


class _Not:
    pass


def _wrong(dataset: Any, **_kwargs: Any) -> Any:
    return _Not()


def _single(dataset: Any, **_kwargs: Any) -> Any:
    return dataset


def _no_kwargs(dataset: Any, train: bool) -> Any:
    return dataset


def test_mistakes(make_loader: MakeLoader) -> None:
    dataset = PerSeqDataset(LENS)
    with pytest.raises(ConfigError, match=r"torch_batching: expected an iterable dataset.*_Not"):
        list(make_loader(dataset, {"torch_batching": _wrong}))
    with pytest.raises(DatasetError, match=r"(?s)torch_batching: each batch must be a list of sequences.*got dict"):
        list(make_loader(dataset, {"torch_batching": _single}))
    with pytest.raises(TypeError, match="__fwd_compat"):
        list(make_loader(dataset, {"torch_batching": _no_kwargs}))
    with pytest.raises(ConfigError, match=r"no data key 'audio' with a time axis.*\['classes', 'data', 'text'\]"):
        list(make_loader(dataset, {"torch_batching": {**BUCKETS, "length_key": "audio"}}))
    with pytest.raises(ConfigError, match=r"no data key 'scalar' with a time axis"):
        list(make_loader(BulkDataset(LENS), {"torch_batching": {**BUCKETS, "length_key": "scalar"}}))


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ({"class": "BucketOrderingDataPipe"}, "Did you mean 'BucketOrderingIterDataPipe'"),
        ({"class": "BatchingIterDataPipe", "size": 3}, "size"),
        ({"class": "create_tensor"}, "a class of returnn.torch.data.pipeline"),
        ({"buckets": []}, 'dict with "class"'),
        (5, 'dict with "class"'),
        ({**BUCKETS, "buckets": []}, "at least one"),
        ({**BUCKETS, "buckets": [(3, 2), (3, 1)]}, "only once"),
        ({**BUCKETS, "buckets": [3, 4]}, "pairs"),
        ({**BUCKETS, "random_bucket_prob": 2}, "0 to 1"),
        ({**BUCKETS, "lenght_key": "data"}, "lenght_key"),
        ({**BUCKETS, "seed": "a"}, "seed"),
    ],
)
def test_invalid(make_loader: MakeLoader, value: Any, text: str) -> None:
    with pytest.raises(OptionError, match=text):
        make_loader(PerSeqDataset(LENS), {"torch_batching": value})


def test_contradictions(make_loader: MakeLoader, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ConfigError, match=r"torch_batching.*batch_drop_last"):
        make_loader(PerSeqDataset(LENS), {"torch_batching": BUCKETS, "batch_drop_last": True})
    with pytest.raises(ConfigError, match=r"longest bucket.*allow_skipping_seqs_in_forward"):
        config = {"torch_batching": BUCKETS, "allow_skipping_seqs_in_forward": False}
        make_loader(PerSeqDataset(LENS), config, role="forward")


def test_options_in_code() -> None:
    options = BatchingOptions.from_config({"torch_batching": BUCKETS, "batch_size": -3})
    assert options.custom == BucketOptions(((3, 2), (6, 3), (9, 2)), "data")
    assert BatchingOptions.from_config({"torch_batching": sorted_pairs}).custom == CustomBatching(sorted_pairs)
    assert BatchingOptions.from_config({"batch_size": 3}).custom is None


def test_mainline_needs_a_batch_size() -> None:
    with pytest.raises(ConfigError, match='"batch_size" is not set'):
        BatchingOptions.from_config(MAINLINE)
    for given in ({"batch_size": None}, {"max_seqs": 3}, {"batch_size_train": 3}, {"torch_batching": BUCKETS}):
        BatchingOptions.from_config({**MAINLINE, **given})


def test_from_config_in_torch_loader() -> None:
    """The functions of the pipeline module, with torch's own DataLoader."""
    config = {**MAINLINE, "torch_batching": BUCKETS, "online_shuffle_batches": {"buffer_size": 2, "seed": 1}}
    seqs = ReturnnDatasetIterDataPipe(_golden_dataset(PerSeqDataset), mainline=True)
    for train in (False, True):
        pipe = get_batching_iterable_dataset_from_config(dataset=seqs, config=config, train=train)
        loader = create_data_loader_from_batches(pipe, {"num_workers": 0})
        batches = [batch["seq_tag"].tolist() for batch in loader]
        golden = [[f"seq-{i}" for i in idxs] for idxs in GOLDEN["bucket"][0]]
        assert sorted(batches) == sorted(golden) and (train or batches == golden)
    batch = next(iter(loader))
    assert batch["data:seq_len"].dtype == torch.int32 and batch["num_seqs"].item() == 12 and batch["epoch"].item() >= 1
    assert 0 < batch["complete_frac"].item() <= 1 and batch["complete_frac"].dtype == torch.float32


def test_ranks(make_loader: MakeLoader) -> None:
    """Real workers of two ranks: nothing is lost or twice."""
    for worker_batching in ("sharded", "global"):
        tags: list[str] = []
        for rank in range(2):
            loader = make_loader(
                BulkDataset(LENS),
                {"batch_size": None, "max_seqs": 2},
                num_workers=2,
                worker_batching=worker_batching,
                rank=rank,
                num_ranks=2,
            )
            tags += [tag for batch in loader for tag in batch["seq_tag"]]
            assert loader.stats.num_seqs == (17 if worker_batching == "global" else 9 - rank)
        assert sorted(tags) == sorted(f"seq-{i}" for i in range(17))


def test_online_shuffle_with_ranks(make_loader: MakeLoader) -> None:
    """All ranks permute in the same way, so that what is together in a step stays together."""
    shuffled = {"batch_size": None, "max_seqs": 1, "online_shuffle_batches": 3}
    dataset = BulkDataset(list(range(1, 13)), shuffled=False)
    ranks = [[b["seq_tag"][0] for b in make_loader(dataset, shuffled, rank=rank, num_ranks=2)] for rank in range(2)]
    assert [int(b[4:]) - int(a[4:]) for a, b in zip(*ranks, strict=True)] == [1] * 6
    assert ranks[0] != sorted(ranks[0], key=lambda tag: int(tag[4:]))
    assert OnlineShuffleOptions.parse(3) == OnlineShuffleOptions(3)
