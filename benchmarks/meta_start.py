#!/usr/bin/env python3
"""
Start of a MetaDataset over two HDF files with the same 5 M sequences in different orders, and its memory.

The limit reads lengths and tags of both files at once, and joins the tags by numpy (two sorts). Processor time of one run
each. Memory, once in the order of the files and once in random order: what this process has more than before the dataset was
made, when it has an order; and what this process and the worker processes of a loader have more after the first batches, what
they share counted once. That is anonymous memory (also that of Python and libraries in each worker), and all memory without
a name (memfd). The server process from which workers are forked runs before.

    python benchmarks/meta_start.py [--num_seqs 5000000] [--workers 2] [--batches 1000]
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

from benchmarks.common import print_row  # noqa: E402
from benchmarks.memory import children  # noqa: E402
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


def tree_bytes(pid: int | None = None, *, seen: set[tuple[int, int]] | None = None) -> int:
    """
    :param pid: None: this process
    :param seen: memory without a name that was counted already
    :return: memory of the process and its descendants
    """
    pid, seen = pid or os.getpid(), set() if seen is None else seen
    with open(f"/proc/{pid}/smaps_rollup") as file:
        total = sum(int(line.split()[1]) * 1024 for line in file if line.startswith("Pss_Anon:"))
    folder = f"/proc/{pid}/fd"
    for name in os.listdir(folder):
        try:
            if not os.readlink(f"{folder}/{name}").startswith("/memfd:"):
                continue
            stat = os.stat(f"{folder}/{name}")
        except FileNotFoundError:  # closed meanwhile
            continue
        if (stat.st_dev, stat.st_ino) not in seen:
            seen.add((stat.st_dev, stat.st_ino))
            total += stat.st_blocks * 512
    for child in children(pid):
        try:
            total += tree_bytes(child, seen=seen)
        except (FileNotFoundError, ProcessLookupError):  # ended meanwhile
            continue
    return total


def make_files(folder: str, prefix: str, num_seqs: int) -> list[str]:
    """:return: names of two files with the same sequences"""
    paths = [os.path.join(folder, f"{prefix}{name}.hdf") for name in "ab"]
    make_file(paths[0], np.arange(num_seqs), 1)
    make_file(paths[1], np.random.RandomState(3).permutation(num_seqs), 2)
    return paths


def run(paths: list[str], ordering: str, *, num_seqs: int, workers: int, batches: int, quiet: bool = False) -> float:
    """
    Print a line for memory.

    :return: seconds until there is an order
    """
    a, b = ({"class": "HDFDataset", "files": [path]} for path in paths)
    before = tree_bytes()
    start = time.process_time()
    dataset = init_dataset(
        {
            "class": "MetaDataset",
            "datasets": {"a": {**a, "seq_ordering": ordering}, "b": b},
            "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
            "seq_order_control_dataset": "a",
        }
    )
    dataset.init_seq_order(epoch=1)
    secs = time.process_time() - start
    growth = (tree_bytes() - before) / num_seqs
    loader = create_loader(
        dataset,
        batching=BatchingOptions(max_seqs=100),
        loader=LoaderOptions(num_workers=workers),
        epoch_source=EpochSource(1),
    )
    for _ in zip(range(batches), loader):  # noqa: B905  # not all batches
        pass
    in_all = (tree_bytes() - before) / num_seqs
    loader.close()
    if quiet:
        return secs
    verdict = "reached" if in_all < MAX_BYTES else "NOT reached"
    print(
        f"  memory per sequence, order {ordering}: {growth:.0f} bytes in the main process, {in_all:.0f} in all with {workers} "
        f"workers after {batches} batches (target {MAX_BYTES}: {verdict})",
        flush=True,
    )
    return secs


def main() -> None:
    """Print a line for time and two for memory."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=5_000_000)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--batches", type=int, default=1000)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    with tempfile.TemporaryDirectory() as folder:
        small, paths = make_files(folder, "small", 1000), make_files(folder, "", args.num_seqs)
        run(small, "default", num_seqs=1000, workers=args.workers, batches=1, quiet=True)
        ours, _ = (
            run(paths, ordering, num_seqs=args.num_seqs, workers=args.workers, batches=args.batches)
            for ordering in ("default", "random")
        )
        start = time.process_time()
        join(paths)
        limit = time.process_time() - start
    print_row(f"MetaDataset of two HDF files of {args.num_seqs} sequences, start and order", ours, limit, TARGET)


if __name__ == "__main__":
    main()
