#!/usr/bin/env python3
"""
The engine's own path from an HDF file into batches: 500,000 short sequences, two streams, tags and lengths.

The limit reads the arrays of the file by h5py at once, cuts both streams into sequences, in the same order as ours, and
decodes the tags; it does not pad. Processor time, best of some rounds in turn. Memory: how much the resident memory of a
fresh process grows at most while it makes all batches of an epoch, and how much of that is not the arrays of the file.

    python benchmarks/hdf_batches.py [--num_seqs 500000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import functools
import os
import subprocess
import sys
import tempfile

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from benchmarks.common import best_in_turn, memory_mib, print_row  # noqa: E402
from returnn.datasets import init_dataset  # noqa: E402
from returnn.log import log  # noqa: E402
from returnn.options.batching import BatchingOptions  # noqa: E402
from returnn.torch.data.loader import EpochSource, create_loader  # noqa: E402

ORDERS = {"in order": ("default", 2.0), "random": ("random", 4.0)}
STREAMS = ["inputs", "targets/data/classes"]
MAX_MIB = 64


def make_file(path: str, num_seqs: int) -> None:
    """int32 data of mean length 20, int32 targets of mean length 8.5, tags."""
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


def make_batches(path: str, ordering: str, *, keep_tags: bool = True) -> list[str]:
    """:return: tags of one epoch, in order, of a fresh dataset"""
    dataset = init_dataset({"class": "HDFDataset", "files": [path], "seq_ordering": ordering})
    loader = create_loader(
        dataset, batching=BatchingOptions(batch_size=2000, max_seqs=100), epoch_source=EpochSource(1), name="train"
    )
    tags: list[str] = []
    for batch in loader:
        assert batch["data"].shape[0] == len(batch["data:size1"]) == len(batch["classes"])
        if keep_tags:
            tags += batch["seq_tag"]
    return tags


def by_hand(path: str, order: np.ndarray | None) -> list[str]:
    """
    :param order: corpus indices; None: as stored
    :return: tags
    """
    with h5py.File(path, "r") as f:
        lens = f["seqLengths"][...]
        streams = [f[name][...] for name in STREAMS]
        tags = f["seqTags"][...].tolist()
    starts = [[0, *np.cumsum(lens[:, i]).tolist()] for i in range(2)]
    result, num_frames = [], 0
    for i in range(len(tags)) if order is None else order.tolist():
        for stream, bounds in zip(streams, starts, strict=True):
            num_frames += len(stream[bounds[i] : bounds[i + 1]])
        result.append(tags[i].decode())
    assert num_frames == sum(map(len, streams))
    return result


def measure_memory(path: str, ordering: str) -> None:
    """In a process of its own. Prints the growth in MiB."""
    make_batches(path + ".small", ordering, keep_tags=False)  # imports
    before = memory_mib()
    make_batches(path, ordering, keep_tags=False)
    print(memory_mib("VmHWM") - before)


def main() -> None:
    """Print two lines per order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=500_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--memory_of", nargs=2, help=argparse.SUPPRESS)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    if args.memory_of:
        measure_memory(*args.memory_of)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "data.hdf")
        make_file(path, args.num_seqs)
        make_file(path + ".small", 1000)
        with h5py.File(path, "r") as f:
            arrays = sum(f[name].nbytes for name in (*STREAMS, "seqLengths", "seqTags")) / 2**20
        for name, (ordering, target) in ORDERS.items():
            order = None
            tags = make_batches(path, ordering)
            if ordering != "default":
                order = np.array([int(tag.rpartition("-")[2]) for tag in tags])
            assert by_hand(path, order) == tags
            ours, limit = best_in_turn(
                functools.partial(make_batches, path, ordering),
                functools.partial(by_hand, path, order),
                rounds=args.rounds,
                cpu=True,
            )
            print_row(f"{args.num_seqs} sequences into batches, {name}", ours, limit, target)
            command = [sys.executable, __file__, "--memory_of", path, ordering]
            growth = float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)
            verdict = "reached" if growth - arrays <= MAX_MIB else "NOT reached"
            print(
                f"  memory grew by {growth:.0f} MiB at most, arrays of the file {arrays:.0f} MiB, "
                f"{growth - arrays:.0f} MiB above (target {MAX_MIB}: {verdict})",
                flush=True,
            )


if __name__ == "__main__":
    main()
