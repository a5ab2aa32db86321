"""
The address of a batch in a pass: where a source goes on, so that what follows is what would have followed.
"""

from __future__ import annotations

import copy
import dataclasses
from typing import TYPE_CHECKING, Any, NamedTuple

from returnn.datasets._loading.generators import DrawWatch, Generators
from returnn.datasets._loading.len_filter import DropReason
from returnn.datasets._loading.user_code import has_user_code

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["SeqAddress", "ResumePoint", "Resumed", "AddressKeeper", "has_own_state", "can_jump"]


class SeqAddress(NamedTuple):
    """
    Where the batch behind another one begins, if sequences are read one by one.

    :param seq_idx: of its first sequence, in the shard. The number of sequences, if nothing follows
    :param chunk_idx: its first chunk in that sequence
    :param num_draws: draws from the generator for chunk starts before that sequence
    :param batch_idx: number of batches before, in this worker's order of batches (those of others included, if global)
    :param dropped: sequences dropped before
    :param generators: of the process, before that sequence was read. None: reading does not draw from them
    :param dataset_state: of the dataset's own state_dict, likewise. Any: of the user. None: it has none
    """

    seq_idx: int
    chunk_idx: int
    num_draws: int
    batch_idx: int
    dropped: dict[DropReason, int]
    generators: Generators | None
    dataset_state: Any


@dataclasses.dataclass(frozen=True)
class ResumePoint:
    """
    Where a source goes on in a pass.

    :param num_batches: of this worker's own that were given before
    :param address: known place that is nearest to it: some of these batches may be behind it. None: found by planning
        again, or by reading again from the start
    :param num_seqs: of the epoch as it was then; None: not known
    :param generators: of this process at the start of the pass; None: they are seeded there
    """

    num_batches: int
    address: SeqAddress | None = None
    num_seqs: int | None = None
    generators: Generators | None = None


@dataclasses.dataclass(frozen=True)
class Resumed:
    """
    How a source came to its place in the pass, for the log.

    :param num_batches: before that place
    :param num_seqs: that were read (or only planned) again
    :param secs: how long it took
    :param is_read: whether data was read again
    """

    num_batches: int
    num_seqs: int
    secs: float
    is_read: bool


def has_own_state(dataset: Dataset) -> bool:
    """:return: whether it is of a class of the user which has state_dict and load_state_dict"""
    return callable(getattr(dataset, "state_dict", None)) and callable(getattr(dataset, "load_state_dict", None))


def can_jump(dataset: Dataset) -> bool:
    """:return: whether reading can start at any sequence"""
    if has_own_state(dataset):
        return True
    supports_jump = getattr(dataset, "supports_jump", None)  # a class of the user may have the methods to read alone
    return supports_jump is not None and bool(supports_jump())


class AddressKeeper:
    """
    Keeps what belongs to the address of the sequence at work: in a pass over a dataset that can start at any sequence.
    """

    def __init__(self, dataset: Dataset):
        """:param dataset: with the order of an epoch"""
        self._dataset = dataset
        self._has_own_state = has_own_state(dataset)
        # Our own classes do not draw from the global generators.
        self._watch = DrawWatch() if has_user_code(dataset) else None
        self._num_draws = 0
        self._dataset_state: Any = None  # Any: of the user
        self._newest: SeqAddress | None = None

    def reading_begins(self) -> None:
        """The consumer wants the next batch."""
        if self._watch is not None:
            self._watch.reading_begins()

    def seq_begins(self, num_draws: int) -> None:
        """
        Before a sequence is read.

        :param num_draws: so far, from the generator for chunk starts
        """
        self._num_draws = num_draws
        if self._watch is not None:
            self._watch.seq_begins()
        if self._has_own_state:
            # A copy: the dataset may go on with the same objects.
            self._dataset_state = copy.deepcopy(self._dataset.state_dict())  # type: ignore[attr-defined]

    def next_address(
        self, seq_idx: int, chunk_idx: int, *, batch_idx: int, dropped: dict[DropReason, int]
    ) -> SeqAddress | None:
        """
        A batch is complete, and the sequence at work is the first of the next one.

        :param seq_idx: of that sequence
        :param chunk_idx: in that sequence
        :param batch_idx: number of batches that are complete
        :param dropped: so far
        :return: there, or at the beginning of the batch, if no more is known. None: not known
        """
        generators = None
        if self._watch is not None:
            self._watch.batch_is_read()
            generators = self._watch.before_seq
            if generators is None and self._watch.has_drawn:
                # The first draws came within this batch: only its beginning is known.
                return self._newest and self._newest._replace(generators=self._watch.before_batch)
        self._newest = SeqAddress(
            seq_idx, chunk_idx, self._num_draws, batch_idx, dict(dropped), generators, self._dataset_state
        )
        return self._newest

    def jump(self, address: SeqAddress) -> None:
        """:param address: to go on at; the dataset is at the start of the epoch"""
        self._newest = address
        if self._has_own_state:
            self._dataset.load_state_dict(address.dataset_state)  # type: ignore[attr-defined]
        if address.generators is not None:
            address.generators.restore()
