"""Classes that have no file of their own for it, in everyday use."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.datasets.everyday_use import check_everyday_use

FOLDER = Path(__file__).parents[1] / "golden" / "04-datasets-meta"
HDF = {"class": "HDFDataset", "files": [str(FOLDER / "feat.hdf")], "seq_ordering": "laplace:.4", "partition_epoch": 2}
META = {
    "class": "MetaDataset",
    "datasets": {"feat": HDF, "lab": {"class": "HDFDataset", "files": [str(FOLDER / "lab_perm.hdf")]}},
    "data_map": {"features": ("feat", "data"), "labels": ("lab", "data")},
    "seq_order_control_dataset": "feat",
}


@pytest.mark.slow
@pytest.mark.parametrize("opts", [HDF, META], ids=["hdf", "meta"])
def test_everyday_use(opts: dict[str, Any]) -> None:
    epochs = check_everyday_use(opts)
    assert {tag for tag, _ in epochs[0]}.isdisjoint(tag for tag, _ in epochs[1])
