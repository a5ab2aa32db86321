"""What the tests of datasets that combine others share."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np

from returnn.datasets.basic import Dataset, init_dataset
from returnn.options.batching import BatchingOptions
from returnn.options.loader import LoaderOptions
from returnn.torch.data.loader import EpochSource, create_loader
from tests.datasets.combining_data import GOLDEN
from tests.datasets.everyday_use import Seq, read_epoch


def load_cases(filename: str, prefix: str = "") -> dict[str, Any]:
    """:return: golden cases by name, file names made absolute. Any: JSON"""
    cases = json.loads((GOLDEN / filename).read_text(encoding="utf8"))
    return {name: _absolute(case) for name, case in cases.items() if name.startswith(prefix)}


def _absolute(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _absolute(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_absolute(item) for item in value]
    is_file = isinstance(value, str) and value.endswith((".hdf", ".txt", ".py")) and (GOLDEN / value).exists()
    return str(GOLDEN / value) if is_file else value


def tags_of(dataset: Any, epoch: int = 1) -> list[str]:
    """:return: tags of an epoch. Any: dataset or its options"""
    return [tag for tag, _ in read_epoch(init_dataset(dataset), epoch)]


def check_bulk(dataset: Dataset, seqs: Sequence[Seq]) -> None:
    """That the bulk protocol gives the same. :param seqs: of the current epoch, read one by one"""
    assert dataset.supports_bulk()
    idxs = np.random.RandomState(1).permutation(len(seqs))
    keys = dataset.get_data_keys()
    bulk = dataset.read_seqs(idxs, keys)
    assert bulk is not None and set(bulk) == set(keys)
    assert dataset.get_seq_tags(idxs) == [seqs[i][0] for i in idxs]
    for key in keys:
        if seqs[0][1][key].ndim:
            lens = dataset.get_epoch_seq_lens(key)
            assert lens is not None and lens.tolist() == [len(data[key]) for _, data in seqs]
        for row, i in enumerate(idxs.tolist()):
            assert bulk[key][row].dtype == seqs[i][1][key].dtype == np.dtype(dataset.get_data_dtype(key))
            np.testing.assert_array_equal(bulk[key][row], seqs[i][1][key])


def _read_batches(dataset: Dataset, epoch: int) -> list[dict[str, Any]]:
    """:return: batches in the main process. Any: arrays and lists"""
    loader = create_loader(
        dataset,
        batching=BatchingOptions(batch_size=40, max_seqs=3),
        loader=LoaderOptions(num_workers=0),
        epoch_source=EpochSource(epoch),
        name="train",
    )
    try:
        return [dict(batch) for batch in loader]
    finally:
        loader.close()


def check_same_batches(opts: Any, epoch: int = 1) -> None:
    """That the batches do not depend on how the data is read. Any: options"""
    slow = init_dataset(opts)
    slow.supports_bulk = lambda: False  # type: ignore[method-assign]
    expected = _read_batches(slow, epoch)
    batches = _read_batches(init_dataset(opts), epoch)
    assert len(batches) == len(expected) > 1
    for batch, other in zip(batches, expected, strict=True):
        assert set(batch) == set(other)
        for key, value in batch.items():
            np.testing.assert_array_equal(np.asarray(value), np.asarray(other[key]), err_msg=key)
