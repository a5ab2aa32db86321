"""
A dataset as a source of batches: one pass over one epoch, in the main process or in one of several workers.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import numpy

from returnn.datasets._loading.address import AddressKeeper, Resumed, SeqAddress
from returnn.datasets._loading.collate import NumpyBatch
from returnn.datasets._loading.generators import seed_generators
from returnn.datasets._loading.len_filter import DropReason, LenFilter
from returnn.datasets._loading.limits import BatchLimits
from returnn.datasets._loading.remote_error import add_place
from returnn.datasets._loading.status_page import current_page
from returnn.options.batching import BatchingOptions, BucketOptions, ChunkingOptions

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = [
    "Role",
    "BatchInfo",
    "Block",
    "PassStats",
    "SourceOptions",
    "Alloc",
    "BatchMaker",
    "alloc_on_heap",
    "PassContext",
    "known_num_seqs",
]

Role = Literal["train", "eval", "forward"]
#: Gives zeroed arrays for a list of (shape, dtype).
Alloc = Callable[[Sequence[tuple[tuple[int, ...], numpy.dtype]]], list[numpy.ndarray]]
#: From the sequences of a pass to batches of them. Any: arrays and other values by data key.
BatchMaker = Callable[[Iterator[dict[str, Any]]], Iterator[Sequence[dict[str, Any]]]]


def alloc_on_heap(specs: Sequence[tuple[tuple[int, ...], numpy.dtype]]) -> list[numpy.ndarray]:
    """:return: zeroed arrays in ordinary memory"""
    return [numpy.zeros(shape, dtype) for shape, dtype in specs]


class BatchInfo(NamedTuple):
    """Numbers of one batch, for reports. And where the next one begins, if sequences are read one by one."""

    num_seqs: int
    frames: dict[str, int]  # per data key, without padding
    padded_frames: dict[str, int]  # per data key, with padding
    complete_frac: float | None
    next: SeqAddress | None = None


@dataclasses.dataclass
class Block:
    """Some consecutive batches of one pass. None at all: a source that goes on within a pass has come to its place."""

    batches: list[NumpyBatch]
    infos: list[BatchInfo]
    worker: int = 0  # which made it


@dataclasses.dataclass
class PassStats:
    """What a source knows about a pass, complete at its end. Dropped: sequences (or chunks) by reason and key."""

    num_seqs: int | None = None  # of the whole epoch
    dropped: Counter[DropReason] = dataclasses.field(default_factory=Counter)
    notes: list[str] = dataclasses.field(default_factory=list)  # warnings for the user
    is_shard: bool = False  # the dataset sharded by itself, num_seqs is of the shard
    resumed: Resumed | None = None  # it went on within the pass

    @classmethod
    def merged(cls, parts: Sequence[PassStats], *, is_global: bool) -> PassStats:
        """
        :param parts: of all workers
        :param is_global: each of them knows all
        :return: of the pass
        """
        if len(parts) == 1 or is_global:
            return parts[0]
        merged = cls()
        sizes = [part.num_seqs for part in parts if part.num_seqs is not None]
        if len(sizes) == len(parts):
            merged.num_seqs = sum(sizes) if parts[0].is_shard else max(sizes)
        for part in parts:
            merged.dropped.update(part.dropped)
            merged.notes += [note for note in part.notes if note not in merged.notes]
        resumed = [part.resumed for part in parts if part.resumed is not None]
        if resumed:
            merged.resumed = Resumed(
                sum(r.num_batches for r in resumed),
                sum(r.num_seqs for r in resumed),
                max(r.secs for r in resumed),
                is_read=any(r.is_read for r in resumed),
            )
        return merged


@dataclasses.dataclass(frozen=True)
class SourceOptions:
    """
    :param name: of the dataset, for messages
    :param role: what the data is used for
    :param limits: of a batch
    :param len_filter: may be empty
    :param chunking: None: off
    :param custom: batches by other means than limits. None: by limits
    :param seed: base of all randomness here
    :param worker_id: of this rank; 0 in the main process
    :param num_workers: of each rank; 0: the main process reads
    :param rank: of this process in a training on many devices
    :param num_ranks: 1: one process, or the dataset itself gives each rank its own part of the data
    :param is_global: batches are formed in the main order, and this worker of this rank makes every n-th of them
    :param worker_init_fn: called with worker_id in each worker process at its start. Any: the result is not used
    :param block_bytes: aim for blocks of about this size
    :param starts_epoch: call init_seq_order; False: the dataset is at the epoch to be read
    """

    name: str
    role: Role
    limits: BatchLimits
    len_filter: LenFilter
    chunking: ChunkingOptions | None = None
    custom: BucketOptions | BatchMaker | None = None
    seed: int = 42
    worker_id: int = 0
    num_workers: int = 0
    rank: int = 0
    num_ranks: int = 1
    is_global: bool = False
    worker_init_fn: Callable[[int], Any] | None = None
    block_bytes: int = 4 * 2**20
    starts_epoch: bool = True

    @classmethod
    def create(
        cls,
        batching: BatchingOptions,
        *,
        name: str,
        role: Role,
        seed: int = 42,
        is_global: bool = False,
        rank: int = 0,
        num_ranks: int = 1,
        batch_maker: BatchMaker | None = None,
        worker_init_fn: Callable[[int], Any] | None = None,
    ) -> SourceOptions:
        """
        :param batching: checked options
        :param name: of the dataset
        :param role: "incomplete" last batches are dropped only in training
        :param seed: base of all randomness here
        :param is_global: see the class
        :param rank: see the class
        :param num_ranks: see the class
        :param batch_maker: what the options give as custom batching, if that is no :class:`BucketOptions`
        :param worker_init_fn: see the class. Any: as there
        """
        drop_last = False if batching.drop_last == "incomplete" and role != "train" else batching.drop_last
        return cls(
            name=name,
            role=role,
            limits=BatchLimits.from_options(batching, drop_last=drop_last),
            len_filter=LenFilter(batching.min_seq_length, batching.max_seq_length),
            chunking=batching.chunking,
            custom=batching.custom if isinstance(batching.custom, BucketOptions) else batch_maker,
            seed=seed,
            is_global=is_global,
            rank=rank,
            num_ranks=num_ranks,
            worker_init_fn=worker_init_fn,
        )

    def for_worker(self, worker_id: int, num_workers: int) -> SourceOptions:
        """:return: the same for one of several workers"""
        return dataclasses.replace(self, worker_id=worker_id, num_workers=num_workers)

    @property
    def stream(self) -> tuple[int, int]:
        """
        :return: (index, count) of this worker of this rank among all of them. With R ranks, worker w of rank r is
            r + R * w: R ranks with max_seqs k see together what one process with max_seqs R * k sees
        """
        return self.rank + self.num_ranks * self.worker_id, self.num_ranks * max(self.num_workers, 1)

    @property
    def shard(self) -> tuple[int, int]:
        """:return: (index, count) of the shard of sequences which this worker reads: every count-th from index on"""
        return (0, 1) if self.is_global else self.stream

    def takes_batch(self, batch_idx: int) -> bool:
        """:return: whether this worker makes this batch of its order of batches"""
        index, count = self.stream
        return not self.is_global or batch_idx % count == index

    def num_taken(self, num_batches: int) -> int:
        """:return: how many of the first batches of its order this worker makes"""
        index, count = self.stream
        return len(range(index, num_batches, count)) if self.is_global else num_batches


class PassContext:
    """State of one pass that both ways of reading share: epoch, shard, random generator, statistics, place for errors."""

    def __init__(self, dataset: Dataset, options: SourceOptions, epoch: int | None):
        """
        :param dataset: not yet at this epoch
        :param options: of this worker
        :param epoch: from 1; None or 0: as the dataset defines it
        """
        self.dataset = dataset
        self.options = options
        self.epoch = epoch
        self.stats = PassStats()
        # In the global mode all workers of all ranks need the same draws.
        stream = 0 if options.is_global else options.stream[0]
        self._seed_words = (max(epoch or 0, 0), stream)
        self.seeds = numpy.random.SeedSequence([abs(options.seed), *self._seed_words])
        self.rng = numpy.random.default_rng(self.seeds)
        self.shard_index, self.shard_count = options.shard
        self.keeper: AddressKeeper | None = None  # if reading may start at any sequence
        self.num_draws = 0  # from rng, for chunk starts of sequences that are read one by one
        self.seq_idx = 0  # of the sequence at work, in the shard, if they are read one by one
        self.position: int | None = None  # of the sequence at work, for errors
        self.last_position: int | None = None  # if several sequences are read at once
        self.seq_tag: str | None = None

    def start(self) -> None:
        """Bring the dataset to the epoch."""
        if hasattr(self.dataset, "_sharding_applied"):
            self.dataset._sharding_applied = False
            self.dataset._loader_shard = self.options.shard
        if hasattr(self.dataset, "set_random_per_seq"):  # else a class of the user with the methods to read alone
            self.dataset.set_random_per_seq(True)
        page = current_page()
        if page is not None:
            page.begin("making the order", self.epoch)
        if self.options.starts_epoch:
            self.dataset.init_seq_order(epoch=self.epoch)
        if page is not None:
            page.begin("reading", self.epoch)
        if getattr(self.dataset, "_sharding_applied", False):
            # A class of the user called apply_sharding: what it gives already is this worker's shard.
            self.shard_index, self.shard_count = 0, 1
            self.stats.is_shard = True
        self.stats.num_seqs = known_num_seqs(self.dataset)

    def bucket_rng(self, options: BucketOptions) -> numpy.random.Generator:
        """:return: for the random choice of buckets in this pass"""
        seed = options.seed if options.seed is not None else self.options.seed
        return numpy.random.default_rng([abs(seed), *self._seed_words, 1])

    def seed_global_generators(self) -> None:
        """Seed the global generators (numpy, Python, torch): only in a worker process, for user code that uses them."""
        seed_generators(*map(int, self.seeds.generate_state(3)))

    def epoch_position(self, seq_idx: int) -> int:
        """:return: position in the dataset's epoch of this shard's sequence"""
        return seq_idx * self.shard_count + self.shard_index

    def complete_frac(self, position: int, num_seqs: int) -> float:
        """
        :param position: in the dataset's epoch
        :param num_seqs: of the epoch
        :return: how much of the epoch is done with this sequence, 0 to 1. The same for all ranks at the same index in
            their shards, so that what depends on it (e.g. a learning rate) is the same too
        """
        if self.shard_count > 1:
            position += self.options.num_ranks - 1 - self.options.rank
        return min((position + 1) / num_seqs, 1.0)

    def complete_fracs(self, positions: numpy.ndarray, num_seqs: int) -> list[float]:
        """:return: :meth:`complete_frac` of many"""
        if self.shard_count > 1:
            positions = positions + (self.options.num_ranks - 1 - self.options.rank)
        fracs: list[float] = numpy.minimum((positions + 1) / num_seqs, 1.0).tolist()
        return fracs

    def check_keys(self, known: Sequence[str]) -> None:
        """Note limits for keys that no data has. :param known: keys of the data"""
        for option, key in self.options.len_filter.unknown_keys(known):
            self._note_unknown(option, key, known, "so it never drops a sequence")
        for option, key in self.options.limits.unknown_keys([*known, "seq_idx", "seq_tag"]):
            self._note_unknown(option, key, known, "so it never limits a batch")

    def _note_unknown(self, option: str, key: str, known: Sequence[str], effect: str) -> None:
        self.stats.notes.append(
            f'Warning: option "{option}" has the key {key!r}, which dataset {self.options.name!r} does not have, {effect}. '
            f"Known keys: {', '.join(map(repr, known))}."
        )

    def drop(self, reason: str, key: str | None, count: int = 1) -> None:
        """Count dropped sequences."""
        self.stats.dropped[(reason, key)] += count

    def locate(self, exc: BaseException) -> str:
        """
        Say where an error happened. The text of our own exceptions gets it at the end, once.

        :return: e.g. ``dataset 'train', epoch 3, sequence 'seq-5' (position 5)``
        """
        where = f"dataset {self.options.name!r}, epoch {self.epoch}"
        if self.position is not None and self.last_position is not None and self.last_position > self.position:
            where += f", sequences at positions {self.position} to {self.last_position}"
        elif self.position is not None:
            if self.seq_tag is None:
                self.seq_tag = _try_get_tag(self.dataset, self.position)
            if self.seq_tag is None:
                where += f", position {self.position}"
            else:
                where += f", sequence {self.seq_tag!r} (position {self.position})"
        add_place(exc, where)
        return where


def known_num_seqs(dataset: Dataset, *, estimated: bool = False) -> int | None:
    """
    :param dataset: with the order of an epoch
    :param estimated: an estimate is good enough
    :return: number of sequences in the epoch; None: not known
    """
    try:
        return int(dataset.estimated_num_seqs if estimated else dataset.num_seqs)  # type: ignore[arg-type]
    except (NotImplementedError, TypeError, AttributeError, AssertionError):
        # Classes of users say it in many ways. Iteration does not need it.
        return None


def _try_get_tag(dataset: Dataset, position: int) -> str | None:
    try:
        return dataset.get_tag(position)
    except Exception:  # whatever is broken in it: the first error is the one to report
        return None
