"""
Batches of sequences of similar length, as data pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy

from returnn.datasets._loading.buckets import Buckets
from returnn.options.custom_batching import BucketOptions
from returnn.torch.data.shuffling import DEFAULT_SEED, shuffling_rng
from returnn.torch.data.stages import IterStage

__all__ = ["BucketOrderingIterDataPipe"]


class BucketOrderingIterDataPipe(IterStage):
    """
    Puts each sequence into the first bucket whose length limit it does not exceed. A full bucket is a batch.
    At the end, the rest of each bucket is a batch, from the shortest to the longest. Longer sequences are dropped.
    """

    def __init__(
        self,
        dataset: Iterable[dict[str, Any]],
        *,
        buckets: Sequence[tuple[int, int]],
        length_key: str,
        random_bucket_prob: float = 0.0,
        seed: int | None = None,
    ):
        """
        :param dataset: sequences: data key -> array. Any: other values
        :param buckets: pairs of maximal length in frames, and number of sequences of a full bucket
        :param length_key: the length is the first axis of this data key
        :param random_bucket_prob: with this probability, a sequence goes to a random one of all buckets it fits into
        :param seed: for that. None: random, but the same in each run within torch_batching
        :raises ConfigError: no buckets, or invalid ones
        """
        super().__init__(dataset)
        self._options = BucketOptions(tuple(buckets), length_key, random_bucket_prob, seed)
        self._rng = numpy.random.RandomState(seed)
        #: Number of dropped sequences of the newest pass.
        self.num_dropped = 0

    def start_epoch(self, epoch: int) -> None:
        """See the base."""
        self._rng = shuffling_rng(self._options.seed, default_seed=DEFAULT_SEED, epoch=epoch)

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """:return: batches: lists of sequences"""
        self.num_dropped = 0
        buckets: Buckets[dict[str, Any]] = Buckets(self._options, self._rng.random_sample)
        for sample in self._dataset:
            length = len(sample[self._options.length_key])
            if not buckets.fits(length):
                self.num_dropped += 1
                continue
            batch = buckets.add(sample, length)
            if batch is not None:
                yield batch
        yield from buckets.rest()
