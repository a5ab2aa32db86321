#!/usr/bin/env python3
"""
How soon the first batch of large HDF data comes: of one file with 5 M sequences, and of 2,000 files.

The limit opens each file by h5py and reads its lengths at once. Processor time, best of some rounds in turn; the order is
"default" or random. Also: the greatest number of open files. Of the random order, the draws of numpy's permutation are fixed: a
prototype that reads the lengths and makes this permutation, and nothing else, shows what can be had.

    python benchmarks/hdf_start.py [--num_seqs 5000000] [--num_files 2000] [--rounds 2]
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
from collections.abc import Sequence

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from benchmarks.common import best_in_turn, print_row  # noqa: E402
from returnn.datasets import init_dataset  # noqa: E402
from returnn.log import log  # noqa: E402
from returnn.options.batching import BatchingOptions  # noqa: E402
from returnn.torch.data.loader import EpochSource, create_loader  # noqa: E402

TARGET = 2.0


def make_file(path: str, num_seqs: int, first: int = 0) -> None:
    """int32 labels of mean length 4, int32 targets of mean length 2, tags."""
    rnd = np.random.RandomState(first)
    lens = np.stack([rnd.randint(1, 8, num_seqs), rnd.randint(1, 4, num_seqs)], axis=1).astype("int32")
    with h5py.File(path, "w") as f:
        f["inputs"] = np.zeros(lens[:, 0].sum(), "int32")
        f["targets/data/classes"] = np.zeros(lens[:, 1].sum(), "int32")
        f.require_group("targets/size").attrs["classes"] = [50, 1]
        f.require_group("targets/labels")
        f["seqLengths"] = lens
        f["seqTags"] = np.char.mod("corpus/seq-%07d", np.arange(first, first + num_seqs)).astype("S")
        f.attrs["inputPattSize"] = 1000


def num_open_files() -> int:
    """:return: HDF files that this process has open"""
    paths = []
    for fd in os.listdir("/proc/self/fd"):
        try:
            paths.append(os.readlink(f"/proc/self/fd/{fd}"))
        except FileNotFoundError:  # that of the listing itself
            continue
    return sum(path.endswith(".hdf") for path in paths)


def first_batch(paths: Sequence[str], ordering: str, most_open: list[int]) -> None:
    """
    :param paths: files
    :param ordering: seq_ordering
    :param most_open: gets the number of files that are open then
    """
    dataset = init_dataset({"class": "HDFDataset", "files": list(paths), "seq_ordering": ordering})
    loader = create_loader(
        dataset, batching=BatchingOptions(batch_size=2000, max_seqs=100), epoch_source=EpochSource(1)
    )
    batch = next(iter(loader))
    assert len(batch["seq_tag"]) > 1
    most_open.append(num_open_files())


def read_lens(paths: Sequence[str]) -> int:
    """:return: number of sequences"""
    num = 0
    for path in paths:
        with h5py.File(path, "r") as f:
            num += len(f["seqLengths"][...])
    return num


def read_lens_and_permute(paths: Sequence[str]) -> np.ndarray:
    """:return: the order"""
    return np.random.RandomState(1).permutation(read_lens(paths))


def main() -> None:
    """Print one line per case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=5_000_000)
    parser.add_argument("--num_files", type=int, default=2000)
    parser.add_argument("--rounds", type=int, default=2)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    with tempfile.TemporaryDirectory() as folder:
        large = os.path.join(folder, "large.hdf")
        make_file(large, args.num_seqs)
        small = [os.path.join(folder, f"{i:05d}.hdf") for i in range(args.num_files)]
        for i, path in enumerate(small):
            make_file(path, 500, first=500 * i)
        for name, paths in (
            (f"first batch of a file of {args.num_seqs} sequences", [large]),
            (f"first batch of {args.num_files} files of 500 sequences", small),
        ):
            for ordering in ("default", "random"):
                most_open: list[int] = []
                ours, limit = best_in_turn(
                    functools.partial(first_batch, paths, ordering, most_open),
                    functools.partial(read_lens, paths),
                    rounds=args.rounds,
                    cpu=True,
                )
                print_row(f"{name}, {ordering}", ours, limit, TARGET, f"at most {max(most_open)} files open")
                if ordering == "random":
                    prototype, limit = best_in_turn(
                        functools.partial(read_lens_and_permute, paths),
                        functools.partial(read_lens, paths),
                        rounds=args.rounds,
                        cpu=True,
                    )
                    print_row("  prototype: lengths, permutation", prototype, limit, TARGET)


if __name__ == "__main__":
    main()
