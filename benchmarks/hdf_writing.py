#!/usr/bin/env python3
"""
Speed of the HDF writers against raw h5py of the same data in blocks of 5,000 sequences, in the same run.

    python benchmarks/hdf_writing.py [--num_seqs 20000] [--dir DIR]

Each line: case, ours, the limit (processor time, best of three), ratio.
"""

from __future__ import annotations

import argparse
import functools
import os
import sys
import tempfile
import time
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from returnn.datasets.generating import StaticDataset  # noqa: E402
from returnn.datasets.hdf import HDFDataset  # noqa: E402
from returnn.datasets.util.hdf import HDFDatasetWriter, SimpleHDFWriter  # noqa: E402
from returnn.log import log  # noqa: E402

BLOCK_SEQS = 5000
CHUNK_BYTES = 64 << 10
TARGET = 3.0


def timed(func: Callable[[], object]) -> float:
    """:return: seconds of processor time, best of three"""
    best = float("inf")
    for _ in range(3):
        start = time.process_time()
        func()
        best = min(best, time.process_time() - start)
    return best


def report(case: str, ours: float, limit: float, num_seqs: int) -> None:
    """Print one line."""
    print(
        f"{case}: ours {ours:.3f} s = {num_seqs / ours:,.0f} seqs/s, limit {limit:.3f} s, ratio {ours / limit:.1f} "
        f"(target {TARGET:g}: {'reached' if ours / limit <= TARGET else 'NOT reached'})",
        flush=True,
    )


def write_raw(path: str, arrays: dict[str, np.ndarray], tags: list[str]) -> None:
    """Blocks of 5,000 sequences to arrays that grow, all sequences equally long."""
    with h5py.File(path, "w") as f:
        lens = np.ones((len(tags), 2), dtype="int32")
        names = np.array(tags, dtype=object)
        columns = {**arrays, "seqTags": names, "seqLengths": lens}
        for name, array in columns.items():
            frame_bytes = max(array[:1].nbytes, 1)
            f.create_dataset(
                name,
                shape=(0, *array.shape[1:]),
                maxshape=(None, *array.shape[1:]),
                chunks=(max(CHUNK_BYTES // frame_bytes, 1), *array.shape[1:]),
                dtype=h5py.string_dtype("utf-8") if array.dtype == object else array.dtype,
            )
        for start in range(0, len(tags), BLOCK_SEQS):
            end = min(start + BLOCK_SEQS, len(tags))
            for name, array in columns.items():
                per_seq = len(array) // len(tags)
                f[name].resize(end * per_seq, axis=0)
                f[name][start * per_seq : end * per_seq] = array[start * per_seq : end * per_seq]
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description="Speed of the HDF writers.")
    parser.add_argument("--num_seqs", type=int, default=20_000)
    parser.add_argument("--dir", help="where to write the files (default: a temporary folder)")
    args = parser.parse_args()
    log.initialize(verbosity=[1])  # one line per case
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        count = 0

        def _path() -> str:
            nonlocal count
            count += 1
            return os.path.join(directory, f"{count}.hdf")

        def _simple(
            data: np.ndarray, tags: list[str], batch_size: int, extra: dict[str, Any] | None, **options: Any
        ) -> None:
            with SimpleHDFWriter(_path(), **options) as writer:
                for start in range(0, len(tags), batch_size):
                    part = tags[start : start + batch_size]
                    writer.insert_batch(data[: len(part)], [data.shape[1]] * len(part), part, extra=extra)

        for name, shape, batch_size, with_extra, num_seqs in [
            ("length 1, one per call", (1, 1), 1, False, args.num_seqs),
            ("length 20, one per call", (1, 20), 1, False, args.num_seqs),
            ("length 20 and an extra stream, one per call", (1, 20), 1, True, args.num_seqs),
            ("length 20, 32 per call", (32, 20), 32, False, args.num_seqs),
            ("200 x 80, one per call", (1, 200, 80), 1, False, args.num_seqs // 10),
            ("200 x 80, 16 per call", (16, 200, 80), 16, False, args.num_seqs // 10),
        ]:
            tags = [f"seq-{i}" for i in range(num_seqs)]
            data = np.zeros(shape, dtype="float32")
            options = {"dim": None, "ndim": 1} if len(shape) == 2 else {"dim": shape[-1]}
            extra = {"classes": np.zeros((1, 8), dtype="int32")} if with_extra else None
            all_data = {"inputs": np.zeros((num_seqs * shape[1], *shape[2:]), dtype="float32")}
            if with_extra:
                all_data["classes"] = np.zeros(num_seqs * 8, dtype="int32")
            limit = timed(functools.partial(write_raw, _path(), all_data, tags))
            ours = timed(functools.partial(_simple, data, tags, batch_size, extra, **options))
            report(f"SimpleHDFWriter, {name}", ours, limit, num_seqs)

        num_seqs = args.num_seqs // 4
        tags = [f"seq-{i}" for i in range(num_seqs)]
        seqs = [{"data": np.zeros((20, 40), dtype="float32"), "classes": np.zeros(8, dtype="int32")} for _ in tags]
        dataset = StaticDataset(data=seqs, output_dim={"data": (40, 2), "classes": (10, 1)})
        limit = timed(
            lambda: write_raw(
                _path(), {"inputs": np.zeros((num_seqs * 20, 40), "float32"), "c": np.zeros(num_seqs * 8, "i4")}, tags
            )
        )

        def _dump(source: Any) -> str:
            path = _path()
            with HDFDatasetWriter(path) as writer:
                writer.dump_from_dataset(source, use_progress_bar=False)
            return path

        path = _dump(dataset)
        report("HDFDatasetWriter, 20 x 40 + classes, from memory", timed(lambda: _dump(dataset)), limit, num_seqs)
        hdf = HDFDataset([path])
        report("HDFDatasetWriter, 20 x 40 + classes, from HDF", timed(lambda: _dump(hdf)), limit, num_seqs)


if __name__ == "__main__":
    main()
