"""A window of the epoch whose data was read at once."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np

from returnn.datasets._basic.epoch_order import select_order
from returnn.datasets._hdf.reader import CorpusReader
from returnn.datasets.seq_order import SeqOrder

__all__ = ["SeqBlock"]

_MAX_SEQS = 4096
_MAX_BYTES = 16 << 20
# Steps of loader workers; larger ones are random access.
_MAX_STRIDE = 64


@dataclasses.dataclass
class SeqBlock:
    """Sequences start, start + stride, ... of the epoch. The data is filled in when first asked for."""

    start: int
    stride: int
    corpus_idxs: np.ndarray  # int64 [B]
    index: dict[int, int]  # position in the epoch -> index in the block
    streams: dict[str, tuple[np.ndarray, list[int]]] = dataclasses.field(default_factory=dict)  # flat, bounds
    tags: list[str] | None = None
    lens: list[tuple[int, ...]] | None = None

    @classmethod
    def empty(cls) -> SeqBlock:
        """:return: no sequence"""
        return cls(start=0, stride=1, corpus_idxs=np.zeros(0, dtype=np.int64), index={})

    def next(self, order: SeqOrder, start: int, reader: CorpusReader, keys: Sequence[str]) -> SeqBlock:
        """
        Blocks grow while the sequences are asked for one after the other, or in steps of equal size
        (as a loader worker does, that delivers each W-th sequence).

        :param order: of the epoch
        :param start: the sequence that this block does not have
        :param reader: of the corpus
        :param keys: data keys
        :return: block from this sequence on: at least one sequence, as many as the limits allow
        """
        num = len(self.index)
        stride, max_seqs = 1, 1
        if num and start == self.start + num * self.stride:
            stride, max_seqs = self.stride, min(4 * num, _MAX_SEQS)
        elif num == 1 and 0 < start - self.start <= _MAX_STRIDE:
            stride, max_seqs = start - self.start, 4
        corpus_idxs = select_order(order, slice(start, start + max_seqs * stride, stride))
        if len(corpus_idxs) > 1:
            num_bytes = np.zeros(len(corpus_idxs), dtype=np.int64)
            for key in keys:
                num_bytes += reader.lens(key)[corpus_idxs].astype(np.int64) * reader.frame_bytes(key)
            fitting = int(np.searchsorted(np.cumsum(num_bytes), _MAX_BYTES, side="right"))
            corpus_idxs = corpus_idxs[: max(fitting, 1)]
        positions = range(start, start + len(corpus_idxs) * stride, stride)
        return SeqBlock(
            start=start,
            stride=stride,
            corpus_idxs=corpus_idxs,
            index=dict(zip(positions, range(len(positions)), strict=True)),
        )
