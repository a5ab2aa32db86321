#!/usr/bin/env python3
"""
Speed of the HDF writers against raw h5py of the same data in blocks of 5,000 sequences, in the same run.

    python benchmarks/hdf_writing.py [--num_seqs 20000] [--rounds 5] [--dir DIR]

Each line: case, ours, the limit (processor time, best of the rounds, in turn), ratio, sequences per second.
Batches and arrays are made before. The prototype shows what a call from Python and a copy per sequence cost by themselves.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import h5py
import numpy as np

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from benchmarks.common import best_in_turn, print_row  # noqa: E402
from returnn.datasets.generating import StaticDataset  # noqa: E402
from returnn.datasets.hdf import HDFDataset  # noqa: E402
from returnn.datasets.util.hdf import HDFDatasetWriter, SimpleHDFWriter  # noqa: E402
from returnn.log import log  # noqa: E402

BLOCK_SEQS = 5000
CHUNK_BYTES = 64 << 10
TARGET = 3.0

# inputs, seq_len, seq_tag of insert_batch
Call = tuple[np.ndarray, list[int], list[str]]


def report(case: str, ours: float, limit: float, num_seqs: int) -> None:
    """Print one line."""
    print_row(case, ours, limit, TARGET, f"{num_seqs / ours:,.0f} seqs/s")


class RawFile:
    """Arrays that grow, with h5py alone."""

    def __init__(self, path: str, columns: dict[str, np.ndarray]):
        self.path = path
        self.file = h5py.File(path, "w")
        for name, array in columns.items():
            self.file.create_dataset(
                name,
                shape=(0, *array.shape[1:]),
                maxshape=(None, *array.shape[1:]),
                chunks=(max(CHUNK_BYTES // max(array[:1].nbytes, 1), 1), *array.shape[1:]),
                dtype=h5py.string_dtype("utf-8") if array.dtype == object else array.dtype,
            )

    def write(self, name: str, block: np.ndarray) -> None:
        """Append."""
        dataset = self.file[name]
        start = len(dataset)
        dataset.resize(start + len(block), axis=0)
        dataset[start:] = block

    def close(self) -> None:
        """With all on the disk."""
        self.file.close()
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())


def write_raw(path: str, arrays: dict[str, np.ndarray], tags: list[str]) -> None:
    """The limit: all data ready in one array per stream, blocks of 5,000 sequences, all sequences equally long."""
    columns = {**arrays, "seqTags": np.array(tags, dtype=object), "seqLengths": np.ones((len(tags), 2), dtype="int32")}
    raw = RawFile(path, columns)
    for start in range(0, len(tags), BLOCK_SEQS):
        end = min(start + BLOCK_SEQS, len(tags))
        for name, array in columns.items():
            per_seq = len(array) // len(tags)
            raw.write(name, array[start * per_seq : end * per_seq])
    raw.close()


def write_prototype(path: str, calls: list[Call], extra: dict[str, np.ndarray] | None) -> None:
    """How far one gets with one Python call and one copy per sequence and stream, without any check."""
    streams: dict[str, list[np.ndarray]] = {"inputs": [], **{key: [] for key in extra or {}}}
    lens: list[int] = []
    tags: list[str] = []
    inputs = streams["inputs"]

    def _insert(array: np.ndarray, length: int, tag: str) -> None:
        inputs.append(array[0, :length].copy())
        lens.append(length)
        tags.append(tag)

    def _insert_two(array: np.ndarray, length: int, tag: str, more: dict[str, np.ndarray]) -> None:
        inputs.append(array[0, :length].copy())
        for key, value in more.items():
            streams[key].append(value[0].copy())
        lens.append(length)
        tags.append(tag)

    raw: RawFile | None = None

    def _flush() -> RawFile:
        columns = {name: np.concatenate(arrays) for name, arrays in streams.items()}
        columns |= {
            "seqTags": np.array(tags, dtype=object),
            "seqLengths": np.stack([np.array(lens, "int32")] * 2, axis=1),
        }
        file = raw or RawFile(path, columns)
        for name, block in columns.items():
            file.write(name, block)
        for arrays in streams.values():
            arrays.clear()
        lens.clear()
        tags.clear()
        return file

    for array, lengths, names in calls:
        if extra is None:
            _insert(array, lengths[0], names[0])
        else:
            _insert_two(array, lengths[0], names[0], extra)
        if len(tags) == BLOCK_SEQS:
            raw = _flush()
    if tags:
        raw = _flush()
    assert raw is not None
    raw.close()


def main() -> None:
    """Run all cases."""
    parser = argparse.ArgumentParser(description="Speed of the HDF writers.")
    parser.add_argument("--num_seqs", type=int, default=20_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--dir", help="where to write the files (default: a temporary folder)")
    args = parser.parse_args()
    log.initialize(verbosity=[1])  # one line per case
    with tempfile.TemporaryDirectory(dir=args.dir) as directory:
        count = 0

        def _path() -> str:
            nonlocal count
            count += 1
            return os.path.join(directory, f"{count}.hdf")

        def _simple(calls: list[Call], extra: dict[str, np.ndarray] | None, **options: Any) -> None:
            with SimpleHDFWriter(_path(), **options) as writer:
                for inputs, seq_len, part in calls:
                    writer.insert_batch(inputs, seq_len, part, extra=extra)

        for name, shape, batch_size, with_extra, num_seqs in [
            ("length 1, one per call", (1, 1), 1, False, args.num_seqs),
            ("length 20, one per call", (1, 20), 1, False, args.num_seqs),
            ("length 20 and an extra stream, one per call", (1, 20), 1, True, args.num_seqs),
            ("length 20, 32 per call", (32, 20), 32, False, args.num_seqs),
            ("200 x 80, one per call", (1, 200, 80), 1, False, args.num_seqs // 10),
            ("200 x 80, 16 per call", (16, 200, 80), 16, False, args.num_seqs // 10),
        ]:
            tags = [f"seq-{i}" for i in range(num_seqs)]
            data = np.ones(shape, dtype="float32")
            # As for the limit, the data is there already: what the caller does to make his batches is not counted.
            calls: list[Call] = []
            for start in range(0, num_seqs, batch_size):
                part = tags[start : start + batch_size]
                calls.append((data[: len(part)], [data.shape[1]] * len(part), part))
            options = {"dim": None, "ndim": 1} if len(shape) == 2 else {"dim": shape[-1]}
            extra = {"classes": np.ones((1, 8), dtype="int32")} if with_extra else None
            # Ones: zeros that nobody wrote take no memory, and are read faster than any data.
            all_data = {"inputs": np.ones((num_seqs * shape[1], *shape[2:]), dtype="float32")}
            if with_extra:
                all_data["classes"] = np.ones(num_seqs * 8, dtype="int32")
            funcs: list[Callable[[], object]] = [
                lambda: write_raw(_path(), all_data, tags),  # noqa: B023
                lambda: _simple(calls, extra, **options),  # noqa: B023
            ]
            if batch_size == 1:
                funcs.append(lambda: write_prototype(_path(), calls, extra))  # noqa: B023
            limit, ours, *prototype = best_in_turn(*funcs, rounds=args.rounds, cpu=True)
            report(f"SimpleHDFWriter, {name}", ours, limit, num_seqs)
            if prototype:
                report("  prototype without interface and checks", prototype[0], limit, num_seqs)
            for written in os.scandir(directory):
                os.unlink(written)

        num_seqs = args.num_seqs // 4
        tags = [f"seq-{i}" for i in range(num_seqs)]
        seqs = [{"data": np.ones((20, 40), dtype="float32"), "classes": np.ones(8, dtype="int32")} for _ in tags]
        dataset = StaticDataset(data=seqs, output_dim={"data": (40, 2), "classes": (10, 1)})
        arrays = {"inputs": np.ones((num_seqs * 20, 40), "float32"), "c": np.ones(num_seqs * 8, "int32")}

        def _dump(source: Any) -> str:
            path = _path()
            with HDFDatasetWriter(path) as writer:
                writer.dump_from_dataset(source, use_progress_bar=False)
            return path

        path = _dump(dataset)
        hdf = HDFDataset([path])
        limit, memory, file = best_in_turn(
            lambda: write_raw(_path(), arrays, tags),
            lambda: _dump(dataset),
            lambda: _dump(hdf),
            rounds=args.rounds,
            cpu=True,
        )
        report("HDFDatasetWriter, 20 x 40 + classes, from memory", memory, limit, num_seqs)
        report("HDFDatasetWriter, 20 x 40 + classes, from HDF", file, limit, num_seqs)


if __name__ == "__main__":
    main()
