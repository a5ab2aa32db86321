"""Small HDF files for the tests of the HDF tools, and what a dataset reads from a file."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy

from returnn.cli._hdf_tools.show import open_hdf_dataset
from returnn.datasets.hdf import SimpleHDFWriter
from tests.helpers import GOLDEN

__all__ = ["HDF_GOLDEN", "GOLDEN_FILES", "write_hdf", "read_hdf"]

HDF_GOLDEN = GOLDEN / "03-hdf"
GOLDEN_FILES = sorted(HDF_GOLDEN.glob("*.hdf"))


def write_hdf(path: Path, lens: Sequence[int], *, prefix: str = "seq", seed: int = 1) -> Path:
    """
    :param path: to write; dense data of dim 3, and class indices below 7 with lengths of their own
    :param lens: of the sequences
    :param prefix: of the tags
    :param seed: of the values
    """
    rng = numpy.random.RandomState(seed)
    with SimpleHDFWriter(path, dim=3, ndim=2, extra_type={"classes": (7, 1, "int32")}) as writer:
        for i, length in enumerate(lens):
            classes = rng.randint(0, 7, (1, (length + 1) // 2)).astype("int32")
            data = rng.randn(1, length, 3).astype("float32")
            writer.insert_batch(data, [length], [f"{prefix}-{i}"], extra={"classes": classes})
    return path


def read_hdf(path: Path) -> list[tuple[str, dict[str, Any]]]:
    """:return: tag and data (as lists) of each sequence. Any: nested lists"""
    dataset = open_hdf_dataset(str(path))
    dataset.init_seq_order(epoch=1)
    result = []
    for i in range(dataset.num_seqs):
        dataset.load_seqs(i, i + 1)
        data = {key: dataset.get_data(i, key) for key in dataset.get_data_keys()}
        result.append((dataset.get_tag(i), {key: (str(value.dtype), value.tolist()) for key, value in data.items()}))
    return result
