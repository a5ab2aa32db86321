"""
Reads many broken files of all formats; each must end in a worded error or a result: no crash, no hang, bounded memory.

usage: python -m tests.robustness.broken_files [--cases 5000] [--seed 1] [--reader hdf] [--keep FOLDER]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np

from tests.robustness.mutations import mutate
from tests.robustness.seed_files import make_seed_files
from tests.robustness.server import ReadServer

__all__ = ["Case", "run_cases"]


class Case(NamedTuple):
    """One broken file, and how reading it ended."""

    reader: str
    number: int
    mutation: str
    content: bytes
    end: str
    text: str


def run_cases(folder: Path, *, num_per_reader: int, seed: int, only: str | None = None) -> Iterator[Case]:
    """
    :param folder: for the files
    :param num_per_reader: broken files of each format
    :param seed: decides all of them
    :param only: one reader
    :return: all cases, in order
    """
    server = ReadServer()
    try:
        for reader_idx, (reader, path) in enumerate(make_seed_files(folder).items()):
            if only is not None and reader != only:
                continue
            whole = path.read_bytes()
            result = server.read(reader, path)
            assert result["end"] == "ok", (reader, result)
            for number in range(num_per_reader):
                mutation, content = mutate(whole, np.random.default_rng([seed, reader_idx, number]))
                # A name of its own: readers may keep what they read by name.
                broken = path.with_name(f"{number}-{path.name}") if "zip" not in reader else path
                broken.write_bytes(content)
                result = server.read(reader, broken)
                yield Case(reader, number, mutation, content, result["end"], result["text"])
                if broken != path:
                    broken.unlink()
            path.write_bytes(whole)
    finally:
        server.close()


def main() -> None:
    """As the docstring of the module says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cases", type=int, default=5000, help="in all, about")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--reader", help="only this one")
    parser.add_argument("--keep", type=Path, help="folder for files whose reading ended badly")
    args = parser.parse_args()
    ends: Counter[str] = Counter()
    bad = 0
    with tempfile.TemporaryDirectory() as folder:
        num = -(-args.cases // (1 if args.reader else 23))
        for case in run_cases(Path(folder), num_per_reader=num, seed=args.seed, only=args.reader):
            ends[f"{case.reader}: {case.end}"] += 1
            if case.end in ("ok", "worded"):
                continue
            bad += 1
            print(f"{case.reader} case {case.number} ({case.mutation}): {case.end}\n{case.text}")
            if args.keep:
                args.keep.mkdir(parents=True, exist_ok=True)
                (args.keep / f"{case.reader}-{case.number}").write_bytes(case.content)
    for name, count in sorted(ends.items()):
        print(f"{name} {count}")
    print(f"{sum(ends.values())} broken files, {bad} ended badly")
    sys.exit(bool(bad))


if __name__ == "__main__":
    main()
