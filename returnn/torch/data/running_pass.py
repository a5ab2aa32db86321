"""
The running pass of a loader, and its position.
"""

from __future__ import annotations

import dataclasses

from returnn.datasets._loading.address import ResumePoint
from returnn.datasets._loading.generators import Generators
from returnn.datasets._loading.source import Block, PassStats
from returnn.torch.data.loader_state import BufferPosition, LoaderState, SourcePosition, SourceProgress
from returnn.torch.data.stats import LoaderStats

__all__ = ["RunningPass"]


class RunningPass:
    """
    Follows what a loader gives in one pass. Batches are counted by the statistics alone; here it is one call per block.
    """

    def __init__(
        self,
        epoch: int,
        num_workers: int,
        stats: LoaderStats,
        *,
        uses_buffer: bool,
        position: SourcePosition | None = None,
        buffer: BufferPosition | None = None,
        num_seqs: int | None = None,
        generators: Generators | None = None,
        is_finished: bool = False,
    ):
        """
        :param epoch: of the pass
        :param num_workers: 0: the main process reads
        :param stats: of the pass; count the batches that are given
        :param uses_buffer: batches are shuffled in a buffer
        :param position: of the sources to begin with. None: the start
        :param buffer: position in the buffer, likewise
        :param num_seqs: of the epoch as the sources know it; None: not known yet
        :param generators: of this process at the start of the pass, if it reads
        :param is_finished: it has ended
        """
        self.epoch = epoch
        self.num_workers = num_workers
        self.stats = stats
        self.generators = generators
        self.is_finished = is_finished
        self.source = SourceProgress(position or SourcePosition.at_start(max(num_workers, 1)))
        self.buffer_at_start = buffer or BufferPosition()
        self._num_seqs = num_seqs
        self._uses_buffer = uses_buffer
        self._num_batches_before = stats.num_batches  # before the block at work
        self._buffer = self.buffer_at_start
        self._buffer_begin = self.source.at(0)

    def enter(self, block: Block, pass_stats: PassStats) -> None:
        """
        :param block: that is given now. All of the one before is taken
        :param pass_stats: that came with it
        """
        if not self._uses_buffer:
            self.source.enter(block)
            self._num_batches_before = self.stats.num_batches
        if not pass_stats.is_shard:
            self._num_seqs = pass_stats.num_seqs

    def buffer_begins(self, begin: SourcePosition, buffer: BufferPosition) -> None:
        """
        A full shuffling buffer is given now. All of the one before is taken.

        :param begin: where its first batch was taken from the sources
        :param buffer: what was given of it before
        """
        self._buffer_begin, self._buffer = begin, buffer
        self._num_batches_before = self.stats.num_batches

    def position(self) -> SourcePosition:
        """:return: of the sources: behind the batch that was given last, or where the buffer begins"""
        if self._uses_buffer:
            return self._buffer_begin
        return self.source.at(self.stats.num_batches - self._num_batches_before)

    def resume_points(self) -> list[ResumePoint]:
        """:return: by source: where it begins"""
        return self.position().resume_points(self._num_seqs, self.generators)

    def state(self, options: dict[str, str]) -> LoaderState:
        """
        :param options: as text, see :func:`returnn.torch.data.loader_state.describe_options`
        :return: to go on behind the batch that was given last
        """
        buffer = None
        if self._uses_buffer:
            num_given = self._buffer.num_given + self.stats.num_batches - self._num_batches_before
            buffer = dataclasses.replace(self._buffer, num_given=num_given)
        return LoaderState(
            epoch=self.epoch,
            options=options,
            num_workers=self.num_workers,
            source=self.position(),
            buffer=buffer,
            is_finished=self.is_finished,
            num_seqs=self._num_seqs,
            generators=self.generators,
            stats=self.stats.to_plain(),
        )
