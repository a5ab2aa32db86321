"""
Datasets below a dataset, and what is told to all of them: where random draws for a sequence come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy

from returnn.datasets._basic.corpus_facts import CorpusFactsMixin

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["ChildrenMixin", "seq_random_state"]


class ChildrenMixin(CorpusFactsMixin):
    """Part of :class:`returnn.datasets.basic.Dataset`."""

    epoch: int | None

    #: set by the data pipeline through :func:`set_random_per_seq`
    _random_per_seq: bool = False

    def child_datasets(self) -> Iterable[Dataset]:
        """:return: the datasets from which this one reads, in this process"""
        return ()

    def set_random_per_seq(self, enabled: bool) -> None:
        """
        Say where random draws for the data of a sequence (augmentation, sampled segmentations) come from.
        The data pipeline enables it for each dataset that it reads, so that they do not depend on the number of workers.

        :param enabled: from :func:`get_seq_random_state`; else from one stream per epoch in loading order, as the peers
        """
        self._random_per_seq = enabled
        for child in self.child_datasets():
            child.set_random_per_seq(enabled)

    def get_seq_random_state(self, seq_idx: int, tag: str) -> numpy.random.RandomState:
        """
        :param seq_idx: in the current epoch
        :param tag: of this sequence
        :return: generator which depends only on these, the epoch and the seed options
        """
        return seq_random_state(self._get_random_seed_for_epoch(epoch=self.epoch), seq_idx, tag)

    def _get_random_seed_for_epoch(self, epoch: int | None, num_epochs_fixed: int = 1) -> int:
        raise NotImplementedError  # SeqOrderMixin has it


def seq_random_state(seed: int, seq_idx: int, tag: str) -> numpy.random.RandomState:
    """
    :param seed: of the epoch
    :param seq_idx: in that epoch
    :param tag: of this sequence
    :return: generator which depends only on these
    """
    digest = hashlib.blake2b(f"{seed}\0{seq_idx}\0{tag}".encode(), digest_size=4).digest()
    return numpy.random.RandomState(int.from_bytes(digest, "little"))
