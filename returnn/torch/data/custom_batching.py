"""
Batches by a pipeline of the user: the option torch_batching.
"""

from __future__ import annotations

import inspect
import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch.utils.data

from returnn.errors import ConfigError, DatasetError, OptionError
from returnn.options.custom_batching import BucketOptions, CustomBatching
from returnn.options.registry import closest_names
from returnn.torch.data.batching import BatchingIterDataPipe
from returnn.torch.data.bucketing import BucketOrderingIterDataPipe
from returnn.torch.data.chunking import ChunkingIterDataPipe
from returnn.torch.data.len_filter import LenFilterDataPipe
from returnn.torch.data.shuffling import ShufflingDataPipe
from returnn.torch.data.stages import IterStage
from returnn.util.fwd_compat import get_fwd_compat_kwargs

__all__ = ["PipelineBatching", "make_batches"]

#: Names that the option may have as class. Any: their constructors differ.
_CLASSES: dict[str, Callable[..., Any]] = {
    cls.__name__: cls
    for cls in (
        BatchingIterDataPipe,
        BucketOrderingIterDataPipe,
        ChunkingIterDataPipe,
        LenFilterDataPipe,
        ShufflingDataPipe,
    )
}
#: One sequence: data key -> array. Any: arrays and other values.
Sample = dict[str, Any]


class _SeqsOfPass(IterStage):
    """The sequences of the current pass: the bottom of the user's pipeline."""

    def __init__(self) -> None:
        super().__init__(())

    def start(self, seqs: Iterator[Sample]) -> None:
        """:param seqs: of a new pass"""
        self._dataset = seqs

    def __iter__(self) -> Iterator[Sample]:
        """:return: the sequences, once"""
        seqs, self._dataset = self._dataset, ()
        yield from seqs


class PipelineBatching:
    """
    From the sequences of a pass to batches. The pipeline is made once per process, where it is first needed, and iterated
    over anew in each pass.
    """

    def __init__(self, batching: CustomBatching, *, train: bool):
        """
        :param batching: from the options
        :param train: for training data
        :raises OptionError: the class is unknown or its arguments are wrong
        """
        self._batching = batching
        self._train = train
        self._pipeline: tuple[_SeqsOfPass, Iterable[Any]] | None = None
        if batching.class_name is not None:
            make_batches(batching, _SeqsOfPass(), train=train)  # mistakes show at the start

    def __getstate__(self) -> dict[str, Any]:
        """:return: without the pipeline, which each process makes itself"""
        return {**self.__dict__, "_pipeline": None}

    def __call__(self, seqs: Iterator[Sample]) -> Iterator[Sequence[Sample]]:
        """
        :param seqs: of one pass
        :return: batches: nonempty lists of sequences
        :raises DatasetError: the pipeline gives something else
        """
        if self._pipeline is None:
            bottom = _SeqsOfPass()
            self._pipeline = bottom, make_batches(self._batching, bottom, train=self._train)
        bottom, batches = self._pipeline
        first = next(seqs, None)
        if first is None:
            return
        _start_epoch(batches, int(first["epoch"]))
        bottom.start(itertools.chain([first], seqs))
        for batch in batches:
            if not isinstance(batch, (list, tuple)) or not all(
                isinstance(seq, dict) and "seq_tag" in seq for seq in batch
            ):
                raise DatasetError(
                    "torch_batching: each batch must be a list of sequences as the function got them (dicts with their "
                    f"data keys, seq_idx and seq_tag), got {_shown(batch)}."
                )
            if batch:
                yield batch


def _start_epoch(pipeline: object, epoch: int) -> None:
    """:param pipeline: stages of ours, or of the user at any place, which end the search"""
    while isinstance(pipeline, IterStage):
        pipeline.start_epoch(epoch)
        pipeline = pipeline._dataset


def make_batches(
    batching: BucketOptions | CustomBatching, dataset: torch.utils.data.IterableDataset, *, train: bool
) -> Iterable[Any]:  # Any: lists of sequences, if the user's function is right
    """
    :param batching: from the options
    :param dataset: sequences
    :param train: for training data
    :return: batches
    :raises ConfigError: the class is unknown, its arguments are wrong, or the function gives no iterable
    """
    if isinstance(batching, BucketOptions):
        return BucketOrderingIterDataPipe(
            dataset,
            buckets=batching.buckets,
            length_key=batching.length_key,
            random_bucket_prob=batching.random_bucket_prob,
            seed=batching.seed,
        )
    if batching.function is None:
        return _make_of_class(str(batching.class_name), dataset, batching.arguments)
    result: Any = batching.function(dataset, train=train, **get_fwd_compat_kwargs())
    if not isinstance(result, (Iterable, torch.utils.data.IterableDataset)):
        raise ConfigError(
            f"torch_batching: expected an iterable dataset of batches from the function, got {_shown(result)}."
        )
    return result


def _make_of_class(name: str, dataset: torch.utils.data.IterableDataset, arguments: Mapping[str, Any]) -> Iterable[Any]:
    pipe = _CLASSES.get(name)
    if pipe is None:
        near = closest_names(name, _CLASSES)
        raise OptionError(
            "torch_batching",
            expected=f"a class of returnn.torch.data.pipeline: {', '.join(_CLASSES)}",
            got=name,
            todo=f"Did you mean {near[0]!r}?" if near else "Or give a function of the dataset.",
        )
    try:
        inspect.signature(pipe).bind(dataset, **arguments)
    except TypeError as exc:
        raise OptionError(
            "torch_batching", expected=f"arguments of {name}", got=dict(arguments), todo=str(exc)
        ) from None
    batches: Iterable[Any] = pipe(dataset, **arguments)
    return batches


def _shown(value: Any) -> str:  # Any: whatever a pipeline of the user gives
    text = repr(value)
    return f"{type(value).__name__} {text if len(text) < 100 else text[:100] + '...'}"
