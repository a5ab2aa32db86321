"""
The data loader of the engine: batches of tensors from a dataset, in-process or from worker processes.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import torch

from returnn.datasets._loading.address import ResumePoint
from returnn.datasets._loading.generators import Generators
from returnn.datasets._loading.passes import iter_blocks
from returnn.datasets._loading.pool import PoolPass, WorkerPool
from returnn.datasets._loading.ranks import data_rank, num_seqs_of_rank
from returnn.datasets._loading.small_sets import may_be_small, read_small_set
from returnn.datasets._loading.source import Block, PassContext, PassStats, Role, SourceOptions, alloc_on_heap
from returnn.errors import ConfigError, DatasetError, ReturnnError
from returnn.log import log
from returnn.options.batching import BatchingOptions, BucketOptions, CustomBatching, OnlineShuffleOptions
from returnn.options.distributed import data_shard
from returnn.options.loader import LoaderOptions
from returnn.torch.data.collate import RawBatch, batch_to_torch
from returnn.torch.data.custom_batching import PipelineBatching
from returnn.torch.data.loader_state import (
    LoaderState,
    describe_options,
    describe_order,
    num_workers_for_rest,
    option_changes,
)
from returnn.torch.data.running_pass import RunningPass
from returnn.torch.data.shuffling import shuffle_blocks
from returnn.torch.data.stats import LoaderStats

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["Loader", "LoaderStats", "EpochSource", "Role", "RawBatch", "create_loader"]


class _HasValue(Protocol):
    value: int


@dataclasses.dataclass
class EpochSource:
    """The epoch that the next pass over a loader is for. Shared by the loaders of an engine."""

    value: int = 0


def create_loader(
    dataset: Dataset,
    *,
    batching: BatchingOptions,
    loader: LoaderOptions | None = None,
    epoch_source: _HasValue | None = None,
    name: str | None = None,
    role: Role = "train",
    seed: int = 42,
    resumed: bool = False,
    pin_memory: bool = False,
    rank: int | None = None,
    num_ranks: int | None = None,
) -> Loader:
    """
    :param dataset: what to load. With workers, copies of it are used
    :param batching: filter, chunking, limits
    :param loader: workers; None: in-process
    :param epoch_source: object with the epoch as ``value``; 0: the dataset gets 0
    :param name: for messages; None: the dataset's
    :param role: what the data is used for
    :param seed: for random chunk starts, and for numpy's and Python's generators in workers
    :param resumed: see :class:`Loader`
    :param pin_memory: what to do if the options do not say
    :param rank: which part of the data to read. None: that of this process
    :param num_ranks: number of parts. None: number of the processes that train together, unless each reads all data
    :raises ConfigError: the options do not fit to the role or the dataset
    """
    loader = loader or LoaderOptions(num_workers=0)
    name = name or getattr(dataset, "name", None) or type(dataset).__name__
    if loader.unused_keys:
        log.print_warning(loader.unused_text)
    custom = batching.custom
    batch_maker = None
    if isinstance(custom, CustomBatching):
        batch_maker = PipelineBatching(custom, train=role == "train")
    if role == "forward":
        _check_forward(batching, name)
    if loader.num_workers > 1 and not dataset.supports_sharding() and loader.worker_batching == "sharded":
        raise DatasetError(
            "Dataset does not support sharding but 'num_workers_per_gpu' is > 0. "
            f"Dataset {name!r} is a {type(dataset).__name__}, the number of workers is {loader.num_workers}. "
            'Set num_workers_per_gpu to 1 or 0, or worker_batching = "global".'
        )
    is_global = loader.worker_batching == "global"
    rank, num_ranks = data_rank(
        dataset,
        data_shard()[0] if rank is None else rank,
        data_shard()[1] if num_ranks is None else num_ranks,
        name=name,
        is_global=is_global,
    )
    options = SourceOptions.create(
        batching,
        name=name,
        role=role,
        seed=seed,
        is_global=is_global,
        rank=rank,
        num_ranks=num_ranks,
        batch_maker=batch_maker,
        worker_init_fn=loader.worker_init_fn,
    )
    shuffling = batching.online_shuffle if role == "train" else None
    pin = pin_memory if loader.pin_memory is None else loader.pin_memory
    source = epoch_source or EpochSource()
    return Loader(dataset, options, loader, source, resumed=resumed, pin_memory=pin, shuffling=shuffling)


def _check_forward(batching: BatchingOptions, name: str) -> None:
    """
    Nothing may get lost unnoticed.

    :raises ConfigError: sequences may be dropped, and the options say that this must not be
    """
    droppers = []
    if batching.min_seq_length is not None or batching.max_seq_length is not None:
        droppers.append("min_seq_length/max_seq_length")
    if isinstance(batching.custom, BucketOptions):
        droppers.append("the longest bucket of torch_batching")
    if droppers and batching.allow_skipping_seqs_in_forward is False:
        raise ConfigError(
            f'{" and ".join(droppers)} may drop sequences of dataset {name!r}, but "allow_skipping_seqs_in_forward" is '
            "False. Unset the limits for the forward task, or set it to True."
        )
    if droppers and batching.allow_skipping_seqs_in_forward is None:
        print(
            f"Warning: {' and '.join(droppers)} may drop sequences of dataset {name!r} in the forward task. "
            "Set allow_skipping_seqs_in_forward = True if that is wanted.",
            file=log.v2,
        )
    if batching.drop_last is True:
        print(
            f"Warning: batch_drop_last = True drops the last batch of dataset {name!r} in the forward task too. "
            'Set batch_drop_last = "incomplete" to drop batches only in training.',
            file=log.v2,
        )


class Loader:
    """
    Iterable over batches. Each iterator is one pass over the epoch that ``epoch_source.value`` says when it is created.
    A new iterator ends the older ones. With :func:`load_state_dict`, the next iterator goes on within a pass.

    Creating an iterator draws from torch's global random generator as torch's own DataLoader does,
    since dropout of existing trainings depends on that.
    """

    def __init__(
        self,
        dataset: Dataset,
        options: SourceOptions,
        loader: LoaderOptions,
        epoch_source: _HasValue,
        *,
        resumed: bool = False,
        pin_memory: bool = False,
        shuffling: OnlineShuffleOptions | None = None,
    ):
        """
        :param dataset: what to load
        :param options: from sequences to batches
        :param loader: workers
        :param epoch_source: holder of the epoch
        :param resumed: with workers, the first iterator counts as a later one for the random draws: the training goes on
            after a restart, and the uninterrupted one would have had its first iterator before
        :param pin_memory: tensors in pinned memory, for copies to a GPU
        :param shuffling: of batches
        """
        self._shuffling = shuffling
        self.dataset = dataset
        self.options = options
        self.loader_options = loader
        self.epoch_source = epoch_source
        self.resumed = resumed
        self.stats = LoaderStats()
        self._pin_memory = pin_memory and torch.cuda.is_available()
        self._had_iterator = False
        self._pass_id = 0
        self._notes_shown: set[str] = set()
        self._pool: WorkerPool | None = None
        self._is_large = False  # left to the workers even where small sets are not
        self._rest_pool: WorkerPool | None = None  # of another size, for the rest of a pass
        self._pass: RunningPass | None = None
        self._resume: LoaderState | None = None

    @property
    def num_workers(self) -> int:
        """:return: number of worker processes; 0: in-process"""
        return self.loader_options.num_workers

    @property
    def was_used(self) -> bool:
        """:return: whether it had an iterator, in this run or before it"""
        return self._had_iterator or self.resumed

    @property
    def name(self) -> str:
        """:return: name of the dataset"""
        return self.options.name

    def prepare(self) -> None:
        """Start the workers, without waiting for them. Otherwise they start with the first iterator."""
        if self.num_workers and self._pool is None:
            self._pool = WorkerPool(self.dataset, self.options, self.loader_options)

    def consume_rng(self) -> None:
        """Draw from torch's global generator as the creation of an iterator does."""
        num_draws = 2
        if self.num_workers:
            num_draws = 1 if self._had_iterator or self.resumed else 3
        self._had_iterator = True
        for _ in range(num_draws):
            torch.empty((), dtype=torch.int64).random_()

    def state_dict(self) -> dict[str, Any]:
        """
        :return: position behind the batch that the newest iterator gave last, for :func:`load_state_dict`: plain values and
            tensors, which safe loading of checkpoints accepts (Any). Also right after an iterator was ended by an exception
        :raises DatasetError: ``state_dict()`` of the dataset gives something that cannot be saved
        """
        if self._resume is not None:  # not yet begun
            return self._resume.to_plain()
        if self._pass is None:
            return {}
        return self._pass.state(self._describe_options()).to_plain()

    def _describe_options(self) -> dict[str, str]:
        return {**describe_options(self.options, self._shuffling), **describe_order(self.dataset)}

    def load_state_dict(self, state: Mapping[str, Any] | None) -> None:
        """
        The next iterator goes on behind the batch that was given last when the state was taken, with the statistics of the
        pass. It draws nothing from torch's global generator. If the main process reads, creating it changes the global
        generators: restore them afterwards.

        :param state: of :func:`state_dict`, from a loader with the same options; the number of workers may differ. Any: as
            there. Empty or None: the next iterator begins a pass as usual
        :raises DatasetError: it was taken with other options
        """
        self._resume = None
        if not state:
            return
        resume = LoaderState.from_plain(state, where=f"dataset {self.name!r}")
        changes = option_changes(resume.options, self._describe_options())
        if changes:
            raise DatasetError(
                f"dataset {self.name!r}: epoch {resume.epoch} cannot go on where it was, since its batches are made in "
                f"another way now: {'; '.join(changes)}. Restore the options, or start the epoch again."
            )
        self._resume = resume

    def __iter__(self) -> Iterator[RawBatch]:
        """
        :return: batches of one pass; see :func:`returnn.torch.data.collate.collate_batch` for their entries
        :raises DatasetError: it cannot go on at the loaded state, since the data has changed
        """
        epoch = int(self.epoch_source.value)
        if self._resume is not None:
            return self._go_on(self._resume, epoch)
        self.consume_rng()
        self._pass_id += 1
        self.stats = LoaderStats(len_filter=self.options.len_filter)
        self._pass = running = RunningPass(epoch, self.num_workers, self.stats, uses_buffer=self._shuffling is not None)
        return self._count(self._iter_blocks(running), self._pass_id, running)

    def _go_on(self, resume: LoaderState, epoch: int) -> Iterator[RawBatch]:
        if resume.epoch != epoch:
            raise DatasetError(
                f"dataset {self.name!r}: the saved position is one of epoch {resume.epoch}, but epoch {epoch} is to be read."
            )
        self._had_iterator = True
        self._pass_id += 1
        is_global = self.options.is_global
        num_workers = num_workers_for_rest(resume.num_workers, self.num_workers, is_global=is_global)
        if num_workers != self.num_workers:
            print(
                f"Dataset {self.name!r}: the rest of epoch {epoch} is read with {num_workers} workers, as its beginning, "
                f"since batches depend on their number. Then with {self.num_workers}.",
                file=log.v3,
            )
        position = resume.source.dealt_to(max(num_workers, 1)) if is_global else resume.source
        stats = LoaderStats.from_plain(resume.stats, len_filter=self.options.len_filter)
        running = RunningPass(
            epoch,
            num_workers,
            stats,
            uses_buffer=self._shuffling is not None,
            position=position,
            buffer=resume.buffer,
            num_seqs=resume.num_seqs,
            generators=resume.generators,
            is_finished=resume.is_finished,
        )
        blocks = _no_blocks() if resume.is_finished else self._iter_blocks(running, is_resumed=not resume.is_start)
        if not resume.is_finished and not resume.is_start:
            first = next(blocks)
            self._show_resumed(first[1], epoch)
            blocks = _chain(first, blocks)
        self.stats, self._pass, self._resume = stats, running, None
        return self._count(blocks, self._pass_id, running)

    def _iter_blocks(self, running: RunningPass, *, is_resumed: bool = False) -> Iterator[tuple[Block, PassStats]]:
        """
        :param running: where to begin
        :param is_resumed: the first block may be empty: all is then as it was before the next one was wanted
        """
        points = running.resume_points() if is_resumed else None
        if running.num_workers and not is_resumed and self._may_be_small():
            blocks = self._iter_small_set(running)
        elif running.num_workers:
            pool = self._pool_of(running.num_workers)
            first_worker = running.position().next_worker
            pool_pass = pool.start_pass(running.epoch, points, first_worker=first_worker)
            blocks = self._iter_pool(pool_pass, wait=is_resumed)
        else:
            blocks = self._iter_in_process(running, points[0] if points is not None else None)
        if self._shuffling is not None:
            blocks = shuffle_blocks(blocks, self._shuffling, running, default_seed=self.options.seed)
        return blocks

    def _pool_of(self, num_workers: int) -> WorkerPool:
        if num_workers == self.num_workers:
            self.prepare()
            assert self._pool is not None
            return self._pool
        loader_options = dataclasses.replace(self.loader_options, num_workers=num_workers)
        self._rest_pool = WorkerPool(self.dataset, self.options, loader_options)
        return self._rest_pool

    def _may_be_small(self) -> bool:
        """:return: whether to try without workers"""
        if not self.loader_options.small_sets_in_process or self.options.role != "eval":
            return False
        if self._pool is not None or self._is_large:
            return False
        self._is_large = not may_be_small(self.dataset, self.options)
        return not self._is_large

    def _iter_small_set(self, running: RunningPass) -> Iterator[tuple[Block, PassStats]]:
        """With workers nevertheless, now and from now on, if it is not small."""
        result = read_small_set(self.dataset, self.options, running.num_workers, running.epoch)
        if result is None:
            self._is_large = True
            if hasattr(self.dataset, "finish_epoch"):  # else a class of the user with the methods to read alone
                self.dataset.finish_epoch(free_resources=True)
            yield from self._iter_pool(self._pool_of(running.num_workers).start_pass(running.epoch), wait=False)
            return
        blocks, stats = result
        for block in blocks:
            yield block, stats
        yield Block([], []), stats

    def _iter_in_process(self, running: RunningPass, resume: ResumePoint | None) -> Iterator[tuple[Block, PassStats]]:
        ctx = PassContext(self.dataset, self.options, running.epoch)
        if resume is None:
            running.generators = Generators.current()
        try:
            for block in iter_blocks(ctx, alloc_on_heap, resume):
                yield block, ctx.stats
        except Exception as exc:
            where = ctx.locate(exc)
            if not isinstance(exc, ReturnnError):  # ours have it in their text
                print(f"Error while reading {where}", file=log.v1)
            raise
        yield Block([], []), ctx.stats

    def _iter_pool(self, pool_pass: PoolPass, *, wait: bool) -> Iterator[tuple[Block, PassStats]]:
        """:param wait: until all workers are in place; gives an empty block then"""
        try:
            if wait:
                pool_pass.wait_until_in_place()
                yield Block([], []), pool_pass.stats
            for block in pool_pass:
                yield block, pool_pass.stats
            yield Block([], []), pool_pass.stats
        except Exception:
            self.close()  # the next iterator starts with new processes
            raise
        finally:
            pool_pass.close()
            if not self.loader_options.persistent:
                self.close()
            self._close_rest_pool()

    def _count(
        self, blocks: Iterator[tuple[Block, PassStats]], pass_id: int, running: RunningPass
    ) -> Iterator[RawBatch]:
        """To tensors, one by one, with statistics."""
        start = time.perf_counter()
        stats = running.stats
        try:
            for block, pass_stats in blocks:
                running.enter(block, pass_stats)
                stats.num_seqs = self._num_seqs(pass_stats)
                stats.num_seqs_dropped = pass_stats.dropped
                self._show_notes(pass_stats)
                for batch, info in zip(block.batches, block.infos, strict=True):
                    if pass_id != self._pass_id:
                        raise RuntimeError(
                            f"loader of dataset {self.name!r}: this iterator ended when a newer one was created"
                        )
                    tensors = _to_pinned(batch) if self._pin_memory else batch_to_torch(batch)
                    stats.add(info)
                    stats.secs_waited += time.perf_counter() - start
                    yield tensors
                    start = time.perf_counter()
            running.is_finished = True
        finally:
            blocks.close()  # type: ignore[attr-defined]

    def _num_seqs(self, pass_stats: PassStats) -> int | None:
        """:return: sequences of this rank in the epoch. With global batches, which all ranks form: of all of them"""
        options = self.options
        if options.num_ranks == 1 or options.is_global or pass_stats.is_shard:
            return pass_stats.num_seqs
        return num_seqs_of_rank(pass_stats.num_seqs, options.rank, options.num_ranks)

    def _show_resumed(self, pass_stats: PassStats, epoch: int) -> None:
        """Nothing slow happens silently."""
        resumed = pass_stats.resumed
        if resumed is None or not resumed.num_seqs or not (resumed.is_read or resumed.secs > 1.0):
            return
        print(
            f"Dataset {self.name!r}: epoch {epoch} goes on behind batch {resumed.num_batches:,}: {resumed.num_seqs:,} "
            f"sequences {'read' if resumed.is_read else 'planned'} again in {resumed.secs:.1f} seconds "
            f"({resumed.secs / resumed.num_seqs * 1e6:,.0f} seconds per million sequences).",
            file=log.v3,
        )

    def _show_notes(self, pass_stats: PassStats) -> None:
        for note in pass_stats.notes:
            if note not in self._notes_shown:
                self._notes_shown.add(note)
                print(note, file=log.v2)

    def close(self) -> None:
        """End the workers. The loader can be used again: they start anew."""
        self._close_rest_pool()
        pool, self._pool = self._pool, None
        if pool is not None:
            pool.close()

    def _close_rest_pool(self) -> None:
        pool, self._rest_pool = self._rest_pool, None
        if pool is not None:
            pool.close()


def _no_blocks() -> Iterator[tuple[Block, PassStats]]:
    yield from ()


def _chain(
    first: tuple[Block, PassStats], blocks: Iterator[tuple[Block, PassStats]]
) -> Iterator[tuple[Block, PassStats]]:
    try:
        yield first
        yield from blocks
    finally:
        blocks.close()  # type: ignore[attr-defined]


def _to_pinned(batch: RawBatch) -> RawBatch:
    return {key: v.pin_memory() if isinstance(v, torch.Tensor) else v for key, v in batch_to_torch(batch).items()}
