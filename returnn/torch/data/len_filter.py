"""
Length filter as data pipe.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from returnn.datasets._loading.len_filter import DropReason, LenFilter
from returnn.datasets._loading.per_seq import sample_lengths
from returnn.torch.data.stages import IterStage

__all__ = ["LenFilterDataPipe"]


class LenFilterDataPipe(IterStage):
    """Drops sequences that are too short or too long."""

    def __init__(
        self,
        dataset: Iterable[dict[str, Any]],
        min_seq_length: int | float | Mapping[str, Any] | None = None,
        max_seq_length: int | float | Mapping[str, Any] | None = None,
    ):
        """
        :param dataset: sequences: data key -> array. Any: other values are ignored
        :param min_seq_length: in frames; a number applies to all keys with a time axis, a dict to its keys
        :param max_seq_length: as min_seq_length
        """
        super().__init__(dataset)
        self._filter = LenFilter(min_seq_length, max_seq_length)
        #: Number of dropped sequences of the newest pass, by (reason, data key).
        self.num_dropped: Counter[DropReason] = Counter()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """:return: the sequences which are kept"""
        self.num_dropped = Counter()
        for sample in self._dataset:
            reason = self._filter.reason(sample_lengths(sample))
            if reason is None:
                yield sample
            else:
                self.num_dropped[reason] += 1
