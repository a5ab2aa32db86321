#!/usr/bin/env python3
"""
Start of a MetaDataset over two HDF files with the same 5 M sequences in different orders, and its memory.

The limit reads lengths and tags of both files at once, and joins the tags by numpy (two sorts). Processor time of one run
each. Memory: how much this process grows, from before the dataset is made until it has an order; with --workers, also how
much the worker processes of a loader have of their own (anonymous and shared memory) after the first batch.

    python benchmarks/meta_start.py [--num_seqs 5000000] [--workers 2]
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
import time

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from benchmarks.common import memory_mib, print_row  # noqa: E402
from benchmarks.memory import tree_mib  # noqa: E402
from returnn.datasets import init_dataset  # noqa: E402
from returnn.log import log  # noqa: E402
from returnn.options.batching import BatchingOptions  # noqa: E402
from returnn.options.loader import LoaderOptions  # noqa: E402
from returnn.torch.data.loader import EpochSource, create_loader  # noqa: E402

TARGET = 3.0
MAX_BYTES = 150


def make_file(path: str, order: np.ndarray, seed: int) -> None:
    """int32 labels of mean length 4; tags in this order."""
    lens = np.random.RandomState(seed).randint(1, 8, len(order)).astype("int32")
    with h5py.File(path, "w") as f:
        f["inputs"] = np.zeros(lens.sum(), "int32")
        f["seqLengths"] = np.stack([lens, 0 * lens], axis=1)
        f["seqTags"] = np.char.mod("corpus/seq-%07d", order).astype("S")
        f.attrs["inputPattSize"] = 1000
        f.attrs["numLabels"] = 1000


def join(paths: list[str]) -> np.ndarray:
    """:return: where each sequence of the first file is in the second"""
    lens, tags = [], []
    for path in paths:
        with h5py.File(path, "r") as f:
            lens.append(f["seqLengths"][...])
            tags.append(f["seqTags"][...])
    orders = [np.argsort(column) for column in tags]
    assert np.array_equal(tags[0][orders[0]], tags[1][orders[1]])
    result = np.empty(len(tags[0]), dtype=np.int64)
    result[orders[0]] = orders[1]
    return result


def main() -> None:
    """Print a line for time and one for memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=2)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    with tempfile.TemporaryDirectory() as folder:
        paths = [os.path.join(folder, name) for name in ("a.hdf", "b.hdf")]
        make_file(paths[0], np.arange(args.num_seqs), 1)
        make_file(paths[1], np.random.RandomState(3).permutation(args.num_seqs), 2)
        a, b = ({"class": "HDFDataset", "files": [path]} for path in paths)
        before = memory_mib()
        start = time.process_time()
        dataset = init_dataset(
            {
                "class": "MetaDataset",
                "datasets": {"a": a, "b": b},
                "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
                "seq_order_control_dataset": "a",
            }
        )
        dataset.init_seq_order(epoch=1)
        ours = time.process_time() - start
        growth = (memory_mib() - before) * 2**20 / args.num_seqs
        own = tree_mib()[0]
        loader = create_loader(
            dataset,
            batching=BatchingOptions(max_seqs=100),
            loader=LoaderOptions(num_workers=args.workers),
            epoch_source=EpochSource(1),
        )
        next(iter(loader))
        with_workers = (tree_mib()[0] - own) * 2**20 / args.num_seqs
        loader.close()
        start = time.process_time()
        join(paths)
        limit = time.process_time() - start
    print_row(f"MetaDataset of two HDF files of {args.num_seqs} sequences, start and order", ours, limit, TARGET)
    verdict = "reached" if growth + with_workers < MAX_BYTES else "NOT reached"
    print(
        f"  memory per sequence: {growth:.0f} bytes in the main process, {with_workers:.0f} more with {args.workers} "
        f"workers (target {MAX_BYTES} in all: {verdict})"
    )


if __name__ == "__main__":
    main()
