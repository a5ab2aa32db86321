"""returnn.torch.forward_data: the order of the forward dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy
import pytest

from returnn._state import process_state_ctx
from returnn.datasets import init_dataset
from returnn.datasets.util.hdf import SimpleHDFWriter
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import create_loader
from returnn.torch.forward_data import keep_order_of_ranks, positions_of_batch, read_as_it_is, sort_by_length

LENS = [3, 1, 4, 2]


def _static(**opts: Any) -> dict[str, Any]:
    data = [{"data": numpy.full((n, 1), i, "float32")} for i, n in enumerate(LENS)]
    return {"class": "StaticDataset", "data": data, "output_dim": {"data": (1, 2)}, **opts}


def _hdf(path: Path) -> dict[str, Any]:
    writer = SimpleHDFWriter(str(path / "x.hdf"), dim=1, ndim=2)
    for i, n in enumerate(LENS):
        writer.insert_batch(numpy.full((1, n, 1), i, "float32"), {0: [n]}, [f"seq-{i}"])
    writer.close()
    return {"class": "HDFDataset", "files": [str(path / "x.hdf")]}


def _meta(child: dict[str, Any], **opts: Any) -> dict[str, Any]:
    return {"class": "MetaDataset", "datasets": {"d": child}, "data_map": {"data": ("d", "data")}, **opts}


@pytest.mark.parametrize("kind", ["static", "hdf", "meta", "meta with control", "random"])
def test_longest_first(kind: str, tmp_path: Path) -> None:
    hdf = _hdf(tmp_path)
    (tmp_path / "seqs").write_text("".join(f"seq-{i}\n" for i in range(len(LENS))))
    kinds: dict[str, dict[str, Any]] = {
        "static": _static(),
        "random": _static(seq_ordering="random"),
        "hdf": hdf,
        "meta": _meta(hdf, seq_list_file=str(tmp_path / "seqs")),
        "meta with control": _meta(hdf, seq_order_control_dataset="d"),
    }
    opts = kinds[kind]
    dataset = init_dataset(opts)
    assert sort_by_length(dataset)
    dataset.init_seq_order(epoch=1)
    tags = []
    for i in range(len(LENS)):
        dataset.load_seqs(i, i + 1)
        tags.append(dataset.get_tag(i))
    assert tags == ["seq-2", "seq-0", "seq-3", "seq-1"]


@pytest.mark.parametrize("kind", ["ConcatDataset", "MultiProcDataset", "DummyDataset"])
def test_datasets_that_cannot_be_sorted_stay_as_they_are(kind: str) -> None:
    kinds: dict[str, dict[str, Any]] = {
        "ConcatDataset": {"class": "ConcatDataset", "datasets": [_static(), _static()]},
        "MultiProcDataset": {"class": "MultiProcDataset", "dataset": _static(), "num_workers": 1, "buffer_size": 1},
        "DummyDataset": {"class": "DummyDataset", "input_dim": 1, "output_dim": 2, "num_seqs": 3},
    }
    dataset = init_dataset(kinds[kind])
    before = dataset.seq_ordering
    assert not sort_by_length(dataset)
    assert dataset.seq_ordering == before


def _tags(loader: Any) -> list[str]:
    return [tag for batch in loader for tag in batch["seq_tag"]]


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_dataset_that_has_its_order_keeps_it(num_workers: int) -> None:
    dataset = init_dataset(_static())
    dataset.init_seq_order(epoch=1, seq_order=[3, 1])
    loader = create_loader(
        dataset,
        batching=BatchingOptions(max_seqs=1, batch_size=None),
        loader=LoaderOptions(num_workers=num_workers),
        role="forward",
    )
    read_as_it_is(loader)
    assert _tags(loader) == ["seq-3", "seq-1"]


@pytest.mark.parametrize("worker_batching", ["sharded", "global"])
def test_positions_of_the_sequences_of_all_ranks(worker_batching: Any) -> None:
    by_position = {}
    for rank in range(2):
        with process_state_ctx(rank=rank, world_size=2):
            loader = create_loader(
                init_dataset(_static()),
                batching=BatchingOptions(max_seqs=1, batch_size=None),
                loader=LoaderOptions(num_workers=2, worker_batching=worker_batching),
                role="forward",
            )
            keep_order_of_ranks(loader, 2)
            assert loader.num_workers == (2 if worker_batching == "global" else 1)
            for batch in loader:
                positions = positions_of_batch(batch, loader, rank=rank, num_ranks=2)
                by_position.update(dict(zip(positions, batch["seq_tag"], strict=True)))
            loader.close()
    assert by_position == {i: f"seq-{i}" for i in range(4)}
