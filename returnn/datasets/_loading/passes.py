"""
One pass over the data: chooses the way of reading.
"""

from __future__ import annotations

from collections.abc import Iterator

from returnn.datasets._loading.address import ResumePoint
from returnn.datasets._loading.bulk import iter_blocks_bulk
from returnn.datasets._loading.per_seq import iter_blocks_per_seq
from returnn.datasets._loading.plan import probe_bulk
from returnn.datasets._loading.source import Alloc, Block, PassContext
from returnn.errors import DatasetError
from returnn.options.custom_batching import BucketOptions

__all__ = ["iter_blocks"]


def iter_blocks(ctx: PassContext, alloc: Alloc, resume: ResumePoint | None = None) -> Iterator[Block]:
    """
    One pass, from ``init_seq_order`` on. Both ways of reading give identical batches.

    :param ctx: new
    :param alloc: where the arrays of datasets with the bulk protocol are written
    :param resume: to go on within the pass. The first block is then an empty one: all is as it was before the batch that
        follows was wanted
    :raises DatasetError: the dataset is not what it was when the pass began
    """
    if resume is not None and resume.generators is not None:
        resume.generators.restore()
    ctx.start()
    if resume is not None:
        _check_num_seqs(ctx, resume)
    custom = ctx.options.custom
    # Pipelines of users get sequences one by one.
    keys = probe_bulk(ctx.dataset) if custom is None or isinstance(custom, BucketOptions) else None
    if keys is not None:
        yield from iter_blocks_bulk(ctx, keys, alloc, resume)
    else:
        yield from iter_blocks_per_seq(ctx, resume)


def _check_num_seqs(ctx: PassContext, resume: ResumePoint) -> None:
    num_seqs = ctx.stats.num_seqs
    if ctx.stats.is_shard or None in (num_seqs, resume.num_seqs) or num_seqs == resume.num_seqs:
        return
    raise DatasetError(
        f"dataset {ctx.options.name!r} has {num_seqs} sequences in epoch {ctx.epoch} now, but had {resume.num_seqs} when the "
        "epoch was begun, so the epoch cannot go on where it was. Restore the data, or start the epoch again."
    )
