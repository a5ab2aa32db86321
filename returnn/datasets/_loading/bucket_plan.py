"""
The plan of a pass with buckets over a dataset that knows all lengths.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import numpy

from returnn.datasets._loading.buckets import TOO_LONG, Buckets
from returnn.datasets._loading.items import Items
from returnn.datasets._loading.source import PassContext
from returnn.errors import ConfigError
from returnn.options.custom_batching import BucketOptions

__all__ = ["iter_bucket_plans", "length_key_error"]


def length_key_error(options: BucketOptions, known: Iterable[str], name: str) -> ConfigError:
    """:return: what to raise if the data has no such key with a time axis"""
    return ConfigError(
        f"torch_batching: the dataset {name!r} has no data key {options.length_key!r} with a time axis, which is the "
        f"length_key of the buckets. It has {sorted(known)}."
    )


def iter_bucket_plans(
    ctx: PassContext, options: BucketOptions, segments: Iterable[Items]
) -> Iterator[tuple[Items, list[int]]]:
    """
    :param ctx: started
    :param options: of the buckets
    :param segments: all items of this worker's shard, in their order
    :return: items in the order of their batches, and the end of each batch in them
    :raises ConfigError: the data does not have the length key
    """
    buckets: Buckets[int] = Buckets(options, ctx.bucket_rng(options).random)
    limit = options.buckets[-1][0]
    pending: Items | None = None
    for new in segments:
        if not len(new):
            continue
        if options.length_key not in new.lens:
            raise length_key_error(options, new.lens, ctx.options.name)
        fits = new.lens[options.length_key] <= limit
        if not fits.all():
            ctx.drop(TOO_LONG, options.length_key, int((~fits).sum()))
            new = new.take(fits)
        first = len(pending) if pending is not None else 0
        items = pending.append(new) if pending is not None else new
        batches = []
        for i, length in enumerate(new.lens[options.length_key].tolist(), first):
            batch = buckets.add(i, length)
            if batch is not None:
                batches.append(batch)
        yield from _plan(items, batches)
        left = [i for batch in buckets.rest() for i in batch]
        pending = items.take(numpy.array(left, dtype=numpy.int64))
        place = {i: n for n, i in enumerate(left)}
        buckets.exchange(place.__getitem__)
    if pending is not None:
        yield from _plan(pending, list(buckets.rest()))


def _plan(items: Items, batches: list[list[int]]) -> Iterator[tuple[Items, list[int]]]:
    if batches:
        order = numpy.concatenate([numpy.array(batch, dtype=numpy.int64) for batch in batches])
        yield items.take(order), numpy.cumsum([len(batch) for batch in batches]).tolist()
