"""What tools/dump-dataset.py does: one pass over some sequences of an epoch, with statistics."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TextIO

import numpy

from returnn.cli._dataset_tools.lengths import LengthTable
from returnn.cli._dataset_tools.reading import Seq, iter_seqs, positions_from, sample_positions
from returnn.cli._dataset_tools.seq_dumpers import (
    JsonLines,
    SeqDumper,
    create_dumper,
    prepare_folder,
    print_json,
    to_json,
)
from returnn.config import Config
from returnn.datasets._loading.len_filter import LenFilter
from returnn.datasets.basic import Dataset
from returnn.errors import ConfigError, DatasetError, describe
from returnn.log import log
from returnn.options.batching import BatchingOptions
from returnn.util.literal import LiteralError, parse_literal
from returnn.util.pprint import set_pretty_print_as_bytes, set_pretty_print_default_limit
from returnn.util.stats import Stats
from returnn.util.terminal import is_tty, progress_bar_with_time
from returnn.util.time_format import hms, hms_fraction

__all__ = ["DumpOptions", "dump_dataset", "show_dataset_info", "show_num_seqs", "parse_length_limit", "Progress"]

#: Frames for which statistics are computed at once.
_STATS_FRAMES = 1 << 14
#: Text before the progress bar.
_BAR = "dump-dataset"


@dataclasses.dataclass(frozen=True)
class DumpOptions:
    """
    :param kind: what to do with each sequence, see DUMPERS
    :param key: data key that comes first, for lengths and statistics
    :param epoch: whose order
    :param start: first position
    :param end: last position, inclusive; None: up to the end
    :param tags: only these, in this order
    :param sample: only so many, chosen at random
    :param seed: of that choice
    :param prefix: of files; None: a new private folder
    :param postfix: of files with arrays
    :param stats: collect mean and standard deviation of the data
    :param stats_prefix: write them to files
    :param len_filter: sequences outside are not dumped
    :param histogram_bins: 0: no histogram of the lengths
    :param json: one line of JSON per sequence, and one with the summary
    """

    kind: str
    key: str
    epoch: int = 1
    start: int = 0
    end: int | None = None
    tags: tuple[str, ...] | None = None
    sample: int | None = None
    seed: int = 1
    prefix: str | None = None
    postfix: str = ".txt.gz"
    stats: bool = False
    stats_prefix: str | None = None
    len_filter: LenFilter = dataclasses.field(default_factory=LenFilter)
    histogram_bins: int = 0
    json: bool = False


def parse_length_limit(
    text: str | None, config: Config, name: Literal["min_seq_length", "max_seq_length"], *, known_keys: Sequence[str]
) -> int | float | Mapping[str, Any] | None:
    """
    :param text: of the command line: a number, a dict literal data key -> number, or "config"
    :param config: for the last form
    :param name: of the option
    :param known_keys: data keys of the dataset; the config may have others too, about which there is a warning
    :return: the limit; None: no limit
    :raises ConfigError: invalid, or a key on the command line that the dataset does not have
    """
    if text is None:
        return None
    if text.strip() == "config":
        limit = getattr(BatchingOptions.from_config(config), name)
        for key in _unknown_keys(limit, known_keys):
            print(
                f"Warning: {name} of the config has the key {key!r}, so it drops nothing: the data keys are {[*known_keys]}.",
                file=log.v1,
            )
        return limit  # type: ignore[no-any-return]
    try:
        value = parse_literal(text)
    except LiteralError as exc:
        raise ConfigError(
            describe(f"--{name} {text} is invalid", expected='number, dict literal, or "config"', got=text)
        ) from exc
    for key in _unknown_keys(value, known_keys):
        raise ConfigError(
            describe(
                f"--{name} {text}: the dataset has no data key {key!r}", expected=f"one of {[*known_keys]}", got=key
            )
        )
    if name == "min_seq_length":
        return BatchingOptions(min_seq_length=value).min_seq_length
    return BatchingOptions(max_seq_length=value).max_seq_length


def _unknown_keys(limit: Any, known_keys: Sequence[str]) -> list[str]:
    """Any: number, dict, or wrong"""
    return [key for key in limit if key not in known_keys] if isinstance(limit, Mapping) else []


class Progress:
    """How far a pass over an epoch is, as text."""

    def __init__(self, dataset: Dataset, *, start: int = 0):
        """
        :param dataset: with the order of the epoch
        :param start: first position
        """
        self._dataset = dataset
        self._start_time = time.monotonic()
        self._start_frac = (dataset.get_complete_frac(start - 1) or 0.0) if start else 0.0
        try:
            self._num = str(dataset.num_seqs)
        except NotImplementedError:
            estimate = dataset.estimated_num_seqs
            self._num = "?" if estimate is None else f"~{estimate}"

    def frac(self, position: int) -> float:
        """:return: how much of the epoch is done after this sequence; 0: not known"""
        return float(self._dataset.get_complete_frac(position) or 0.0)

    def text(self, position: int, frac: float | None = None) -> str:
        """
        :param position: of the sequence
        :param frac: None: see :meth:`frac`
        :return: e.g. "3/20 (20.00%) (0:00:12)", the last is the remaining time
        """
        frac = self.frac(position) if frac is None else frac
        text = f"{position}/{self._num} ({frac * 100:.02f}%)"
        done = frac - self._start_frac
        if done > 0:
            text += f" ({hms((time.monotonic() - self._start_time) / done * (1.0 - frac))})"
        return text


def show_dataset_info(dataset: Dataset, epoch: int, *, json: bool = False) -> None:
    """
    Print the data keys.

    :param dataset: with the order of the epoch
    :param epoch: of the order
    :param json: to stdout as one line, beside the log
    """
    keys, targets = list(dataset.get_data_keys()), list(dataset.get_target_list())
    print(f"Epoch: {epoch}", file=log.v3)
    print("Dataset keys:", keys, file=log.v3)
    print("Dataset target keys:", targets, file=log.v3)
    texts = []
    for key, labels in dataset.labels.items():
        shown = ", ".join(repr(str(label)) for label in labels[:3])
        texts.append(f"{key!r}: [{shown}]{'...' if len(labels) > 3 else ''} len {len(labels)}")
    print("Dataset labels:", ", ".join(texts) or None, file=log.v3)
    if json:
        info = {
            key: {
                "is_target": key in targets,
                "dim": dataset.get_data_dim(key),
                "sparse": dataset.is_data_sparse(key),
                "dtype": dataset.get_data_dtype(key),
                "shape": [None, *dataset.get_data_shape(key)],
                "num_labels": len(dataset.labels.get(key) or ()),
            }
            for key in keys
        }
        entry = {"class": type(dataset).__name__, "name": dataset.name, "epoch": epoch, "keys": info}
        print_json({"dataset": to_json(entry)})


def show_num_seqs(dataset: Dataset) -> None:
    """
    Print the number of sequences of the epoch, by going through it if the dataset does not know it.

    :param dataset: with the order of an epoch
    """
    print("Get num seqs.")
    print(f"estimated_num_seqs: {dataset.estimated_num_seqs}")
    try:
        print(f"num_seqs: {dataset.num_seqs}")
    except NotImplementedError as exc:
        print(f"num_seqs exception {exc!r}, which is valid, so we count.")
        num = 0
        while dataset.is_less_than_num_seqs(num):
            dataset.load_seqs(num, num + 1)
            if num and num % 10000 == 0:
                print(f"{num} ... ({dataset.get_tag(num)})", flush=True)
            num += 1
        print(f"accumulated num seqs: {num}")
    print("Done.")


class _Pass:
    """One pass."""

    def __init__(self, dataset: Dataset, options: DumpOptions, dumper: SeqDumper):
        self.dataset = dataset
        self.options = options
        self.dumper = dumper
        self.has_stats = options.stats or options.stats_prefix is not None
        keys = list(dict.fromkeys(dataset.get_data_keys()))
        self.lengths = LengthTable(keys)
        self.kept_lengths = LengthTable(keys) if options.len_filter else None
        self.stats = Stats()
        self._pending: list[numpy.ndarray] = []
        self._num_pending_frames = 0
        self.num_seqs = 0
        self.num_filtered = 0
        self.next_position = options.start

    def positions(self) -> Iterable[int]:
        """:return: those to dump"""
        options = self.options
        if options.sample is None:
            return positions_from(options.start, options.end)
        positions = sample_positions(
            self.dataset, options.sample, start=options.start, end=options.end, seed=options.seed
        )
        _init_seq_order(self.dataset, options)  # counting may have come to the end of it
        return positions

    def run(self) -> None:
        """Go through the sequences."""
        options = self.options
        positions = self.positions()
        progress = Progress(self.dataset, start=options.start)
        show_bar = options.kind == "null" and is_tty() and not options.json
        seqs = iter_seqs(
            self.dataset, positions, keys=self.lengths.keys, with_data=self.dumper.needs_data or self.has_stats
        )
        for seq in seqs:
            self.next_position = seq.position + 1
            self.num_seqs += 1
            self.lengths.add(seq.lens)
            if not self._is_kept(seq, progress):
                continue
            if show_bar and self.num_seqs % 100 == 1:
                progress_bar_with_time(progress.frac(seq.position), prefix=_BAR)
            if options.kind != "null":
                self.dumper.store(seq)
                self.dumper.show(seq, progress.text(seq.position))
            if self.has_stats:
                self._collect(seq)
        self._flush_stats()
        if show_bar:
            progress_bar_with_time(1.0, prefix=_BAR)

    def _is_kept(self, seq: Seq, progress: Progress) -> bool:
        if self.kept_lengths is None:
            return True
        len_filter = self.options.len_filter
        dropped = len_filter.reason(seq.lens)
        if dropped is None:
            self.kept_lengths.add(seq.lens)
            return True
        self.num_filtered += 1
        reason, key = dropped
        assert key is not None, "a length filter names the key"
        sign, limit = ">" if reason == "too long" else "<", len_filter.limit_of(reason, key)
        text = f"filtered out: len({key}) = {seq.lens[key]} {sign} {limit}"
        if self.options.json:
            print_json({"filtered": {"seq_idx": seq.position, "tag": seq.tag, "lens": seq.lens, "reason": text}})
        else:
            print(f"seq {progress.text(seq.position)} tag {seq.tag!r} {text}")
        return False

    def _collect(self, seq: Seq) -> None:
        data = numpy.atleast_1d(seq.data[self.options.key])
        if data.dtype.kind not in "biuf":
            raise DatasetError(
                describe(
                    f"No statistics over the data key {self.options.key!r}",
                    where=f"sequence {seq.tag!r}",
                    expected="numbers",
                    got=data.dtype.name,
                    todo="Give another --key",
                )
            )
        if not len(data):
            return
        self._pending.append(data)
        self._num_pending_frames += len(data)
        if self._num_pending_frames >= _STATS_FRAMES:
            self._flush_stats()

    def _flush_stats(self) -> None:
        """Many short sequences at once: several times faster."""
        if self._pending:
            self.stats.collect(numpy.concatenate(self._pending))
            self.stats.num_seqs += len(self._pending) - 1
        self._pending, self._num_pending_frames = [], 0

    def has_more(self) -> bool:
        """:return: whether the epoch has sequences that were not dumped"""
        if self.options.sample is not None and self.num_seqs < self.next_position - self.options.start:
            return True
        return self.options.start > 0 or self.dataset.is_less_than_num_seqs(self.next_position)

    def write_summary(self, stream: TextIO) -> None:
        """:param stream: gets the statistics as text"""
        options = self.options
        self.lengths.write(stream, prefix="Seq-length ", histogram_bins=options.histogram_bins)
        if self.kept_lengths is not None:
            self.kept_lengths.write(stream, prefix="Seq-length-filtered ", histogram_bins=options.histogram_bins)
            percent = 100.0 * self.num_filtered / max(self.num_seqs, 1)
            print(f"Filtered out {self.num_filtered} of {self.num_seqs} seqs ({percent:.2f}%).", file=stream)
        if self.has_stats:
            if not self.stats.num_seqs:
                raise DatasetError(
                    describe(
                        f"No statistics over the data key {options.key!r}: no sequence with at least one frame",
                        where=f"dataset {self.dataset.name!r}",
                        todo="Check --startseq, --endseq and the filters",
                    )
                )
            self.stats.dump(
                output_file_prefix=options.stats_prefix, stream=stream, stream_prefix=f"Data {options.key!r} "
            )

    def summary_json(self) -> dict[str, Any]:
        """:return: the summary as plain values. Any: numbers, texts, lists, dicts"""
        bins = self.options.histogram_bins
        result: dict[str, Any] = {
            "num_seqs": self.num_seqs,
            "seq_lengths": {key: self.lengths.to_json(key, histogram_bins=bins) for key in self.lengths.keys},
        }
        if self.kept_lengths is not None:
            kept = self.kept_lengths
            result["num_filtered"] = self.num_filtered
            result["filtered_seq_lengths"] = {key: kept.to_json(key, histogram_bins=bins) for key in kept.keys}
        if self.has_stats and self.stats.num_seqs:
            stats = self.stats
            result["stats"] = {
                "key": self.options.key,
                "num_frames": stats.total_data_len,
                "mean": stats.get_mean(),
                "std_dev": stats.get_std_dev(),
                "min": stats.min,
                "max": stats.max,
            }
        return to_json(result)  # type: ignore[no-any-return]


def _init_seq_order(dataset: Dataset, options: DumpOptions) -> None:
    if options.tags is None:
        dataset.init_seq_order(epoch=options.epoch)
    else:
        dataset.init_seq_order(epoch=options.epoch, seq_list=list(options.tags))


def dump_dataset(
    dataset: Dataset, options: DumpOptions, *, stdout_limit: float | None = None, as_bytes: bool = False
) -> None:
    """
    Dump sequences, then print statistics to the log.

    :param dataset: without the order of an epoch
    :param options: what to do
    :param stdout_limit: characters per array; inf: no limit; None: the default
    :param as_bytes: arrays as exact expressions
    """
    start_time = time.monotonic()
    if stdout_limit is not None:
        set_pretty_print_default_limit(stdout_limit)
        if stdout_limit == float("inf"):
            numpy.set_printoptions(threshold=sys.maxsize)
    set_pretty_print_as_bytes(as_bytes)
    if options.stats_prefix is not None:
        prepare_folder(f"{options.stats_prefix}.mean.txt")
    _init_seq_order(dataset, options)
    show_dataset_info(dataset, options.epoch, json=options.json)
    dumper = create_dumper(
        options.kind,
        dataset,
        key=options.key,
        prefix=options.prefix,
        postfix=options.postfix,
        brief=not log.verbose[2],
    )
    if options.json:
        dumper = JsonLines(dumper, options.kind)
    with dumper.exit_stack:
        dumper.open()
        work = _Pass(dataset, options, dumper)
        print(dumper.title(has_stats=work.has_stats), file=log.v3)
        work.run()
        path = dumper.close()
    total_time = hms_fraction(time.monotonic() - start_time)
    print(f"Done. Total time {total_time}. More seqs which we did not dumped: {work.has_more()}", file=log.v2)
    work.write_summary(log.v2)
    if path is not None:
        print(f"Dumped to file: {path}", file=log.v3)
    if options.json:
        print_json({"summary": work.summary_json()})
