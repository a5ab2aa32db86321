"""
Batching as data pipe: consecutive sequences up to limits.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from typing import Any

from returnn.datasets._loading.limits import BatchLimits, BatchState, SeqPosition
from returnn.datasets._loading.per_seq import batch_lengths
from returnn.options.batching import BatchingOptions, DropLast, Limit
from returnn.torch.data.stages import IterStage

__all__ = ["BatchingIterDataPipe"]


class BatchingIterDataPipe(IterStage):
    """
    Groups sequences into lists, up to limits. A single sequence over the limit makes its own batch.
    """

    def __init__(
        self,
        dataset: Iterable[dict[str, Any]],
        batch_size: Limit = 1,
        max_seqs: int | Callable[..., Any] | None = None,
        drop_last: DropLast = False,
        *,
        packed_batch_size: Limit = None,
        count_scalars: bool = True,
    ):
        """
        :param dataset: sequences: data key -> array. Any: other values count as length 1
        :param batch_size: limit of num_seqs x max length, padding included; for all keys, or a dict of data key to limit,
            or a function of (epoch=, seq_idx=, epoch_continuous=) that gives this. None: no limit
        :param max_seqs: None or -1: no limit. May be a function as well
        :param drop_last: the last batch is never given, even if it is full. "incomplete": only if more would have fitted
        :param packed_batch_size: limit of the sum of the lengths
        :param count_scalars: values without a time axis count as length 1 (Mini-RETURNN), else not at all (mainline)
        :raises ConfigError: invalid limits
        """
        super().__init__(dataset)
        options = BatchingOptions(
            batch_size=batch_size,
            max_seqs=max_seqs,
            packed_batch_size=packed_batch_size,
            drop_last=drop_last,
            count_scalars=count_scalars,
        )
        self._limits = BatchLimits.from_options(options, drop_last=options.drop_last)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """:return: batches: lists of sequences"""
        state = BatchState(self._limits)
        batch: list[dict[str, Any]] = []
        is_first = True
        for sample in self._dataset:
            place = _position(sample) if self._limits.has_functions else None
            if state.add(batch_lengths(sample, count_scalars=self._limits.count_scalars), place):
                yield batch
                batch = []
                is_first = False
            batch.append(sample)
        if batch and state.keeps_last(is_only_batch=is_first):
            yield batch


def _position(sample: dict[str, Any]) -> SeqPosition:
    num_seqs = int(sample.get("num_seqs", -1))
    complete_frac = float(sample.get("complete_frac", -1))
    return SeqPosition(
        seq_idx=int(sample.get("seq_idx", 0)),
        epoch=int(sample["epoch"]) if "epoch" in sample else None,
        num_seqs=num_seqs if num_seqs >= 0 else None,
        complete_frac=complete_frac if complete_frac >= 0 else None,
    )
