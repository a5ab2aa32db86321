"""
Shuffling of batches in a buffer, as data pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import numpy

from returnn.datasets._loading.generators import Generators
from returnn.datasets._loading.source import Block, PassStats
from returnn.errors import ConfigError
from returnn.options.batching import OnlineShuffleOptions
from returnn.torch.data.loader_state import BufferPosition
from returnn.torch.data.running_pass import RunningPass
from returnn.torch.data.stages import IterStage

#: Of stages without one, if a loader iterates over them.
DEFAULT_SEED = 42

__all__ = ["DEFAULT_SEED", "ShufflingDataPipe", "shuffle_block", "shuffle_blocks", "shuffling_rng"]


class ShufflingDataPipe(IterStage):
    """
    Shuffles blocks of items (e.g. batches). The values of ``monotonic_data_keys`` keep their original order,
    i.e. they are exchanged back between the items.
    """

    def __init__(
        self,
        dataset: Iterable[Any],
        *,
        buffer_size: int,
        monotonic_data_keys: Sequence[str] = ("complete_frac", "seq_idx"),
        seed: int | None = None,
    ):
        """
        :param dataset: batches (lists of sequences), or sequences. Any: either
        :param buffer_size: items in a block, at least 1
        :param monotonic_data_keys: of each sequence
        :param seed: None: random, but the same in each run within torch_batching
        :raises ConfigError: invalid size
        """
        super().__init__(dataset)
        if buffer_size < 1:
            raise ConfigError(f"online_shuffle_batches: expected a buffer_size >= 1, got {buffer_size!r}.")
        self._buffer_size = buffer_size
        self._keys = tuple(monotonic_data_keys)
        self._seed = seed
        self._rng = numpy.random.RandomState(seed)

    def __iter__(self) -> Iterator[Any]:
        """:return: items in random order. Any: as in the dataset"""
        block: list[Any] = []
        for item in self._dataset:
            block.append(item)
            if len(block) == self._buffer_size:
                yield from self._shuffled(block)
                block = []
        yield from self._shuffled(block)

    def start_epoch(self, epoch: int) -> None:
        """See the base."""
        self._rng = shuffling_rng(self._seed, default_seed=DEFAULT_SEED, epoch=epoch)

    def _shuffled(self, block: list[Any]) -> list[Any]:
        order = [block[i] for i in self._rng.permutation(len(block))]
        for key in self._keys:
            values = [seq[key] for item in block for seq in _seqs(item) if key in seq]
            if not values:
                continue
            rest = iter(values)
            order = [_with_values(item, key, rest) for item in order]
        return order


def shuffling_rng(seed: int | None, *, default_seed: int, epoch: int) -> numpy.random.RandomState:
    """
    :param seed: of the option. In epoch 1, the order is that of :class:`ShufflingDataPipe` with this seed
    :param default_seed: without one
    :param epoch: each has its own order, which does not depend on where the training was started
    """
    if seed is not None and epoch <= 1:
        return numpy.random.RandomState(seed)
    return numpy.random.RandomState([abs(default_seed if seed is None else seed), max(epoch, 0)])


def shuffle_block(block: Block, rng: numpy.random.RandomState) -> Block:
    """
    :param block: batches in their order. Its lists are reused
    :param rng: draws one permutation
    :return: in random order; ``seq_idx`` and the progress keep the original order
    """
    order = rng.permutation(len(block.batches))
    batches = [block.batches[i] for i in order]
    seq_idxs = iter([idx for batch in block.batches for idx in batch["seq_idx"]])
    fracs = [info.complete_frac for info in block.infos]
    for batch in batches:
        batch["seq_idx"] = [next(seq_idxs) for _ in batch["seq_tag"]]
    infos = [block.infos[i]._replace(complete_frac=frac) for i, frac in zip(order, fracs, strict=True)]
    return Block(batches, infos)


def shuffle_blocks(
    blocks: Iterator[tuple[Block, PassStats]],
    options: OnlineShuffleOptions,
    running: RunningPass,
    *,
    default_seed: int,
) -> Iterator[tuple[Block, PassStats]]:
    """
    Shuffle batches in a buffer.

    :param blocks: of one pass. Closed at the end
    :param options: of the buffer
    :param running: where the pass begins or goes on; is told where each buffer begins
    :param default_seed: if the options have none
    :return: blocks: what is in a full buffer; the last one may be smaller
    """
    rng = shuffling_rng(options.seed, default_seed=default_seed, epoch=running.epoch)
    start = running.buffer_at_start
    for _ in range(start.num_buffers):
        rng.permutation(options.buffer_size)  # as before
    num_given = start.num_given
    num_buffers = start.num_buffers
    buffer = Block([], [])
    begin = running.source.at(0)
    pass_stats = PassStats()
    is_in_process = not running.num_workers
    resumed, filling = start.generators, start.generators
    if filling is None and is_in_process:
        filling = Generators.current()

    def give() -> Block:
        shuffled = shuffle_block(buffer, rng)
        running.buffer_begins(begin, BufferPosition(num_buffers, num_given, filling))
        return Block(shuffled.batches[num_given:], shuffled.infos[num_given:])

    try:
        for block, pass_stats in blocks:
            running.source.enter(block)
            if resumed is not None:  # with the first block, the source is in place
                resumed.restore()
                resumed = None
            for i, (batch, info) in enumerate(zip(block.batches, block.infos, strict=True)):
                if not buffer.batches:
                    begin = running.source.at(i)
                buffer.batches.append(batch)
                buffer.infos.append(info)
                if len(buffer.batches) == options.buffer_size:
                    yield give(), pass_stats
                    buffer = Block([], [])
                    num_buffers, num_given = num_buffers + 1, 0
                    if is_in_process:
                        filling = Generators.current()
        if not buffer.batches:
            yield buffer, pass_stats
        else:
            yield give(), pass_stats
    finally:
        blocks.close()  # type: ignore[attr-defined]


def _seqs(item: Any) -> Sequence[dict[str, Any]]:  # Any: batch or sequence
    return item if isinstance(item, (list, tuple)) else [item]


def _with_values(item: Any, key: str, values: Iterator[Any]) -> Any:  # Any: batch or sequence, and its values
    seqs = [{**seq, key: next(values)} if key in seq else seq for seq in _seqs(item)]
    return seqs if isinstance(item, (list, tuple)) else seqs[0]
