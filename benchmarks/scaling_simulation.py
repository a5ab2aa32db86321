#!/usr/bin/env python3
"""
Checks at the size of large trainings, without data, that each sequence is read exactly once: orders, sub epochs, shards of
ranks and workers, and files of ranks, by the functions of the library itself. Then what orders and tags cost.

    python benchmarks/scaling_simulation.py [--full]

Without --full up to 10 million sequences on 8 ranks, in under a minute; with it up to 10 million on 1,000 ranks in arrays.
A thousand million sequences are checked by arithmetic in both (the order "default" is a range, and so is each part of it),
for all sub epochs, and by random positions. Exit code 1 if a check fails. docs/scaling.md explains the numbers.

Columns: seconds (of the processor) and peak bytes of ordering and cutting on one rank; balance: most / mean over the streams (a stream is one
worker of one rank), in sequences and in frames, over one sub epoch.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import sys
import time
import tracemalloc
from collections.abc import Callable, Sequence

import numpy

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from returnn.datasets._distrib_files import distribute_evenly  # noqa: E402
from returnn.datasets._hdf.tag_table import TagTable  # noqa: E402
from returnn.datasets._loading.len_filter import LenFilter  # noqa: E402
from returnn.datasets._loading.limits import BatchLimits  # noqa: E402
from returnn.datasets._loading.source import SourceOptions  # noqa: E402
from returnn.datasets.seq_order import (  # noqa: E402
    epoch_seed,
    order_seqs,
    order_to_array,
    parse_seq_ordering,
    part_of_order,
)
from returnn.options.batching import BatchingOptions  # noqa: E402


@dataclasses.dataclass(frozen=True)
class Case:
    """One size of a training."""

    num_seqs: int
    num_ranks: int
    num_workers: int  # per rank
    partition_epoch: int
    ordering: str = "random"

    def __str__(self) -> str:
        return f"{self.num_seqs:>13,} {self.num_ranks:>6,} {self.num_workers:>7} {self.partition_epoch:>5} {self.ordering:<14}"


SMALL = (
    Case(100_000, 3, 0, 1),
    Case(1_000_003, 8, 2, 7),
    Case(1_000_003, 1000, 4, 1, "laplace:.1000"),
    Case(1_000_003, 1000, 4, 1, "laplace:.100000"),
    Case(10_000_000, 8, 2, 1),
)
FULL = (
    Case(10_000_000, 8, 2, 20, "laplace:.1000"),
    Case(10_000_000, 1000, 4, 1),
    Case(10_000_000, 1000, 4, 1, "laplace:.100000"),
    Case(10_000_000, 1000, 4, 20, "laplace:.100000"),
)
ARITHMETIC = (
    Case(10_000_000, 1000, 4, 20, "default"),
    Case(1_000_000_000, 1000, 4, 1000, "default"),
    Case(1_000_000_007, 999, 3, 997, "default"),
    Case(999, 1000, 4, 1, "default"),
)
#: (files, ranks, partition_epoch)
FILES = ((2_000, 8, 10), (100_000, 1000, 20), (100_000, 1000, 1))


class Checks:
    """Collects what is wrong."""

    def __init__(self) -> None:
        self.num = 0
        self.failed: list[str] = []

    def __call__(self, condition: bool, text: str) -> None:
        """:param condition: must be true. :param text: what is wrong if it is not"""
        self.num += 1
        if not condition:
            self.failed.append(text)


def streams(case: Case) -> list[tuple[int, int]]:
    """:return: (index, count) of each worker of each rank: every count-th sequence from index on"""
    batching = BatchingOptions(batch_size=1)
    base = SourceOptions(
        name="train", role="train", limits=BatchLimits.from_options(batching, drop_last=False), len_filter=LenFilter()
    )
    result = []
    for rank in range(case.num_ranks):
        of_rank = dataclasses.replace(base, rank=rank, num_ranks=case.num_ranks)
        for worker in range(max(case.num_workers, 1)):
            result.append(of_rank.for_worker(worker, case.num_workers).shard)
    return result


def lengths(num_seqs: int) -> numpy.ndarray:
    """:return: lengths as those of spoken utterances, 10 to 3500 frames, mean about 600"""
    rng = numpy.random.default_rng(1)
    return numpy.clip(rng.lognormal(6.1, 0.75, num_seqs), 10, 3500).astype(numpy.int64)


def check_arrays(case: Case, check: Checks) -> tuple[float, int, float, float]:
    """
    All in arrays, all sub epochs of a full epoch.

    :return: seconds and peak bytes of one sub epoch on one rank; balance in sequences and in frames
    """
    ordering = parse_seq_ordering(case.ordering)
    lens = lengths(case.num_seqs)
    shares = streams(case)
    seen = numpy.zeros(case.num_seqs, dtype=numpy.uint8)
    balance_seqs = balance_frames = 0.0

    def order() -> numpy.ndarray:
        seed = epoch_seed(1, partition_epoch=case.partition_epoch)
        return order_to_array(order_seqs(ordering, case.num_seqs, seed=seed, seq_lens=lens))

    def one_sub_epoch() -> numpy.ndarray:
        index, count = shares[0]
        return order_to_array(part_of_order(order(), epoch=1, partition_epoch=case.partition_epoch))[index::count]

    secs, num_bytes = measure(one_sub_epoch)
    whole = order()
    for epoch in range(1, case.partition_epoch + 1):
        part = order_to_array(part_of_order(whole, epoch=epoch, partition_epoch=case.partition_epoch))
        sizes = numpy.zeros(len(shares), dtype=numpy.int64)
        frames = numpy.zeros(len(shares), dtype=numpy.int64)
        for i, (index, count) in enumerate(shares):
            stream = part[index::count]
            seen[stream] += 1
            sizes[i], frames[i] = len(stream), int(lens[stream].sum())
        check(int(sizes.max() - sizes.min()) <= 1, f"{case}: epoch {epoch}: streams of {sizes.min()} to {sizes.max()}")
        if epoch == 1:
            balance_seqs, balance_frames = sizes.max() / sizes.mean(), frames.max() / frames.mean()
    check(
        bool((seen == 1).all()), f"{case}: {int((seen == 0).sum())} sequences not read, {int((seen > 1).sum())} twice"
    )
    return secs, num_bytes, balance_seqs, balance_frames


def check_arithmetic(case: Case, check: Checks) -> tuple[float, int, float, float]:
    """
    On ranges: parts follow each other without gap; the streams of a part have all remainders of their common step.

    :return: as :func:`check_arrays`
    """
    ordering = parse_seq_ordering(case.ordering)
    shares = streams(case)
    order = order_seqs(ordering, case.num_seqs, seed=1)
    check(isinstance(order, range), f"{case}: the order is no range")

    def part(epoch: int) -> range:
        result = part_of_order(order, epoch=epoch, partition_epoch=case.partition_epoch)
        assert isinstance(result, range)
        return result

    secs, num_bytes = measure(lambda: [part(1)[index::count] for index, count in shares])
    counts = {count for _, count in shares}
    check(len(counts) == 1, f"{case}: streams with steps {sorted(counts)[:5]}")
    check(sorted(index for index, _ in shares) == list(range(len(shares))), f"{case}: not each remainder once")
    end = 0
    for epoch in range(1, case.partition_epoch + 1):
        check(part(epoch).start == end and part(epoch).step == 1, f"{case}: gap before sub epoch {epoch}")
        end = part(epoch).stop
    check(end == case.num_seqs, f"{case}: the sub epochs end at {end}")
    balance = 1.0
    for epoch in sorted({1, 2, case.partition_epoch // 2 + 1, case.partition_epoch}):
        if epoch > case.partition_epoch:
            continue
        whole = part(epoch)
        sizes = [len(whole[index::count]) for index, count in shares]
        check(sum(sizes) == len(whole), f"{case}: epoch {epoch}: streams have {sum(sizes)} of {len(whole)} sequences")
        check(max(sizes) - min(sizes) <= 1, f"{case}: epoch {epoch}: streams of {min(sizes)} to {max(sizes)}")
        balance = max(balance, max(sizes) * len(sizes) / max(sum(sizes), 1))
    rng = numpy.random.default_rng(1)
    for position in rng.integers(0, case.num_seqs, 1000).tolist():
        sub_epoch = next(e for e in near_epochs(case, position) if position in part(e))
        offset = position - part(sub_epoch).start
        owners = sum(offset % count == index for index, count in shares[:50])
        expected = int(any(offset % count == index for index, count in shares[:50]))
        check(owners == expected, f"{case}: position {position} belongs to {owners} of the first 50 streams")
    return secs, num_bytes, balance, float("nan")


def near_epochs(case: Case, position: int) -> list[int]:
    """:return: the sub epochs that may have a position"""
    guess = position * case.partition_epoch // case.num_seqs + 1
    return [e for e in (guess, guess - 1, guess + 1) if 1 <= e <= case.partition_epoch]


def check_files(num_files: int, num_ranks: int, partition_epoch: int, check: Checks) -> tuple[float, int, float]:
    """
    Files of DistributeFilesDataset with distrib_shard_files: bins of about equal size, one for each rank and sub epoch.

    :return: seconds, peak bytes; balance in bytes
    """
    sizes = (numpy.random.default_rng(1).lognormal(20, 0.5, num_files)).astype(numpy.int64)
    num_bins = num_ranks * partition_epoch
    secs, num_bytes = measure(lambda: distribute_evenly(sizes, num_bins))
    bins = distribute_evenly(sizes, num_bins)
    where = f"{num_files} files, {num_ranks} ranks, partition_epoch {partition_epoch}"
    end = 0
    for files in bins:
        check(files.start == end and len(files) > 0, f"{where}: gap or empty part before file {files.start}")
        end = files.stop
    check(end == num_files and len(bins) == num_bins, f"{where}: {len(bins)} parts end at file {end}")
    loads = [int(sizes[files.start : files.stop].sum()) for files in bins]
    return secs, num_bytes, max(loads) * len(loads) / sum(loads)


def measure(func: Callable[[], object]) -> tuple[float, int]:
    """:return: seconds of the processor for a call, and peak bytes of another one"""
    start = time.process_time()
    func()
    secs = time.process_time() - start
    tracemalloc.start()
    func()
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return secs, peak


def kept(func: Callable[[], object]) -> int:
    """:return: bytes of the result of a call"""
    tracemalloc.start()
    result = func()
    current = tracemalloc.get_traced_memory()[0]
    tracemalloc.stop()
    del result
    return current


def print_costs(num_seqs: int) -> None:
    """What the order of an epoch and the table of tags cost, per million sequences."""
    lens = lengths(num_seqs)
    per_million = num_seqs / 1e6

    def of(text: str) -> Callable[[], object]:
        return lambda: order_seqs(parse_seq_ordering(text), num_seqs, seed=1, seq_lens=lens)

    def tags() -> list[bytes]:
        return [b"corpus/recording-%07d/segment-%09d" % (i // 100, i) for i in range(num_seqs)]

    table = TagTable.from_tags(tags())
    wanted = [f"corpus/recording-{i // 100:07d}/segment-{i:09d}" for i in range(0, num_seqs, max(num_seqs // 1000, 1))]
    tag_list = tags()
    rows: Sequence[tuple[str, Callable[[], object]]] = (
        *(
            (f"order {text}", of(text))
            for text in ("default", "random", "laplace:.1000", "sorted", "sort_bin_shuffle:.64")
        ),
        ("lengths, int64", lambda: numpy.array(lens)),
        ("table of tags (43 bytes each)", lambda: TagTable.from_tags(tag_list)),
        ("list of tags, as Python objects", lambda: [tag.decode() for tag in tag_list]),
        ("shard of one of 1,000 ranks", lambda: numpy.arange(num_seqs)[7::4000].copy()),
    )
    title = "cost per million sequences"
    print(f"\n{title:<34} {'seconds':>9} {'peak B/seq':>11} {'kept B/seq':>11}   (measured with {num_seqs:,})")
    for name, func in rows:
        secs, num_bytes = measure(func)
        print(
            f"{name:<34} {secs / per_million:>9.4f} {num_bytes / num_seqs:>11.1f} {kept(func) / num_seqs:>11.1f}",
            flush=True,
        )
    for name in ("1,000 look-ups by tag, the first", "1,000 look-ups by tag, later"):
        start = time.process_time()
        table.find(wanted)
        secs = time.process_time() - start
        print(f"{name:<34} {secs:>9.4f}   (not per million: in the table of {num_seqs:,})")


def main() -> int:
    """:return: exit code"""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--full", action="store_true", help="10 million sequences on 1,000 ranks too")
    parser.add_argument("--no_costs", action="store_true", help="only the checks")
    args = parser.parse_args()
    check = Checks()
    print(
        f"{'sequences':>13} {'ranks':>6} {'workers':>7} {'parts':>5} {'order':<14} {'seconds':>9} {'MB':>8} {'balance':>17}"
    )
    for case in (*SMALL, *(FULL if args.full else ()), *ARITHMETIC):
        func = check_arithmetic if case in ARITHMETIC else check_arrays
        secs, num_bytes, seqs, frames = func(case, check)
        balance = f"{seqs:.4f} {frames:.4f}" if frames == frames else f"{seqs:.4f}    -   "
        print(f"{case} {secs:>9.4f} {num_bytes / 1e6:>8.1f} {balance:>17}", flush=True)
    print(f"\n{'files':>13} {'ranks':>6} {'parts':>5} {'seconds':>9} {'MB':>8} {'balance':>9}")
    for num_files, num_ranks, parts in FILES:
        secs, num_bytes, balance_bytes = check_files(num_files, num_ranks, parts, check)
        print(f"{num_files:>13,} {num_ranks:>6,} {parts:>5} {secs:>9.4f} {num_bytes / 1e6:>8.1f} {balance_bytes:>9.4f}")
    if not args.no_costs:
        print_costs(10_000_000 if args.full else 1_000_000)
    print(f"\n{check.num} checks, {len(check.failed)} failed")
    for text in check.failed[:20]:
        print("FAILED:", text)
    return 1 if check.failed else 0


if __name__ == "__main__":
    sys.exit(main())
