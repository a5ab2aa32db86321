"""Data, and code as of a user, for tests of datasets that combine others. Workers import it: without torch they start quickly."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from returnn.datasets.basic import Dataset, DatasetSeq
from returnn.datasets.cached2 import CachedDataset2
from returnn.datasets.meta import VariableDataset

GOLDEN = Path(__file__).resolve().parent.parent / "golden" / "04-datasets-meta"


def hdf(name: str, **opts: Any) -> dict[str, Any]:
    """:return: options of a golden HDF file, e.g. "c_a" """
    return {"class": "HDFDataset", "files": [str(GOLDEN / f"{name}.hdf")], **opts}


def a_or_b(*, self: Dataset, epoch: int, **_kwargs: Any) -> dict[str, Any]:
    """:return: another file in each epoch"""
    assert isinstance(self, VariableDataset)
    return hdf("c_a", seq_ordering="random") if epoch % 2 else hdf("c_b")


class StreamDataset(CachedDataset2):
    """A class of a user, which does not know its number of sequences; ``start + i`` at sequence i."""

    def __init__(
        self, num: int, start: int = 0, exact_frac: bool = False, dtype: str = "float32", **kwargs: Any
    ) -> None:
        super().__init__(**kwargs)
        self.num, self.start, self.exact_frac, self.dtype = num, start, exact_frac, dtype
        self.num_outputs = {"data": (1, 2)}
        self.num_inputs = 1

    def get_data_dtype(self, key: str) -> str:
        """:return: as given"""
        return self.dtype

    def get_complete_frac(self, sorted_seq_idx: int, *, allow_only_lr_suitable: bool = False) -> float | None:
        """:return: exact, if wanted"""
        if self.exact_frac:
            return (sorted_seq_idx + 1) / self.num
        return super().get_complete_frac(sorted_seq_idx, allow_only_lr_suitable=allow_only_lr_suitable)

    def _collect_single_seq(self, seq_idx: int) -> DatasetSeq | None:
        if seq_idx >= self.num:
            return None
        value = self.start + seq_idx
        return DatasetSeq(seq_idx, np.full((seq_idx % 3 + 1, 1), value, self.dtype), seq_tag=f"stream-{value}")
