#!/usr/bin/env python3
"""
Orders of a large corpus: order and partition of an epoch against one numpy argsort of the same lengths.
Processor time, best of some rounds in turn.

    python benchmarks/seq_orders.py [--num_seqs 10000000] [--rounds 3]
"""

from __future__ import annotations

import argparse
import functools
import itertools
import os
import sys

import numpy

sys.path.insert(0, os.path.dirname(os.path.dirname(os.path.realpath(__file__))))

from benchmarks.common import best_in_turn, print_row  # noqa: E402
from returnn.datasets.basic import Dataset  # noqa: E402
from returnn.log import log  # noqa: E402

TARGET = 1.5


def main() -> None:
    """Print one line per order."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--num_seqs", type=int, default=10_000_000)
    parser.add_argument("--rounds", type=int, default=3)
    args = parser.parse_args()
    log.initialize(verbosity=[1])
    lens = numpy.random.RandomState(1).randint(1, 2000, args.num_seqs).astype("int32")  # as an HDF file has them
    for ordering in ("laplace:.1000", "random", "sorted", "sorted_reverse"):
        dataset = Dataset(seq_ordering=ordering, partition_epoch=10)
        epochs = itertools.count(1, 10)

        def _order(dataset: Dataset = dataset, epochs: itertools.count[int] = epochs) -> None:
            order = dataset.get_seq_order_for_epoch(next(epochs), args.num_seqs, lens)
            assert len(order) == args.num_seqs // 10

        ours, limit = best_in_turn(_order, functools.partial(numpy.argsort, lens), rounds=args.rounds, cpu=True)
        print_row(f"{args.num_seqs} sequences, {ordering}, partition_epoch 10", ours, limit, TARGET)


if __name__ == "__main__":
    main()
