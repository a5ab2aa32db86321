"""
Small sets are read in the main process, with the batches that the workers would give: processes cost more than they save.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator
from typing import TYPE_CHECKING

from returnn._state import state
from returnn.datasets._loading.generators import Generators
from returnn.datasets._loading.passes import iter_blocks
from returnn.datasets._loading.source import Block, PassContext, PassStats, SourceOptions, alloc_on_heap, known_num_seqs

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["may_be_small", "read_small_set"]

#: Sets with so many batches are not small.
MAX_BATCHES = 50
#: Nor those whose batches are larger than this in sum, or take longer to read.
_MAX_BYTES = 64 << 20
_MAX_SECS = 5.0


def may_be_small(dataset: Dataset, options: SourceOptions) -> bool:
    """
    :param dataset: to be read
    :param options: from sequences to batches
    :return: False: the set must be left to workers, since it keeps state while it is read, or code of the user runs
    """
    limits = options.limits
    if options.worker_init_fn is not None or options.custom is not None or limits.has_functions:
        return False
    supports_jump = getattr(dataset, "supports_jump", None)  # a class of the user may have the methods to read alone
    return supports_jump is not None and bool(supports_jump())


def read_small_set(
    dataset: Dataset, options: SourceOptions, num_workers: int, epoch: int | None
) -> tuple[list[Block], PassStats] | None:
    """
    One pass. Random generators and state of the process are afterwards as before.

    :param dataset: of which :func:`may_be_small` is true
    :param options: from sequences to batches
    :param num_workers: as configured
    :param epoch: for init_seq_order
    :return: all batches, one per block, in the order in which these workers would give them, and what is known of the pass.
        None: the set is not small, or there was an error, which workers will find too
    """
    generators = Generators.current()
    deadline = time.monotonic() + _MAX_SECS
    shards: list[list[Block]] = []
    parts: list[PassStats] = []
    num_batches = num_bytes = 0
    try:
        for worker_id in range(num_workers):
            ctx = PassContext(dataset, options.for_worker(worker_id, num_workers), epoch)
            shards.append([])
            parts.append(ctx.stats)
            with _as_worker(worker_id, num_workers, is_global=options.is_global):
                ctx.seed_global_generators()
                for block in iter_blocks(ctx, alloc_on_heap):
                    num_seqs = known_num_seqs(dataset)
                    max_seqs = options.limits.max_seqs
                    if num_seqs is None or (isinstance(max_seqs, int) and num_seqs > 2 * max_seqs * MAX_BATCHES):
                        return None
                    for batch, info in zip(block.batches, block.infos, strict=True):
                        shards[-1].append(Block([batch], [info], worker_id))
                        num_bytes += sum(getattr(value, "nbytes", 0) for value in batch.values())
                    num_batches += len(block.batches)
                    if num_batches >= MAX_BATCHES or num_bytes > _MAX_BYTES or time.monotonic() > deadline:
                        return None
    except Exception:
        return None
    finally:
        generators.restore()
    longest = max(map(len, shards))
    blocks = [shard[i] for i in range(longest) for shard in shards if i < len(shard)]
    return blocks, PassStats.merged(parts, is_global=options.is_global)


@contextlib.contextmanager
def _as_worker(worker_id: int, num_workers: int, *, is_global: bool) -> Iterator[None]:
    """The process state is that of a worker."""
    saved = state.in_worker, state.worker_id, state.num_workers
    state.in_worker, state.worker_id = True, worker_id
    if not is_global:
        state.num_workers = num_workers
    try:
        yield
    finally:
        state.in_worker, state.worker_id, state.num_workers = saved
