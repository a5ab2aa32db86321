"""
Applies the function of the user to a stream of sequences.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy

from returnn.datasets._basic.children import seq_random_state
from returnn.datasets._postprocessing.streams import Seq, SeqConverter, StreamSpec
from returnn.errors import DatasetError
from returnn.tensor import TensorDict
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["MapFunctions", "Mapper", "worker_seed"]


@dataclasses.dataclass(frozen=True)
class MapFunctions:
    """
    :param map_seq: TensorDict -> TensorDict, or None
    :param map_seq_stream: iterator -> iterator of TensorDict, or None
    :param inputs: streams of the wrapped dataset
    :param outputs: streams of the result; None: the same
    :param where: dataset, for errors
    """

    map_seq: Callable[..., TensorDict] | None
    map_seq_stream: Callable[..., Iterator[TensorDict]] | None
    inputs: Mapping[str, StreamSpec]
    outputs: Mapping[str, StreamSpec] | None
    where: str


def worker_seed(seed: int, worker: int, num_workers: int) -> int:
    """
    :param seed: of the epoch
    :param worker: index of the process
    :param num_workers: number of processes; 0: none
    :return: seed of its random generator, as the peers choose it
    """
    if not num_workers:
        return seed
    return (seed * 683859 * num_workers + 30411 * worker) % (2**32 - 1)


class Mapper:
    """The functions, in one epoch."""

    def __init__(self, funcs: MapFunctions, *, epoch: int | None, seed: int, per_seq_seed: int | None):
        """
        :param funcs: of the user
        :param epoch: for them
        :param seed: of the random generator that they get
        :param per_seq_seed: if given, map_seq gets a generator that depends only on this, the sequence's position and tag
        """
        self._funcs = funcs
        self._epoch = epoch
        self._rng = numpy.random.RandomState(seed)
        self._per_seq_seed = per_seq_seed
        func: Any = funcs.map_seq or funcs.map_seq_stream
        kind = "map_seq" if funcs.map_seq is not None else "map_seq_stream"
        self._func_name = f"{kind} {getattr(func, '__name__', type(func).__name__)}"
        self._converter = SeqConverter(funcs.inputs, funcs.outputs, where=funcs.where, func_name=self._func_name)
        self._current: Seq | None = None  # the last one that went in
        self._is_reading_next = False

    def map_seq(self, seq: Seq) -> Seq:
        """:return: result of the function"""
        self._current = seq
        rng = self._rng
        if self._per_seq_seed is not None:
            rng = seq_random_state(self._per_seq_seed, seq.idx, seq.tag)
        assert self._funcs.map_seq is not None
        inputs = self._converter.to_tensor_dict(seq)
        try:
            res = self._funcs.map_seq(inputs, epoch=self._epoch, seq_idx=seq.idx, rng=rng, **get_fwd_compat_kwargs())
        except StopIteration as exc:  # who reads from us would take it for the end of the data
            error = RuntimeError(f"{self._func_name} raised StopIteration. Give next() a default.")
            raise error.with_traceback(exc.__traceback__) from None
        return self._converter.from_tensor_dict(res, idx=seq.idx, source=seq)

    def map_stream(self, seqs: Iterator[Seq]) -> Iterator[Seq]:
        """:return: what the function makes of the stream, or of each sequence"""
        if self._funcs.map_seq is not None:
            for seq in seqs:
                yield self.map_seq(seq)
            return
        assert self._funcs.map_seq_stream is not None
        results = self._funcs.map_seq_stream(
            self._inputs(seqs), epoch=self._epoch, rng=self._rng, **get_fwd_compat_kwargs()
        )
        if not hasattr(results, "__iter__"):
            raise DatasetError(
                f"{self._funcs.where}: {self._func_name} must give an iterator of TensorDict, "
                f"got {type(results).__name__}."
            )
        for idx, res in enumerate(results):
            yield self._converter.from_tensor_dict(res, idx=idx, source=None)

    def _inputs(self, seqs: Iterator[Seq]) -> Iterator[TensorDict]:
        self._is_reading_next = True
        for seq in seqs:
            self._is_reading_next = False
            self._current = seq
            yield self._converter.to_tensor_dict(seq)
            self._is_reading_next = True

    def describe_place(self) -> str:
        """:return: e.g. ``sequence 'a' (position 3)``, for errors"""
        if self._current is None:
            return "before the first sequence"
        after = "after " if self._is_reading_next else ""
        return f"{after}sequence {self._current.tag!r} (position {self._current.idx})"
