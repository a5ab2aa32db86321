"""Sequences of any dataset, in its order, read in blocks where the dataset can."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence
from typing import NamedTuple

import numpy

from returnn.datasets._loading.plan import BulkKeys, probe_bulk
from returnn.datasets.basic import Dataset

__all__ = ["Seq", "iter_seqs", "positions_from", "sample_positions"]

_BLOCK_BYTES = 16 << 20
_MAX_BLOCK_SEQS = 4096


class Seq(NamedTuple):
    """
    One sequence.

    :param position: in the order of the epoch
    :param tag: its name
    :param lens: data key -> number of frames; 1 for values without a time axis
    :param data: data key -> array; empty if it was not asked for
    """

    position: int
    tag: str
    lens: dict[str, int]
    data: dict[str, numpy.ndarray]


def positions_from(start: int, end: int | None) -> Iterable[int]:
    """
    :param start: first position
    :param end: last position, inclusive; None: up to the end of the epoch
    """
    return itertools.count(start) if end is None else range(start, end + 1)


def sample_positions(dataset: Dataset, num: int, *, start: int, end: int | None, seed: int) -> list[int]:
    """
    Random positions without repetition, sorted.

    :param dataset: with the order of an epoch. If it does not know its number of sequences, they are counted,
        and the epoch must be started again
    :param num: how many; all if there are not more
    :param start: first position
    :param end: last position, inclusive; None: the last of the epoch
    :param seed: of the choice
    """
    stop = count_seqs(dataset)
    if end is not None:
        stop = min(stop, end + 1)
    candidates = range(start, max(stop, start))
    if num >= len(candidates):
        return list(candidates)
    chosen = numpy.random.default_rng(seed).choice(len(candidates), num, replace=False, shuffle=False)
    return [candidates[i] for i in numpy.sort(chosen).tolist()]


def count_seqs(dataset: Dataset) -> int:
    """:return: number of sequences in the epoch, if need be by going through it"""
    try:
        return int(dataset.num_seqs)
    except NotImplementedError:
        position = 0
        while dataset.is_less_than_num_seqs(position):
            dataset.load_seqs(position, position + 1)
            position += 1
        return position


def iter_seqs(
    dataset: Dataset, positions: Iterable[int], *, keys: Sequence[str], with_data: bool = True
) -> Iterator[Seq]:
    """
    :param dataset: with the order of an epoch
    :param positions: ascending; ends at the end of the epoch
    :param keys: data keys
    :param with_data: False: only tags and lengths, which many datasets know without reading
    """
    bulk = probe_bulk(dataset)
    if bulk is not None and set(keys) <= set(bulk.keys):
        return _iter_bulk(dataset, bulk, positions, keys=keys, with_data=with_data)
    return _iter_one_by_one(dataset, positions, keys=keys, with_data=with_data)


def _iter_one_by_one(
    dataset: Dataset, positions: Iterable[int], *, keys: Sequence[str], with_data: bool
) -> Iterator[Seq]:
    for position in positions:
        if not dataset.is_less_than_num_seqs(position):
            return
        dataset.load_seqs(position, position + 1)
        lens = None if with_data else _lens_without_data(dataset, position, keys)
        data: dict[str, numpy.ndarray] = {}
        if lens is None:
            data = {key: dataset.get_data(position, key) for key in keys}
            lens = {key: int(value.shape[0]) if value.ndim >= 1 else 1 for key, value in data.items()}
        yield Seq(position, dataset.get_tag(position), lens, data if with_data else {})


def _lens_without_data(dataset: Dataset, position: int, keys: Sequence[str]) -> dict[str, int] | None:
    try:
        lens = dataset.get_seq_length(position)
    except NotImplementedError:
        return None
    if not all(key in lens for key in keys):
        return None
    return {key: int(lens[key]) for key in keys}


def _iter_bulk(
    dataset: Dataset, bulk: BulkKeys, positions: Iterable[int], *, keys: Sequence[str], with_data: bool
) -> Iterator[Seq]:
    num_seqs = int(dataset.num_seqs)
    valid = itertools.takewhile(lambda position: position < num_seqs, positions)
    num_block = 8  # the first blocks are small, for a quick first line of output
    while True:
        block = numpy.fromiter(itertools.islice(valid, num_block), dtype=numpy.int64)
        if not len(block):
            return
        lens = {
            key: bulk.lens[key][block] if key in bulk.lens else numpy.ones(len(block), dtype=numpy.int64)
            for key in keys
        }
        start = 0
        for end in _block_ends(lens, bulk, with_data=with_data):
            part = block[start:end]
            data = (dataset.read_seqs(part, keys) or {}) if with_data else {}
            tags = dataset.get_seq_tags(part)
            lens_lists = {key: values[start:end].tolist() for key, values in lens.items()}
            for i, (position, tag) in enumerate(zip(part.tolist(), tags, strict=True)):
                yield Seq(
                    position,
                    tag,
                    {key: values[i] for key, values in lens_lists.items()},
                    {key: ragged[i] for key, ragged in data.items()},
                )
            start = end
        num_block = min(num_block * 4, _MAX_BLOCK_SEQS)


def _block_ends(lens: dict[str, numpy.ndarray], bulk: BulkKeys, *, with_data: bool) -> list[int]:
    """:return: end of each part that is read at once, bounded in bytes"""
    num = len(next(iter(lens.values())))
    if not with_data:
        return [num]
    sizes = sum((lens[key] * bulk.frame_bytes[key] for key in lens), numpy.zeros(num, dtype=numpy.int64))
    ends: list[int] = []
    used = 0
    for i, size in enumerate(sizes.tolist()):
        if used and used + size > _BLOCK_BYTES:
            ends.append(i)
            used = 0
        used += size
    return [*ends, num]
