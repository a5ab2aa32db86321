"""
Class indices of texts, converted once and kept in one array.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy

from returnn.datasets.ragged import Ragged

__all__ = ["TokenTable"]


class TokenTable:
    """Of each text of a corpus, or of those that were asked for."""

    def __init__(self, num: int, dtype: numpy.dtype) -> None:
        """
        :param num: of texts
        :param dtype: of the class indices
        """
        self._flat = numpy.zeros(0, dtype=dtype)
        self._starts = numpy.full(num, -1, dtype=numpy.int64)
        self._lens = numpy.zeros(num, dtype=numpy.int64)

    def add(self, idxs: numpy.ndarray, encode: Callable[[int], numpy.ndarray]) -> None:
        """
        Convert what is not here yet.

        :param idxs: numbers of texts, maybe repeated
        :param encode: gives the class indices of one
        """
        new = numpy.unique(idxs[self._starts[idxs] < 0])
        if not len(new):
            return
        parts = [encode(int(idx)) for idx in new]
        lens = numpy.array([len(part) for part in parts], dtype=numpy.int64)
        starts = len(self._flat) + numpy.cumsum(lens) - lens
        self._flat = numpy.concatenate([self._flat, *parts])
        self._lens[new] = lens
        self._starts[new] = starts

    def lens(self, idxs: numpy.ndarray) -> numpy.ndarray:
        """
        :param idxs: of texts that were added
        :return: int64 [len(idxs)]
        """
        return self._lens[idxs]

    def select(self, idxs: numpy.ndarray) -> Ragged:
        """
        :param idxs: of texts that were added
        :return: their class indices
        """
        starts, lens = self._starts[idxs], self._lens[idxs]
        before = numpy.cumsum(lens) - lens
        return Ragged(self._flat[numpy.repeat(starts - before, lens) + numpy.arange(int(lens.sum()))], lens)
