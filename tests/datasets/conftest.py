"""Datasets with processes of their own: none outlives its test."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from returnn.datasets import Dataset, init_dataset
from returnn.datasets.multi_proc import MultiProcDataset
from returnn.datasets.postprocessing import PostprocessingDataset


@pytest.fixture
def make() -> Iterator[Any]:
    """:return: as init_dataset; the processes end after the test"""
    datasets: list[Dataset] = []

    def create(opts: Any) -> Dataset:
        datasets.append(init_dataset(opts))
        return datasets[-1]

    yield create
    for dataset in datasets:
        if isinstance(dataset, (MultiProcDataset, PostprocessingDataset)):
            dataset.close()
