"""
Batches from a dataset that knows all lengths before data is read: first a plan made of index arrays, then block reads.
"""

from __future__ import annotations

import time
from collections.abc import Iterator

import numpy

from returnn.datasets._loading.address import Resumed, ResumePoint
from returnn.datasets._loading.block_reader import BlockReader
from returnn.datasets._loading.plan import BulkKeys, Planner
from returnn.datasets._loading.source import Alloc, Block, PassContext

__all__ = ["iter_blocks_bulk"]

#: Batches in a block. The first blocks are smaller, for a quick first batch.
MAX_BLOCK_BATCHES = 256


def iter_blocks_bulk(
    ctx: PassContext, keys: BulkKeys, alloc: Alloc, resume: ResumePoint | None = None
) -> Iterator[Block]:
    """
    One pass, after ``ctx.start()``.

    :param ctx: started
    :param keys: from :func:`probe_bulk`
    :param alloc: called once per block
    :param resume: to go on within the pass: its beginning is planned again, but not read
    :return: blocks. If the pass goes on: before them an empty one
    """
    start = time.perf_counter()
    num_skip = resume.num_batches if resume is not None else 0
    num_planned = 0
    options = ctx.options
    reader = BlockReader(ctx, keys, alloc)
    first_batch = 0
    max_batches = 1
    for items, ends in Planner(ctx, keys).iter_plans():
        mine = list(range(len(ends)))
        if options.is_global:
            mine = [b for b in mine if options.takes_batch(first_batch + b)]
        first_batch += len(ends)
        if resume is not None:
            num_planned += ends[-1]
            if num_skip >= len(mine):
                num_skip -= len(mine)
                continue
            mine = mine[num_skip:]
            yield _in_place(ctx, resume, num_planned, start)
            resume = None
        num_bytes = numpy.zeros(len(items), dtype=numpy.int64)
        for key in keys.keys:
            num_bytes += keys.frame_bytes[key] * (items.lens[key] if key in items.lens else 1)
        bytes_until = numpy.cumsum(num_bytes)
        starts = [0, *ends[:-1]]
        i = 0
        while i < len(mine):
            # As many batches as fit into the bytes, at least one.
            block = [mine[i]]
            size = 0
            while True:
                b = block[-1]
                size += int(bytes_until[ends[b] - 1] - (bytes_until[starts[b] - 1] if starts[b] else 0))
                i += 1
                if i >= len(mine) or len(block) >= max_batches or size >= options.block_bytes:
                    break
                block.append(mine[i])
            max_batches = min(max_batches * 2, MAX_BLOCK_BATCHES)
            if ends[block[-1]] - starts[block[0]] == sum(ends[b] - starts[b] for b in block):
                part = items.take(slice(starts[block[0]], ends[block[-1]]))
            else:
                part = items.take(numpy.concatenate([numpy.arange(starts[b], ends[b]) for b in block]))
            block_ends = numpy.cumsum([ends[b] - starts[b] for b in block]).tolist()
            yield reader.read_block(part, block_ends)
    if resume is not None:
        yield _in_place(ctx, resume, num_planned, start)


def _in_place(ctx: PassContext, resume: ResumePoint, num_seqs: int, start: float) -> Block:
    ctx.stats.resumed = Resumed(resume.num_batches, num_seqs, time.perf_counter() - start, is_read=False)
    return Block([], [])
