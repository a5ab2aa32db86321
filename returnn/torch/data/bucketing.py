"""
Batches of sequences of similar length, as data pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy

from returnn.errors import ConfigError
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
        :param seed: for that. None: random
        :raises ConfigError: no buckets, or invalid ones
        """
        super().__init__(dataset)
        if not buckets or any(max_len <= 0 or size <= 0 for max_len, size in buckets):
            raise ConfigError(
                f"buckets: expected pairs of (max length > 0, num seqs > 0), at least one, got {buckets!r}."
            )
        self._buckets = sorted((int(max_len), int(size)) for max_len, size in buckets)
        if len({max_len for max_len, _ in self._buckets}) != len(self._buckets):
            raise ConfigError(f"buckets: each max length may occur only once, got {list(buckets)!r}.")
        self._length_key = length_key
        self._random_bucket_prob = random_bucket_prob
        self._rng = numpy.random.RandomState(seed)
        #: Number of dropped sequences of the newest pass.
        self.num_dropped = 0

    def __iter__(self) -> Iterator[list[dict[str, Any]]]:
        """:return: batches: lists of sequences"""
        self.num_dropped = 0
        limits = [max_len for max_len, _ in self._buckets]
        content: list[list[dict[str, Any]]] = [[] for _ in self._buckets]
        for sample in self._dataset:
            length = len(sample[self._length_key])
            i = int(numpy.searchsorted(limits, length))
            if i == len(limits):
                self.num_dropped += 1
                continue
            if self._random_bucket_prob and self._rng.rand() < self._random_bucket_prob:
                i = int(self._rng.randint(i, len(limits)))
            content[i].append(sample)
            if len(content[i]) >= self._buckets[i][1]:
                yield content[i]
                content[i] = []
        yield from (rest for rest in content if rest)
