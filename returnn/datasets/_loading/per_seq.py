"""
Batches from a dataset that gives one sequence after the other (any dataset, e.g. classes of users).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy

from returnn.datasets._loading.address import AddressKeeper, Resumed, ResumePoint, SeqAddress, can_jump
from returnn.datasets._loading.bucket_plan import length_key_error
from returnn.datasets._loading.buckets import TOO_LONG, Buckets
from returnn.datasets._loading.chunking import chunk_bounds
from returnn.datasets._loading.collate import collate_samples, is_list_dtype
from returnn.datasets._loading.limits import BatchState, SeqPosition
from returnn.datasets._loading.source import BatchInfo, BatchMaker, Block, PassContext, known_num_seqs
from returnn.datasets._loading.status_page import current_page, knows_tags_before_data
from returnn.options.batching import NON_DATA_KEYS, BucketOptions

__all__ = ["iter_blocks_per_seq", "sample_lengths", "chunk_sample", "iter_seqs"]

#: One sequence: data key -> array, seq_idx -> int, seq_tag -> str.
Sample = dict[str, Any]
#: What sequences tell of the pass, besides their data; batches have it in their statistics.
PASS_KEYS = ("epoch", "num_seqs", "complete_frac")


def sample_lengths(sample: Sample) -> dict[str, int]:
    """:return: frames of each value with a time axis"""
    return {
        key: value.shape[0] for key, value in sample.items() if isinstance(value, numpy.ndarray) and value.ndim >= 1
    }


def batch_lengths(sample: Sample, *, count_scalars: bool) -> dict[str, int]:
    """:return: lengths as they count for batch limits"""
    if count_scalars:
        return {
            key: value.shape[0] if isinstance(value, numpy.ndarray) and value.ndim >= 1 else 1
            for key, value in sample.items()
        }
    return sample_lengths(sample)


def iter_seqs(ctx: PassContext) -> Iterator[tuple[int, Sample]]:
    """
    All sequences of this worker's shard, from ``ctx.seq_idx`` on.

    :return: position in the epoch of the dataset, and the sequence. seq_idx counts within the shard
    """
    dataset = ctx.dataset
    keys: list[str] | None = None
    seq_idx = ctx.seq_idx
    keeper = ctx.keeper
    page = current_page()
    is_tag_known = page is not None and knows_tags_before_data(dataset)
    while True:
        position = ctx.epoch_position(seq_idx)
        ctx.position, ctx.seq_tag, ctx.seq_idx = position, None, seq_idx
        if keeper is not None:
            keeper.seq_begins(ctx.num_draws)
        if page is not None:
            page.at(position)
        if not dataset.is_less_than_num_seqs(position):
            break
        if page is not None and is_tag_known:
            page.at(position, dataset.get_tag(position))
        dataset.load_seqs(position, position + 1)
        if keys is None:
            keys = list(dataset.get_data_keys())
            ctx.check_keys(keys)
        sample: Sample = {key: dataset.get_data(position, key) for key in keys}
        sample["seq_idx"] = seq_idx
        sample["seq_tag"] = ctx.seq_tag = dataset.get_tag(position)
        if page is not None:
            page.have_read(str(ctx.seq_tag))
        yield position, sample
        seq_idx += 1
    ctx.position, ctx.seq_tag = None, None


def chunk_sample(sample: Sample, bounds: dict[str, tuple[int, int]]) -> Sample:
    """:return: one chunk: views of the chunked keys, all else shared with the sample"""
    return {key: value[bounds[key][0] : bounds[key][1]] if key in bounds else value for key, value in sample.items()}


def _iter_items(ctx: PassContext, *, first_chunk: int = 0) -> Iterator[tuple[int, Sample, int]]:
    """
    Filter and cut into chunks.

    :param first_chunk: to begin with in the first sequence
    :return: position in the epoch of the dataset, the sequence or chunk, the number of the chunk in its sequence
    """
    len_filter, chunking = ctx.options.len_filter, ctx.options.chunking
    for position, sample in iter_seqs(ctx):
        lengths = sample_lengths(sample)
        if len_filter:
            reason = len_filter.reason(lengths)
            if reason:
                ctx.drop(*reason)
                continue
        if chunking is None:
            yield position, sample, 0
            continue
        streams = chunking.for_keys([key for key in lengths if key not in NON_DATA_KEYS])
        start_frac = 0.0
        if chunking.random_start:
            start_frac = float(ctx.rng.random())
            ctx.num_draws += 1
        chunks = chunk_bounds(lengths, streams, start_frac=start_frac, where=f"Sequence {ctx.seq_tag!r}")
        if not chunks:
            ctx.drop("no chunk", None)
        for chunk_idx in range(first_chunk, len(chunks)):
            yield position, chunk_sample(sample, chunks[chunk_idx]), chunk_idx
        first_chunk = 0


def _complete_frac(ctx: PassContext, position: int) -> float | None:
    num_seqs = ctx.stats.num_seqs
    if num_seqs is None:
        try:
            # It may become known on the way (end of a stream), or the dataset knows its place in another way.
            frac = ctx.dataset.get_complete_frac(position, allow_only_lr_suitable=True)
        except (NotImplementedError, TypeError):  # TypeError: an override without the keyword
            frac = None
        if frac is not None:
            return frac
        num_seqs = known_num_seqs(ctx.dataset, estimated=True)
    if not num_seqs:
        return None
    return ctx.complete_frac(position, num_seqs)


def make_block(samples: list[Sample], complete_frac: float | None, next_address: SeqAddress | None = None) -> Block:
    """:return: block of one batch"""
    batch = collate_samples(samples)
    frames, padded = {}, {}
    for key in samples[0]:
        data = batch[key]
        if isinstance(data, numpy.ndarray) and data.ndim >= 2 and not is_list_dtype(data.dtype):
            frames[key] = int(batch[f"{key}:size1"].sum())
            padded[key] = data.shape[0] * data.shape[1]
    return Block([batch], [BatchInfo(len(samples), frames, padded, complete_frac, next_address)])


class _Batch(NamedTuple):
    """Sequences of a batch, how much of the epoch is done with it, where the next one begins (None: not known)."""

    samples: list[Sample]
    complete_frac: float | None = None
    next: SeqAddress | None = None


def _limited_batches(ctx: PassContext, address: SeqAddress | None = None) -> Iterator[_Batch]:
    """
    :param address: to begin there, not at the start of the epoch
    :return: batches by limits. If there is an address: before them an empty one, when the first sequence is read, as it is
        after the batch before
    """
    limits, keeper = ctx.options.limits, ctx.keeper
    state = BatchState(limits)
    samples: list[Sample] = []
    is_first = address is None or not address.batch_idx
    is_in_place = address is None
    num_batches = 0 if address is None else address.batch_idx
    frac: float | None = None
    if keeper is not None:
        keeper.reading_begins()
    for position, sample, chunk_idx in _iter_items(ctx, first_chunk=0 if address is None else address.chunk_idx):
        next_frac = _complete_frac(ctx, position)
        place = None
        if limits.has_functions:
            place = SeqPosition(sample["seq_idx"], ctx.epoch, ctx.stats.num_seqs, next_frac)
        if state.add(batch_lengths(sample, count_scalars=limits.count_scalars), place):
            num_batches += 1
            if keeper is None:
                yield _Batch(samples, frac)
            else:
                following = keeper.next_address(
                    ctx.seq_idx, chunk_idx, batch_idx=num_batches, dropped=ctx.stats.dropped
                )
                yield _Batch(samples, frac, following)
                keeper.reading_begins()
            samples = []
            is_first = False
        elif not is_in_place:
            is_in_place = True
            yield _Batch([])
            if keeper is not None:
                keeper.reading_begins()
        samples.append(sample)
        frac = next_frac
    if not is_in_place:
        yield _Batch([])
    if not samples:
        return
    if state.keeps_last(is_only_batch=is_first):
        num_batches += 1
        following = None
        if keeper is not None:
            following = keeper.next_address(ctx.seq_idx, 0, batch_idx=num_batches, dropped=ctx.stats.dropped)
        yield _Batch(samples, frac, following)
    else:
        ctx.drop("drop_last", None, len(samples))


def _bucket_batches(ctx: PassContext, options: BucketOptions) -> Iterator[_Batch]:
    """:return: batches of similar length"""
    buckets: Buckets[tuple[Sample, float | None]] = Buckets(options, ctx.bucket_rng(options).random)
    for position, sample, _ in _iter_items(ctx):
        length = sample_lengths(sample).get(options.length_key)
        if length is None:
            raise length_key_error(options, sample_lengths(sample), ctx.options.name)
        if not buckets.fits(length):
            ctx.drop(TOO_LONG, options.length_key)
            continue
        batch = buckets.add((sample, _complete_frac(ctx, position)), length)
        if batch is not None:
            yield _without_fracs(batch)
    for batch in buckets.rest():
        yield _without_fracs(batch)


def _without_fracs(batch: list[tuple[Sample, float | None]]) -> _Batch:
    return _Batch([sample for sample, _ in batch], max((frac for _, frac in batch if frac is not None), default=None))


def _made_batches(ctx: PassContext, maker: BatchMaker) -> Iterator[_Batch]:
    """:return: batches by a pipeline of the user, which gets sequences as the mainline peer has them"""
    num_seqs = numpy.array(-1 if ctx.stats.num_seqs is None else ctx.stats.num_seqs)

    def seqs() -> Iterator[Sample]:
        for position, sample, _ in _iter_items(ctx):
            frac = _complete_frac(ctx, position)
            yield {
                **sample,
                "seq_idx": numpy.array(sample["seq_idx"]),
                "seq_tag": numpy.array(sample["seq_tag"]),
                "epoch": numpy.array(ctx.epoch or 0),
                "num_seqs": num_seqs,
                "complete_frac": numpy.array(-1 if frac is None else frac, dtype=numpy.float32),
            }

    for batch in maker(seqs()):
        done = max((float(sample.get("complete_frac", -1)) for sample in batch), default=-1.0)
        samples = [{key: value for key, value in sample.items() if key not in PASS_KEYS} for sample in batch]
        for sample in samples:
            sample["seq_idx"], sample["seq_tag"] = int(sample["seq_idx"]), str(sample["seq_tag"])
        yield _Batch(samples, done if done >= 0 else None)


def iter_blocks_per_seq(ctx: PassContext, resume: ResumePoint | None = None) -> Iterator[Block]:
    """
    One pass, after ``ctx.start()``.

    :param resume: to go on within the pass
    :return: blocks of one batch each. If the pass goes on: before them an empty one
    """
    options = ctx.options
    custom = options.custom
    start = time.perf_counter()
    address = None
    num_read = 0
    jumps = can_jump(ctx.dataset)
    if custom is None and not options.limits.has_functions:
        keeper = AddressKeeper(ctx.dataset)
        address = resume.address if resume is not None else None
        if address is not None:
            num_read = 0 if jumps else _read_until(ctx, address.seq_idx)
            _begin_at(ctx, keeper, address)
        ctx.keeper = keeper
    if custom is None:
        batches = _limited_batches(ctx, address)
    elif isinstance(custom, BucketOptions):
        batches = _bucket_batches(ctx, custom)
    else:
        batches = _made_batches(ctx, custom)
    batch_idx = 0
    if resume is not None:
        num_skip = resume.num_batches
        if address is not None:
            next(batches)  # the empty one
            batch_idx = address.batch_idx
            num_skip -= options.num_taken(batch_idx)
        while num_skip and next(batches, None) is not None:
            num_skip -= options.takes_batch(batch_idx)
            batch_idx += 1
        num_read += ctx.seq_idx - (0 if address is None else address.seq_idx)
        secs = time.perf_counter() - start
        is_read = not jumps or address is None
        ctx.stats.resumed = Resumed(resume.num_batches, num_read, secs, is_read=is_read)
        yield Block([], [])
    for samples, frac, next_address in batches:
        if options.takes_batch(batch_idx):
            yield make_block(samples, frac, next_address)
        batch_idx += 1


def _read_until(ctx: PassContext, seq_idx: int) -> int:
    """
    For datasets that can only be read from the start: make the calls that the pass has made until there.

    :param seq_idx: in the shard, of the first sequence that is not read
    :return: number of sequences
    """
    if seq_idx:
        for _ in iter_seqs(ctx):
            if ctx.seq_idx + 1 >= seq_idx:
                break
    return seq_idx


def _begin_at(ctx: PassContext, keeper: AddressKeeper, address: SeqAddress) -> None:
    """Let the pass go on there. The dataset has read all before, or can jump."""
    ctx.seq_idx = address.seq_idx
    ctx.stats.dropped.update(address.dropped)
    if address.num_draws:
        ctx.num_draws = address.num_draws
        ctx.rng.bit_generator.advance(address.num_draws)  # type: ignore[attr-defined]  # PCG64 has it
    keeper.jump(address)
