"""A window of the epoch whose data was read at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from returnn.datasets._hdf.reader import CorpusReader

__all__ = ["SeqBlock"]

_MAX_SEQS = 4096
_MAX_BYTES = 16 << 20


@dataclasses.dataclass
class SeqBlock:
    """Sequences start to start + num_seqs of the epoch. The data is filled in when first asked for."""

    start: int
    num_seqs: int
    corpus_idxs: np.ndarray
    streams: dict[str, tuple[np.ndarray, list[int]]] = dataclasses.field(default_factory=dict)  # flat, bounds
    tags: list[str] | None = None
    lens: list[tuple[int, ...]] | None = None

    @classmethod
    def empty(cls) -> SeqBlock:
        """:return: no sequence"""
        return cls(start=0, num_seqs=0, corpus_idxs=np.zeros(0, dtype=np.int64))

    @classmethod
    def choose(
        cls, order: np.ndarray, start: int, max_seqs: int, reader: CorpusReader, keys: Sequence[str]
    ) -> SeqBlock:
        """
        :param order: of the epoch
        :param start: first sequence
        :param max_seqs: wish
        :param reader: of the corpus
        :param keys: data keys
        :return: at least one sequence, as many as the limits allow
        """
        corpus_idxs = order[start : start + min(max_seqs, _MAX_SEQS)]
        if len(corpus_idxs) > 1:
            num_bytes = np.zeros(len(corpus_idxs), dtype=np.int64)
            for key in keys:
                num_bytes += reader.lens(key)[corpus_idxs].astype(np.int64) * reader.frame_bytes(key)
            num = int(np.searchsorted(np.cumsum(num_bytes), _MAX_BYTES, side="right"))
            corpus_idxs = corpus_idxs[: max(num, 1)]
        return cls(start=start, num_seqs=len(corpus_idxs), corpus_idxs=corpus_idxs)
