"""
Sequences or chunks as index arrays.
"""

from __future__ import annotations

import dataclasses

import numpy

__all__ = ["Items"]


@dataclasses.dataclass
class Items:
    """Sequences or chunks: arrays [m]."""

    seq_idx: numpy.ndarray  # in the shard
    starts: dict[str, numpy.ndarray]  # only chunked keys
    lens: dict[str, numpy.ndarray]

    def __len__(self) -> int:
        return len(self.seq_idx)

    def take(self, idxs: numpy.ndarray | slice) -> Items:
        """:return: some of them"""
        return Items(
            self.seq_idx[idxs],
            {key: a[idxs] for key, a in self.starts.items()},
            {key: a[idxs] for key, a in self.lens.items()},
        )

    def append(self, other: Items) -> Items:
        """:return: these, and then the others"""
        if not len(self):
            return other
        cat = numpy.concatenate
        return Items(
            cat([self.seq_idx, other.seq_idx]),
            {key: cat([a, other.starts[key]]) for key, a in self.starts.items()},
            {key: cat([a, other.lens[key]]) for key, a in self.lens.items()},
        )
