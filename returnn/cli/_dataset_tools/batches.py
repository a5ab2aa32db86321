"""The batches that the engine would make of an epoch, without loading data where the dataset knows its lengths."""

from __future__ import annotations

import dataclasses
import time
from collections import Counter
from collections.abc import Iterator
from typing import Any, TextIO

import numpy

from returnn.cli._dataset_tools.dump import Progress
from returnn.cli._dataset_tools.lengths import LengthTable
from returnn.datasets._loading.len_filter import DropReason, LenFilter
from returnn.datasets._loading.per_seq import iter_blocks_per_seq
from returnn.datasets._loading.plan import Items, Planner, probe_bulk
from returnn.datasets._loading.source import PassContext, SourceOptions
from returnn.datasets.basic import Dataset
from returnn.log import log
from returnn.util.numbers_dict import NumbersDict
from returnn.util.terminal import is_tty, progress_bar_with_time
from returnn.util.time_format import hms_fraction

__all__ = ["Batches", "BatchAnalysis", "iter_batches", "analyze_batches"]


@dataclasses.dataclass
class Batches:
    """
    Some consecutive batches, arrays [n].

    :param first: position of the first sequence in the epoch
    :param num_seqs: sequences (or chunks) of each
    :param frames: data key -> frames without padding
    :param max_lens: data key -> longest sequence
    """

    first: numpy.ndarray
    num_seqs: numpy.ndarray
    frames: dict[str, numpy.ndarray]
    max_lens: dict[str, numpy.ndarray]

    def __len__(self) -> int:
        return len(self.first)


def iter_batches(dataset: Dataset, options: SourceOptions, epoch: int, stats_out: BatchAnalysis) -> Iterator[Batches]:
    """
    One pass of one worker, by the planning of the engine's data loader.

    :param dataset: whose epoch is started
    :param options: of this worker
    :param epoch: from 1
    :param stats_out: at the end gets the dropped sequences and warnings
    """
    ctx = PassContext(dataset, options, epoch)
    try:
        ctx.start()
        stats_out.start(dataset)
        keys = probe_bulk(dataset)
        if keys is None:
            yield from _iter_loaded(ctx)
        else:
            for items, ends in Planner(ctx, keys).iter_plans():
                yield _batches_of_plan(ctx, items, ends)
    except Exception as exc:
        ctx.locate(exc)  # adds the place to the text
        raise
    stats_out.dropped.update(ctx.stats.dropped)
    stats_out.notes += [note for note in ctx.stats.notes if note not in stats_out.notes]


def _batches_of_plan(ctx: PassContext, items: Items, ends: list[int]) -> Batches:
    starts = numpy.array([0, *ends[:-1]], dtype=numpy.int64)
    num_seqs = numpy.array(ends, dtype=numpy.int64) - starts
    lens = {key: values[: ends[-1]] for key, values in items.lens.items()}
    return Batches(
        first=items.seq_idx[starts] * ctx.shard_count + ctx.shard_index,
        num_seqs=num_seqs,
        frames={key: numpy.add.reduceat(values, starts) for key, values in lens.items()},
        max_lens={key: numpy.maximum.reduceat(values, starts) for key, values in lens.items()},
    )


def _iter_loaded(ctx: PassContext) -> Iterator[Batches]:
    for block in iter_blocks_per_seq(ctx):
        for batch, info in zip(block.batches, block.infos, strict=True):
            first = ctx.epoch_position(int(numpy.asarray(batch["seq_idx"]).flat[0]))
            yield Batches(
                first=numpy.array([first]),
                num_seqs=numpy.array([info.num_seqs]),
                frames={key: numpy.array([num]) for key, num in info.frames.items()},
                max_lens={key: numpy.array([num // info.num_seqs]) for key, num in info.padded_frames.items()},
            )


@dataclasses.dataclass
class _KeySums:
    """
    Of one data key.

    :param frames: without padding
    :param padded: with padding
    :param peak: largest padded size of a batch
    :param peak_text: about that batch
    """

    frames: int = 0
    padded: int = 0
    peak: int = -1
    peak_text: str = ""


class BatchAnalysis:
    """Sums over batches."""

    def __init__(self, len_filter: LenFilter) -> None:
        """:param len_filter: that the batches went through"""
        self._len_filter = len_filter
        self.batch_sizes = LengthTable(["num_seqs"])
        self.keys: dict[str, _KeySums] = {}
        self.dropped: Counter[DropReason] = Counter()
        self.notes: list[str] = []
        self.progress: Progress | None = None
        self.stopped = False  # before the end of the epoch

    def start(self, dataset: Dataset) -> None:
        """:param dataset: has started an epoch"""
        self.progress = Progress(dataset)

    @property
    def num_batches(self) -> int:
        """:return: number of batches so far"""
        return len(self.batch_sizes.lens("num_seqs"))

    def add(self, batches: Batches, *, worker: str) -> None:
        """
        :param batches: the next ones
        :param worker: text about the worker, for the largest batch
        """
        num_before = self.num_batches
        for key, frames in batches.frames.items():
            sums = self.keys.setdefault(key, _KeySums())
            padded = batches.max_lens[key] * batches.num_seqs
            sums.frames += int(frames.sum())
            sums.padded += int(padded.sum())
            largest = int(padded.argmax())
            if int(padded[largest]) > sums.peak:
                sums.peak = int(padded[largest])
                sums.peak_text = (
                    f"{sums.peak} frames = {int(batches.num_seqs[largest])} seqs x {int(batches.max_lens[key][largest])}"
                    f" (batch {num_before + largest}{worker})"
                )
        for num in batches.num_seqs.tolist():
            self.batch_sizes.add({"num_seqs": num})

    def write(self, stream: TextIO) -> None:
        """:param stream: gets the summary as text"""
        sizes = self.batch_sizes.lens("num_seqs")
        print(f"Num batches (steps): {len(sizes)}", file=stream)
        print(f"Num seqs: {int(sizes.sum())}", file=stream)
        for (reason, key), count in self.dropped.items():
            limit = "" if key is None else f" ({key!r}, limit {self._len_filter.limit_of(reason, key)})"
            print(f"Num dropped seqs, {reason}{limit}: {count}", file=stream)
        if len(sizes):
            self.batch_sizes.stats("num_seqs").dump(stream=stream, stream_prefix="Batch num seqs ")
        for key, sums in self.keys.items():
            print(f"Data key {key!r}:", file=stream)
            print(f"  Num frames: {sums.padded}", file=stream)
            print(f"  Num used frames: {sums.frames}", file=stream)
            print(f"  Fraction used frames: {sums.frames / max(sums.padded, 1)}", file=stream)
            print(f"  Padding: {100.0 * (1.0 - sums.frames / max(sums.padded, 1)):.2f}%", file=stream)
            print(f"  Largest batch: {sums.peak_text}", file=stream)


def analyze_batches(
    dataset: Dataset, options: SourceOptions, *, epoch: int, end: int | None, num_workers: int
) -> BatchAnalysis:
    """
    Go through the batches of an epoch; print each at verbosity 5, and a summary.

    :param dataset: without the order of an epoch
    :param options: for the main process
    :param epoch: from 1
    :param end: position of the last sequence that may start a batch; None: no limit
    :param num_workers: of the loader: with several, each makes batches of its own sequences, one worker after the other here
    """
    start_time = time.monotonic()
    analysis = BatchAnalysis(options.len_filter)
    num_shards = 1 if options.is_global else max(num_workers, 1)
    show_bar = is_tty() and not log.verbose[5]
    for worker in range(num_shards):
        worker_text = f" of worker {worker}" if num_shards > 1 else ""
        for batches in iter_batches(dataset, options.for_worker(worker, num_shards), epoch, analysis):
            progress = analysis.progress
            assert progress is not None, "set when the epoch starts"
            is_last = False
            if end is not None:
                num_inside = int(numpy.searchsorted(batches.first, end, side="right"))
                if num_inside < len(batches):
                    analysis.stopped = is_last = True
                    batches = _head(batches, num_inside)
            if log.verbose[5]:
                _print_batches(batches, analysis.num_batches, progress, worker_text)
            elif show_bar and len(batches):
                progress_bar_with_time(progress.frac(int(batches.first[-1])), prefix="batches")
            if len(batches):
                analysis.add(batches, worker=worker_text)
            if is_last:
                break
    if show_bar:
        progress_bar_with_time(1.0, prefix="batches")
    for note in analysis.notes:
        print(note, file=log.v1)
    total_time = hms_fraction(time.monotonic() - start_time)
    print(f"Done. Total time {total_time}. More seqs which we did not dumped: {analysis.stopped}", file=log.v2)
    print(f"Dataset epoch {epoch}, order {dataset.seq_ordering!r}.", file=log.v1)
    analysis.write(log.v1)
    return analysis


def _head(batches: Batches, num: int) -> Batches:
    return Batches(
        batches.first[:num],
        batches.num_seqs[:num],
        {key: values[:num] for key, values in batches.frames.items()},
        {key: values[:num] for key, values in batches.max_lens.items()},
    )


def _print_batches(batches: Batches, first_idx: int, progress: Progress, worker_text: str) -> None:
    for i, (first, num_seqs) in enumerate(zip(batches.first.tolist(), batches.num_seqs.tolist(), strict=True)):
        used: dict[str, Any] = {key: int(values[i]) for key, values in batches.frames.items()}
        padded = {key: int(values[i]) * num_seqs for key, values in batches.max_lens.items()}
        fractions = {key: used[key] / max(padded[key], 1) for key in used}
        frac = progress.frac(first - 1) if first else 0.0
        print(
            f"{progress.text(first, frac)}, batch {first_idx + i}{worker_text}, num seqs {num_seqs}, "
            f"frames {NumbersDict(padded)}, used {NumbersDict(used)} ({NumbersDict(fractions)})",
            file=log.v5,
        )
