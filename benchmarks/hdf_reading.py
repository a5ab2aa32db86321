#!/usr/bin/env python3
"""
Speed of HDFDataset against raw h5py reads of the same file, in the same run.

    python benchmarks/hdf_reading.py [--num_seqs 50000] [--dir DIR]

Each line: case, ours, the limit, ratio (ours / limit of times; 1.0 is as fast as the raw read).
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from returnn.datasets.basic import Dataset  # noqa: E402
from returnn.datasets.hdf import HDFDataset  # noqa: E402
from returnn.datasets.meta import MetaDataset  # noqa: E402
from returnn.log import log  # noqa: E402


def make_file(path: str, num_seqs: int) -> None:
    """int32 data of mean length 20, int32 targets of mean length 8.5, fixed-length tags."""
    rnd = np.random.RandomState(1)
    lens = np.stack([rnd.randint(1, 40, num_seqs), rnd.randint(1, 17, num_seqs)], axis=1).astype("int32")
    with h5py.File(path, "w") as f:
        f["inputs"] = rnd.randint(0, 1000, lens[:, 0].sum()).astype("int32")
        f["targets/data/classes"] = rnd.randint(0, 50, lens[:, 1].sum()).astype("int32")
        f.require_group("targets/size").attrs["classes"] = [50, 1]
        f.require_group("targets/labels")
        f["seqLengths"] = lens
        f["seqTags"] = np.array([f"corpus/rec-{i // 100}/seq-{i}" for i in range(num_seqs)], dtype="S")
        f.attrs["inputPattSize"] = 1000


def best_of(func: Callable[[], object], repeats: int = 3) -> float:
    """:return: seconds of the fastest run"""
    best = float("inf")
    for _ in range(repeats):
        start = time.perf_counter()
        func()
        best = min(best, time.perf_counter() - start)
    return best


def report(case: str, ours: float, limit: float, *, num_seqs: int | None = None) -> None:
    """Print one line."""
    rate = f" = {num_seqs / ours:,.0f} seqs/s" if num_seqs else ""
    print(f"{case}: ours {ours:.3f} s{rate}, limit {limit:.3f} s, ratio {ours / limit:.1f}", flush=True)


def read_raw(path: str, *, per_seq: bool) -> int:
    """
    :param path: file
    :param per_seq: also cut the arrays into sequences and decode the tags, as any reader has to
    :return: number of pieces
    """
    with h5py.File(path, "r") as f:
        lens = f["seqLengths"][...]
        streams = [f["inputs"][...], f["targets/data/classes"][...]]
        tags = f["seqTags"][...]
    if not per_seq:
        return len(streams)
    count = 0
    bounds = [[0, *np.cumsum(lens[:, i]).tolist()] for i in range(2)]
    for i, tag in enumerate(tags.tolist()):
        tag.decode("utf8")
        for stream, bound in zip(streams, bounds, strict=True):
            count += len(stream[bound[i] : bound[i + 1]])
    return count


def iterate_per_seq(dataset: Dataset, *, full: bool) -> None:
    """
    :param dataset: with an order
    :param full: also tag and lengths
    """
    i = 0
    while dataset.is_less_than_num_seqs(i):
        dataset.load_seqs(i, i + 1)
        dataset.get_data(i, "data")
        dataset.get_data(i, "classes")
        if full:
            dataset.get_tag(i)
            dataset.get_seq_length(i)
        i += 1


def iterate_bulk(dataset: Dataset, block: int = 256) -> None:
    """Blocks of the size of batches."""
    for start in range(0, dataset.num_seqs, block):
        idxs = np.arange(start, min(start + block, dataset.num_seqs))
        dataset.read_seqs(idxs, ["data", "classes"])
        dataset.get_seq_tags(idxs)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("--num_seqs", type=int, default=50_000)
    parser.add_argument("--dir", help="where to write the file (default: a temporary folder)")
    args = parser.parse_args()
    log.initialize(verbosity=[1])  # one line per case
    num = args.num_seqs
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        path = os.path.join(directory, "data.hdf")
        make_file(path, num)
        raw = best_of(lambda: read_raw(path, per_seq=False))
        cut = best_of(lambda: read_raw(path, per_seq=True))

        def _new(**options: object) -> HDFDataset:
            return HDFDataset([path], **options)

        def _epoch(order: str, *, bulk: bool, full: bool = True, memory: bool = True) -> None:
            dataset = _new(seq_ordering=order)
            if not memory:
                dataset._reader._max_memory_bytes = 0
            dataset.init_seq_order(epoch=1)
            if bulk:
                iterate_bulk(dataset)
            else:
                iterate_per_seq(dataset, full=full)

        report("constructor", best_of(_new), raw, num_seqs=num)
        for order in ("default", "random"):
            name = {"default": "in order", "random": "random order"}[order]
            report(
                f"{name}, per sequence, 2 keys",
                best_of(lambda o=order: _epoch(o, bulk=False, full=False)),
                cut,
                num_seqs=num,
            )  # type: ignore[misc]
            report(
                f"{name}, per sequence, 2 keys + tag + lengths",
                best_of(lambda o=order: _epoch(o, bulk=False)),
                cut,
                num_seqs=num,
            )  # type: ignore[misc]
            report(f"{name}, bulk, 2 keys + tag", best_of(lambda o=order: _epoch(o, bulk=True)), raw, num_seqs=num)  # type: ignore[misc]
            if num <= 50_000:
                report(
                    f"{name}, bulk, not in memory",
                    best_of(lambda o=order: _epoch(o, bulk=True, memory=False), 1),
                    raw,
                    num_seqs=num,  # type: ignore[misc]
                )
        dataset = _new(seq_ordering="laplace:.1000")
        dataset.init_seq_order(epoch=1)
        lens = dataset.get_epoch_seq_lens("data")
        epochs = iter(range(2, 100))
        report(
            "laplace:.1000 order",
            best_of(lambda: dataset.init_seq_order(epoch=next(epochs))),
            best_of(lambda: np.argsort(lens)),
        )
        some = [f"corpus/rec-{i // 100}/seq-{i}" for i in range(0, num, 10)]

        def _tags() -> None:
            with h5py.File(path, "r") as f:
                table = {tag: i for i, tag in enumerate(f["seqTags"][...].tolist())}
            [table[tag.encode()] for tag in some]

        report(
            "tag table and seq_list of a tenth",
            best_of(lambda: _new().init_seq_order(epoch=1, seq_list=some)),
            best_of(_tags),
        )
        report("get_all_tags", best_of(lambda: _new().get_all_tags()), best_of(_tags))

        def _meta(*, bulk: bool) -> None:
            meta = MetaDataset(
                {"a": {"class": "HDFDataset", "files": [path]}, "b": {"class": "HDFDataset", "files": [path]}},
                {"data": ("a", "data"), "classes": ("b", "classes")},
                seq_order_control_dataset="a",
            )
            meta.init_seq_order(epoch=1)
            if bulk:
                iterate_bulk(meta)
            else:
                iterate_per_seq(meta, full=True)

        report("MetaDataset of two, per sequence", best_of(lambda: _meta(bulk=False), 1), cut, num_seqs=num)
        report("MetaDataset of two, bulk", best_of(lambda: _meta(bulk=True), 1), raw, num_seqs=num)


if __name__ == "__main__":
    main()
