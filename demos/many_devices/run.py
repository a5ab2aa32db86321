#!/usr/bin/env python3
"""
The same training in one process and in two, from a config in the dialect of RETURNN's PyTorch backend.

Both have the same batches in total, so both must reach the same parameters; then two processes forward the test digits
through a callback, and the accuracy is checked.

usage: python demos/many_devices/run.py [folder for the files that are written, default: out/many_devices]
Exit code 1 if the parameters differ by more than 1e-4, or more than 8 % of the test digits are wrong.
"""

from __future__ import annotations

import json
import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

import torch  # noqa: E402
from common import finish, parse_args, rnn  # noqa: E402

import returnn  # noqa: E402, F401
from returnn.datasets import init_dataset  # noqa: E402

CONFIG = os.path.join(HERE, "digits.config")
EPOCH = 10


def largest_difference(file1: str, file2: str) -> float:
    """:return: of all parameters of two checkpoints"""
    state1, state2 = (torch.load(f, weights_only=True)["model"] for f in (file1, file2))
    assert state1.keys() == state2.keys()
    return max(float((state1[name] - state2[name]).abs().max()) for name in state1)


def error_rate(digits_file: str) -> float:
    """:return: share of the test sequences whose digit in the file is wrong"""
    with open(digits_file) as file:
        digits: dict[str, int] = json.load(file)
    reference = init_dataset({"class": "HDFDataset", "files": [os.path.join(HERE, "..", "digits", "digits.hdf")]})
    reference.init_seq_order(epoch=1, seq_list=list(digits))
    num_wrong = 0
    for i, digit in enumerate(digits.values()):
        reference.load_seqs(i, i + 1)
        num_wrong += digit != int(reference.get_data(i, "classes")[0])
    return num_wrong / len(digits)


def main() -> None:
    """Run everything."""
    args = parse_args("many_devices", __doc__)
    one, two = os.path.join(args.out, "one_process"), os.path.join(args.out, "two_processes")
    for folder in (one, two):
        os.makedirs(folder)
    rnn(CONFIG, DEMO_OUT=one)
    rnn(CONFIG, "++max_seqs", "25", num_processes=2, DEMO_OUT=two)
    difference = largest_difference(*(f"{folder}/models/epoch.{EPOCH:03}.pt" for folder in (one, two)))
    print(f"Largest difference of a parameter after {EPOCH} epochs, one process against two: {difference:.1e}")
    if difference > 1e-4:
        sys.exit("The parameters must not differ by more than 1e-4: FAILED")
    checkpoint = f"{two}/models/epoch.{EPOCH:03}.pt"
    rnn(CONFIG, "++task", "forward", "++load", checkpoint, num_processes=2, DEMO_OUT=two)
    finish("Errors on the test digits", error_rate(os.path.join(two, "digits.json")), 0.08, "{:.2%}".format)


if __name__ == "__main__":
    main()
