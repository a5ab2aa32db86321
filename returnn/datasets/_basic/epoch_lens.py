"""Lengths in the order of an epoch, without a copy of all of them."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy

from returnn.datasets._basic.epoch_order import select_order
from returnn.datasets.seq_order import SeqOrder

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["EpochLens", "epoch_lens_of"]


class EpochLens:
    """
    Like an array int64 [num_seqs of the epoch], of which parts are asked for. Large corpora need no second column of lengths
    for each epoch and process.
    """

    def __init__(self, lens: numpy.ndarray, order: SeqOrder | None = None):
        """
        :param lens: integers [N], not copied: of the corpus, or in the order already
        :param order: corpus indices of the epoch. None: lens are in the order already
        """
        if isinstance(order, range) and order == range(len(lens)):
            order = None
        self._lens = lens
        self._order = order

    def __len__(self) -> int:
        return len(self._lens if self._order is None else self._order)

    def __getitem__(self, idxs: numpy.ndarray | slice) -> numpy.ndarray:
        """
        :param idxs: positions in the epoch
        :return: int64, their lengths, own memory
        """
        if self._order is None:
            return self._lens[idxs].astype(numpy.int64)
        return self._lens[select_order(self._order, idxs)].astype(numpy.int64)


def epoch_lens_of(dataset: Dataset, key: str) -> EpochLens | None:
    """
    :param dataset: with the order of an epoch
    :param key: data key
    :return: what get_epoch_seq_lens gives. Where a class has a method ``epoch_lens`` and no class derived from it overrides
        get_epoch_seq_lens, without making the array of all lengths
    """
    for cls in type(dataset).__mro__:
        if "epoch_lens" in vars(cls):
            view: EpochLens | None = dataset.epoch_lens(key)  # type: ignore[attr-defined]  # checked in the line before
            return view
        if "get_epoch_seq_lens" in vars(cls):
            break
    lens = dataset.get_epoch_seq_lens(key)
    return None if lens is None else EpochLens(numpy.asarray(lens, dtype=numpy.int64))
