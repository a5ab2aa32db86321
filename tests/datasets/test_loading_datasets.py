"""Datasets of the package that implement the bulk protocol: the same batches as with the protocol per sequence."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn.datasets import Dataset, init_dataset
from returnn.datasets._loading.passes import iter_blocks
from returnn.datasets._loading.source import PassContext, SourceOptions, alloc_on_heap
from returnn.errors import DatasetError
from returnn.options.batching import BatchingOptions, parse_chunking
from tests.datasets.test_loading import assert_same_batches

GOLDEN = Path(__file__).parents[1] / "golden"
HDF_FILES = sorted(p.name for p in (GOLDEN / "03-hdf").glob("*.hdf"))


def _batches(dataset: Dataset, epoch: int, batching: BatchingOptions) -> list[dict[str, Any]]:
    ctx = PassContext(dataset, SourceOptions.create(batching, name="train", role="train"), epoch)
    return [batch for block in iter_blocks(ctx, alloc_on_heap) for batch in block.batches]


def _check(opts: dict[str, Any], batching: BatchingOptions, *, expect_bulk: bool) -> None:
    for epoch in (1, 2):
        bulk = init_dataset(opts)
        if expect_bulk:
            assert bulk.supports_bulk()
        per_seq = init_dataset(opts)
        per_seq.supports_bulk = lambda: False  # type: ignore[method-assign]
        expected = _batches(per_seq, epoch, batching)
        assert expected
        assert_same_batches(_batches(bulk, epoch, batching), expected)


@pytest.mark.parametrize("seq_ordering", ["default", "random"])
@pytest.mark.parametrize("name", HDF_FILES)
def test_hdf(name: str, seq_ordering: str) -> None:
    opts = {"class": "HDFDataset", "files": [str(GOLDEN / "03-hdf" / name)], "seq_ordering": seq_ordering}
    try:
        init_dataset(opts)
    except DatasetError:
        pytest.skip("of another class, or broken on purpose")
    _check(opts, BatchingOptions(batch_size=None, max_seqs=2), expect_bulk=True)


@pytest.mark.parametrize("chunking", ["3:2", {"data": 4}])
def test_hdf_chunked(chunking: Any) -> None:
    opts = {
        "class": "HDFDataset",
        "files": [str(GOLDEN / "04-datasets-meta" / "feat.hdf")],
        "seq_ordering": "laplace:.4",
        "partition_epoch": 2,
    }
    batching = BatchingOptions(batch_size=20, chunking=parse_chunking(chunking, min_chunk_size=2), min_seq_length=3)
    _check(opts, batching, expect_bulk=True)


def test_meta() -> None:
    folder = GOLDEN / "04-datasets-meta"
    opts = {
        "class": "MetaDataset",
        "datasets": {
            "feat": {"class": "HDFDataset", "files": [str(folder / "feat.hdf")], "seq_ordering": "random"},
            "lab": {"class": "HDFDataset", "files": [str(folder / "lab_perm.hdf")]},
        },
        "data_map": {"data": ("feat", "data"), "classes": ("lab", "data")},
        "seq_order_control_dataset": "feat",
    }
    _check(opts, BatchingOptions(batch_size=30), expect_bulk=True)


def test_static() -> None:
    rnd = numpy.random.RandomState(1)
    data = [
        {
            "data": rnd.randn(n, 3).astype("float32"),
            "classes": rnd.randint(0, 5, (n // 2,)).astype("int32"),
            "scalar": numpy.array(n, "int64"),
        }
        for n in rnd.randint(1, 20, (30,))
    ]
    opts = {"class": "StaticDataset", "data": data, "seq_ordering": "random"}
    _check(opts, BatchingOptions(batch_size=50, max_seqs=6), expect_bulk=True)


@pytest.mark.parametrize("name", ["Task12AXDataset", "CopyTaskDataset"])
def test_generating(name: str) -> None:
    opts: dict[str, Any] = {"class": name, "num_seqs": 20, "seq_ordering": "reverse"}
    if name == "CopyTaskDataset":
        opts.update(nsymbols=8, minlen=1, maxlen=10)
    _check(opts, BatchingOptions(batch_size=100), expect_bulk=False)
