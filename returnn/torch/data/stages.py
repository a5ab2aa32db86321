"""
The base of the data pipes: an iterable dataset over another iterable.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import torch.utils.data

__all__ = ["IterStage"]


class IterStage(torch.utils.data.IterableDataset):
    """
    One stage of a pipeline. Each new iterator starts a new pass over the stage below.
    Usable with ``torch.utils.data.DataLoader(stage, batch_size=None)``.
    """

    def __init__(self, dataset: Iterable[Any]):  # Any: sequences, or batches of them
        """
        :param dataset: the stage below: any iterable
        """
        super().__init__()
        self._dataset = dataset

    def __iter__(self) -> Iterator[Any]:
        """:return: the items of one pass. Any: sequences, or batches of them"""
        raise NotImplementedError(f"{type(self).__name__}.__iter__")

    def start_epoch(self, epoch: int) -> None:
        """
        Bring the random generator of the stage, if it has one, to where it is at the start of an epoch: a training that is
        started again gets the batches of an uninterrupted one. The loader calls it before each pass.

        :param epoch: in the first one, draws are those of a new stage
        """

    def __getitem__(self, index: int) -> Any:  # Any: as above
        """Not supported: there is only the order of iteration."""
        raise TypeError(f"{type(self).__name__} can only be iterated over")
