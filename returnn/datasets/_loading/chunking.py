"""
Chunking: where the chunks of sequences start and end.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from returnn.errors import DatasetError
from returnn.options.batching import ChunkStream

__all__ = ["chunk_bounds", "chunk_items"]


def _mismatch(counts: Mapping[str, int], where: str) -> DatasetError:
    # First sentence: as in the peers.
    shown = ", ".join(f"{key!r}: {count}" for key, count in counts.items())
    return DatasetError(
        "Chunking resulted in different number of chunks for different data keys. "
        f"{where} has {shown}. Make size, step and min_chunk_size of the keys fit to the ratio of their lengths."
    )


def chunk_bounds(
    lengths: Mapping[str, int],
    streams: Mapping[str, ChunkStream],
    *,
    start_frac: float = 0.0,
    where: str = "A sequence",
) -> list[dict[str, tuple[int, int]]]:
    """
    The chunks of one sequence.

    :param lengths: frames per data key
    :param streams: the chunked keys
    :param start_frac: r in [0, 1): the first chunk starts at frame int(r * step)
    :param where: for the error: which sequence
    :return: per chunk: key -> (start, end)
    :raises DatasetError: the keys have different numbers of chunks
    """
    bounds: dict[str, list[tuple[int, int]]] = {}
    for key, stream in streams.items():
        length = lengths[key]
        bounds[key] = [
            (start, min(start + stream.size, length))
            for start in range(int(start_frac * stream.step), length, stream.step)
            if min(stream.size, length - start) >= stream.min_chunk_size
        ]
    counts = {key: len(b) for key, b in bounds.items()}
    if len(set(counts.values())) > 1:
        raise _mismatch(counts, where)
    return [dict(zip(bounds, chunk, strict=True)) for chunk in zip(*bounds.values(), strict=True)]


def chunk_items(
    lengths: Mapping[str, numpy.ndarray], streams: Mapping[str, ChunkStream], *, start_fracs: numpy.ndarray | None
) -> tuple[numpy.ndarray, dict[str, numpy.ndarray], dict[str, numpy.ndarray]]:
    """
    The chunks of many sequences.

    :param lengths: per data key int64 [n]
    :param streams: the chunked keys, nonempty
    :param start_fracs: float64 [n], see :func:`chunk_bounds`; None: 0
    :return: index of the sequence of each chunk int64 [m], starts per chunked key [m], lengths per chunked key [m]
    :raises DatasetError: the keys have different numbers of chunks
    """
    counts: dict[str, numpy.ndarray] = {}
    firsts: dict[str, numpy.ndarray] = {}
    for key, stream in streams.items():
        lens = lengths[key]
        first = numpy.zeros_like(lens) if start_fracs is None else (start_fracs * stream.step).astype(numpy.int64)
        # Chunks get never longer towards the end, so the kept ones are the first: those starting at or before this frame.
        last_start = lens - max(stream.min_chunk_size, 1)
        count = numpy.where(last_start >= first, (last_start - first) // stream.step + 1, 0)
        if stream.min_chunk_size > stream.size:
            count = numpy.zeros_like(count)
        counts[key], firsts[key] = count, first
    keys = list(streams)
    for key in keys[1:]:
        bad = numpy.flatnonzero(counts[key] != counts[keys[0]])
        if len(bad):
            i = int(bad[0])
            raise _mismatch(
                {k: int(c[i]) for k, c in counts.items()},
                "A sequence with lengths " + ", ".join(f"{k!r}: {int(lengths[k][i])}" for k in keys),
            )
    count = counts[keys[0]]
    seq = numpy.repeat(numpy.arange(len(count), dtype=numpy.int64), count)
    chunk_idx = numpy.arange(len(seq), dtype=numpy.int64) - numpy.repeat(numpy.cumsum(count) - count, count)
    starts = {key: firsts[key][seq] + chunk_idx * stream.step for key, stream in streams.items()}
    chunk_lens = {key: numpy.minimum(stream.size, lengths[key][seq] - starts[key]) for key, stream in streams.items()}
    return seq, starts, chunk_lens
