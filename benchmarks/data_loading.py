#!/usr/bin/env python3
"""
The data side alone: batches of many short sequences from one HDF file, in-process and with workers, against reading
and padding by hand.

20,000 sequences of 5 to 50 frames of 10 floats, laplace order, batch_size 1000, max_seqs 40. Best of several epochs.
"busy" cases: the loop computes for 1 ms per batch; the time beyond that is what the loop waits for data.

usage: python benchmarks/data_loading.py [--num_seqs 20000] [--epochs 5] [--workers 0 1 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Callable

import h5py
import numpy

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.abspath(__file__))))

import torch  # noqa: E402

from returnn.datasets import init_dataset  # noqa: E402
from returnn.datasets.hdf import SimpleHDFWriter  # noqa: E402
from returnn.options.batching import BatchingOptions  # noqa: E402
from returnn.options.loader import LoaderOptions  # noqa: E402
from returnn.torch.data.loader import EpochSource, Loader, create_loader  # noqa: E402


def make_hdf(path: str, num_seqs: int) -> None:
    """Write the data."""
    rnd = numpy.random.RandomState(1)
    with SimpleHDFWriter(path, dim=10, ndim=2) as writer:
        for start in range(0, num_seqs, 500):
            num = min(500, num_seqs - start)
            lens = rnd.randint(5, 51, size=num)
            data = rnd.randn(num, lens.max(), 10).astype("float32")
            writer.insert_batch(data, lens, [f"seq-{i}" for i in range(start, start + num)])


def make_loader(hdf: str, num_workers: int) -> Loader:
    """:return: loader over the file"""
    dataset = init_dataset({"class": "HDFDataset", "files": [hdf], "seq_ordering": "laplace:.1000"})
    return create_loader(
        dataset,
        batching=BatchingOptions(batch_size=1000, max_seqs=40),
        loader=LoaderOptions(num_workers=num_workers),
        epoch_source=EpochSource(1),
        name="train",
    )


def by_hand(hdf: str, order: list[list[int]]) -> int:
    """
    :param order: corpus idx of the sequences of each batch
    :return: number of batches, each read from memory and padded
    """
    with h5py.File(hdf, "r") as file:
        data = file["inputs"][()]
        lens = file["seqLengths"][()][:, 0]
    offsets = numpy.concatenate([[0], numpy.cumsum(lens)])
    batches = []
    for idxs in order:
        batch = numpy.zeros((len(idxs), max(lens[i] for i in idxs), data.shape[1]), data.dtype)
        for row, i in enumerate(idxs):
            batch[row, : lens[i]] = data[offsets[i] : offsets[i + 1]]
        batches.append((torch.from_numpy(batch), torch.tensor([lens[i] for i in idxs])))
    return len(batches)


def best_of(num: int, func: Callable[[], object]) -> float:
    """:return: seconds of the fastest call"""
    secs = []
    for _ in range(num):
        start = time.perf_counter()
        func()
        secs.append(time.perf_counter() - start)
    return min(secs)


def busy_pass(loader: Loader) -> float:
    """:return: seconds that the loop waited"""
    for _ in loader:
        end = time.perf_counter() + 0.001
        while time.perf_counter() < end:
            pass
    return loader.stats.secs_waited


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=20_000)
    parser.add_argument("--epochs", type=int, default=5)
    parser.add_argument("--workers", type=int, nargs="+", default=[0, 1, 2])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as tmp:
        hdf = os.path.join(tmp, "data.hdf")
        make_hdf(hdf, args.num_seqs)
        order = [[int(tag[4:]) for tag in b["seq_tag"]] for b in make_loader(hdf, 0)]
        limit = best_of(args.epochs, lambda: by_hand(hdf, order))
        for num_workers in args.workers:
            loader = make_loader(hdf, num_workers)
            start = time.perf_counter()
            next(iter(loader))
            first = time.perf_counter() - start
            ours = best_of(args.epochs, lambda loader=loader: sum(1 for _ in loader))  # type: ignore[misc]
            waited = min(busy_pass(loader) for _ in range(args.epochs))
            num_batches = loader.stats.num_batches
            loader.close()
            print(
                f"{num_workers} workers, {num_batches} batches: ours {ours:.3f} s ({ours / num_batches * 1e6:.0f} us per batch), "
                f"by hand {limit:.3f} s, ratio {ours / limit:.2f}; busy loop waits {waited:.3f} s; "
                f"first batch after {first:.2f} s",
                flush=True,
            )


if __name__ == "__main__":
    main()
