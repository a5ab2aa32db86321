"""
One pass over the data: chooses the way of reading.
"""

from __future__ import annotations

from collections.abc import Iterator

from returnn.datasets._loading.bulk import iter_blocks_bulk
from returnn.datasets._loading.per_seq import iter_blocks_per_seq
from returnn.datasets._loading.plan import probe_bulk
from returnn.datasets._loading.source import Alloc, Block, PassContext
from returnn.options.custom_batching import BucketOptions

__all__ = ["iter_blocks"]


def iter_blocks(ctx: PassContext, alloc: Alloc) -> Iterator[Block]:
    """
    One pass, from ``init_seq_order`` on. Both ways of reading give identical batches.

    :param ctx: new
    :param alloc: where the arrays of datasets with the bulk protocol are written
    """
    ctx.start()
    custom = ctx.options.custom
    # Pipelines of users get sequences one by one.
    keys = probe_bulk(ctx.dataset) if custom is None or isinstance(custom, BucketOptions) else None
    if keys is not None:
        yield from iter_blocks_bulk(ctx, keys, alloc)
    else:
        yield from iter_blocks_per_seq(ctx)
