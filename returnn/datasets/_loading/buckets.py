"""
Batches of sequences of similar length.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator
from typing import Generic, TypeVar

from returnn.options.custom_batching import BucketOptions

__all__ = ["Buckets", "TOO_LONG"]

T = TypeVar("T")

#: Reason why a sequence is dropped.
TOO_LONG = "longer than all buckets"


class Buckets(Generic[T]):
    """
    Puts each item into the first bucket whose length limit it does not exceed. A full bucket is a batch.
    At the end, the rest of each bucket is a batch, from the shortest to the longest. Longer items are dropped.
    """

    def __init__(self, options: BucketOptions, draw: Callable[[], float]):
        """
        :param options: checked
        :param draw: gives random numbers in [0, 1). Only used with random_bucket_prob
        """
        self._limits = [max_len for max_len, _ in options.buckets]
        self._sizes = [num for _, num in options.buckets]
        self._prob = options.random_bucket_prob
        self._draw = draw
        self._content: list[list[T]] = [[] for _ in options.buckets]

    def fits(self, length: int) -> bool:
        """:return: whether there is a bucket for this length, in frames"""
        return length <= self._limits[-1]

    def add(self, item: T, length: int) -> list[T] | None:
        """
        :param item: that fits
        :param length: of it, in frames
        :return: the items of a full bucket
        """
        i = bisect.bisect_left(self._limits, length)
        if self._prob and self._draw() < self._prob:
            i += int(self._draw() * (len(self._limits) - i))
        batch = self._content[i]
        batch.append(item)
        if len(batch) < self._sizes[i]:
            return None
        self._content[i] = []
        return batch

    def rest(self) -> Iterator[list[T]]:
        """:return: what is in the buckets at the end"""
        return (batch for batch in self._content if batch)

    def exchange(self, func: Callable[[T], T]) -> None:
        """:param func: gives another item for each one that is in a bucket"""
        self._content = [[func(item) for item in batch] for batch in self._content]
