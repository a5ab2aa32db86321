"""
Chunking as data pipe.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy

from returnn.datasets._loading.chunking import chunk_bounds
from returnn.datasets._loading.per_seq import chunk_sample, sample_lengths
from returnn.options.batching import NON_DATA_KEYS, parse_chunking
from returnn.torch.data.stages import IterStage

__all__ = ["ChunkingIterDataPipe"]


class ChunkingIterDataPipe(IterStage):
    """Cuts sequences into chunks. Keys that are not chunked are given whole to each chunk (shared, not copied)."""

    def __init__(
        self,
        dataset: Iterable[dict[str, Any]],
        chunking: Any,
        *,
        min_chunk_size: Any = 0,
        rng: numpy.random.RandomState | numpy.random.Generator | None = None,
    ):
        """
        :param dataset: sequences: data key -> array. Any: other values are given to each chunk
        :param chunking: either form, see options chunking_options and chunking. Any: several types
        :param min_chunk_size: belongs to the older form: int, or dict of data key to int
        :param rng: for random_chunk_start. None: numpy's global generator
        :raises ConfigError: invalid chunking
        """
        super().__init__(dataset)
        self._chunking = parse_chunking(chunking, min_chunk_size=min_chunk_size)
        self._rng = rng

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """
        :return: chunks
        :raises DatasetError: the number of chunks differs between the keys
        """
        chunking = self._chunking
        draw = self._rng.random if self._rng is not None else numpy.random.random
        for sample in self._dataset:
            if chunking is None:
                yield sample
                continue
            lengths = sample_lengths(sample)
            streams = chunking.for_keys([key for key in lengths if key not in NON_DATA_KEYS])
            start_frac = float(draw()) if chunking.random_start else 0.0
            where = f"Sequence {str(sample.get('seq_tag', '?'))!r}"
            for bounds in chunk_bounds(lengths, streams, start_frac=start_frac, where=where):
                yield chunk_sample(sample, bounds)
