#!/usr/bin/env python3
"""
Speed and memory of MetaDataset (two HDF files with the same sequences, in another order) and of the other datasets
that combine, against raw h5py and numpy on the same files, in the same run.

    python benchmarks/meta_dataset.py [--num_seqs 500000] [--dir DIR]

Each line: case, ours, the limit, ratio (ours / limit of times). Limits: for the start, reading the tags by h5py and matching
them by a dict; for an order, one stable sort by length; for the iteration, reading by h5py, cutting into sequences and
decoding tags.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
import tracemalloc
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from returnn.datasets.basic import Dataset, init_dataset  # noqa: E402
from returnn.log import log  # noqa: E402

# Sequences that are read at once, as for some batches.
BLOCK = 4096


def make_file(path: str, order: np.ndarray, *, seed: int) -> None:
    """int32 labels of mean length 20, tags in this storage order."""
    rnd = np.random.RandomState(seed)
    lens = rnd.randint(1, 40, len(order)).astype("int32")
    with h5py.File(path, "w") as f:
        f["inputs"] = rnd.randint(0, 1000, lens.sum()).astype("int32")
        f["seqLengths"] = np.stack([lens, 0 * lens], axis=1)  # no targets
        f["seqTags"] = np.array([f"corpus/recording-{i // 100}/segment-{i}" for i in order.tolist()], dtype="S")
        f.attrs["inputPattSize"] = 1000
        f.attrs["numLabels"] = 1000


def timed(func: Callable[[], Any]) -> tuple[float, Any]:
    """:return: seconds, result. Any: what the function gives"""
    start = time.perf_counter()
    result = func()
    return time.perf_counter() - start, result


def best_of(func: Callable[[], object], repeats: int = 3) -> float:
    """:return: seconds of the fastest run"""
    return min(timed(func)[0] for _ in range(repeats))


def report(case: str, ours: float, limit: float, *, num_seqs: int) -> None:
    """Print one line."""
    print(
        f"{case}: ours {ours:.3f} s = {num_seqs / max(ours, 1e-9):,.0f} seqs/s, limit {limit:.3f} s, ratio {ours / limit:.1f}",
        flush=True,
    )


def read_raw(paths: list[str]) -> list[np.ndarray]:
    """:return: all arrays of the files"""
    arrays = []
    for path in paths:
        with h5py.File(path, "r") as f:
            arrays += [f["seqLengths"][...], f["inputs"][...], f["seqTags"][...]]
    return arrays


def cut_raw(paths: list[str]) -> int:
    """:return: number of pieces: the arrays cut into sequences, and the tags decoded, as any reader has to"""
    count = 0
    arrays = read_raw(paths)
    for lens, data, tags in zip(arrays[0::3], arrays[1::3], arrays[2::3], strict=True):
        bounds = [0, *np.cumsum(lens[:, 0]).tolist()]
        for i, tag in enumerate(tags.tolist()):
            tag.decode("utf8")
            count += len(data[bounds[i] : bounds[i + 1]])
    return count


def match_tags(paths: list[str]) -> np.ndarray:
    """:return: where each tag of the first file is in the second, by a dict: what any such dataset has to find out"""
    tags = []
    for path in paths:
        with h5py.File(path, "r") as f:
            tags.append(f["seqTags"][...].tolist())
    index = {tag: i for i, tag in enumerate(tags[1])}
    return np.array([index[tag] for tag in tags[0]])


def iterate_bulk(dataset: Dataset) -> int:
    """:return: number of frames of one epoch, read as the loader does it"""
    keys = dataset.get_data_keys()
    frames = 0
    for start in range(0, dataset.num_seqs, BLOCK):
        idxs = np.arange(start, min(start + BLOCK, dataset.num_seqs))
        data = dataset.read_seqs(idxs, keys)
        assert data is not None
        frames += sum(len(ragged.flat) for ragged in data.values())
        dataset.get_seq_tags(idxs)
    return frames


def iterate_per_seq(dataset: Dataset, num: int) -> None:
    """The first sequences, as a script does it."""
    keys = dataset.get_data_keys()
    for i in range(num):
        if not dataset.is_less_than_num_seqs(i):
            break
        dataset.load_seqs(i, i + 1)
        for key in keys:
            dataset.get_data(i, key)
        dataset.get_tag(i)


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1] if __doc__ else None)
    parser.add_argument("--num_seqs", type=int, default=500_000)
    parser.add_argument("--dir", help="where to write the files (default: a temporary folder)")
    args = parser.parse_args()
    log.initialize(verbosity=[1])  # one line per case
    num = args.num_seqs
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        paths = [os.path.join(directory, name) for name in ("a.hdf", "b.hdf")]
        make_file(paths[0], np.arange(num), seed=1)
        make_file(paths[1], np.random.RandomState(3).permutation(num), seed=2)
        _run(paths, num)


def _run(paths: list[str], num: int) -> None:
    a, b = ({"class": "HDFDataset", "files": [path]} for path in paths)
    meta = {
        "class": "MetaDataset",
        "datasets": {"a": {**a, "seq_ordering": "laplace:.1000"}, "b": b},
        "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
        "seq_order_control_dataset": "a",
    }
    cut = best_of(lambda: cut_raw(paths), 2)
    match = best_of(lambda: match_tags(paths), 1)
    with h5py.File(paths[0], "r") as f:
        lens = f["seqLengths"][:, 0]
    sort = best_of(lambda: np.argsort(lens, kind="stable"))

    report(
        "MetaDataset of two, start (files, tags, matching)", best_of(lambda: init_dataset(meta)), match, num_seqs=num
    )
    dataset = init_dataset(meta)
    epochs = iter(range(1, 1000))
    report("  order of an epoch", best_of(lambda: dataset.init_seq_order(epoch=next(epochs))), sort, num_seqs=num)
    report("  iteration in bulk, 2 streams + tag", best_of(lambda: iterate_bulk(dataset)), cut, num_seqs=num)
    few = min(num, 50_000)
    dataset.init_seq_order(epoch=next(epochs))
    seconds, _ = timed(lambda: iterate_per_seq(dataset, few))
    report("  iteration one by one, 2 streams + tag", seconds, cut * few / num, num_seqs=few)
    dataset = None  # type: ignore[assignment]
    tracemalloc.start()
    dataset = init_dataset(meta)
    dataset.init_seq_order(epoch=1)
    size, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    tags = sum(len(tag) for tag in dataset.get_seq_tags(np.arange(num)))
    print(
        f"  memory with an order, no data: {size / num:.0f} bytes per sequence (peak {peak / num:.0f}), of which the"
        f" texts of the tags of both files are {2 * tags / num:.0f}",
        flush=True,
    )

    union = {"datasets": {"a": a, "b": b}, "data_map": {("a", "data"): "data", ("b", "data"): "classes"}}
    for ordering in ("random", "laplace:.1000", "random_dataset", "interleave"):
        dataset = init_dataset({"class": "CombinedDataset", **union, "seq_ordering": ordering})
        epochs = iter(range(1, 1000))
        name = f"CombinedDataset of two, {ordering}"
        seconds = best_of(lambda d=dataset, e=epochs: d.init_seq_order(epoch=next(e)), 2)  # type: ignore[misc]
        report(f"{name}, order of an epoch", seconds, sort, num_seqs=2 * num)
    report("  iteration in bulk, 2 streams + tag", best_of(lambda: iterate_bulk(dataset), 1), cut, num_seqs=2 * num)
    dataset = init_dataset({"class": "ConcatDataset", "datasets": [a, b]})
    dataset.init_seq_order(epoch=1)
    report("ConcatDataset of two, iteration in bulk", best_of(lambda: iterate_bulk(dataset), 1), cut, num_seqs=2 * num)


if __name__ == "__main__":
    main()
