#!/usr/bin/env python3
"""
The main job from start to end: train, evaluate, forward the best checkpoint over the test digits, check the result.

usage: python demos/digits/run.py [folder for the files that are written, default: out/digits]
Exit code 1 if fewer than 95 % of the test digits are recognised.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
ROOT = os.path.dirname(os.path.dirname(HERE))
sys.path.insert(0, ROOT)

from returnn.datasets import init_dataset  # noqa: E402
from returnn.learning_rate_control import LearningRateControl  # noqa: E402
from returnn.log import log  # noqa: E402

REQUIRED_ACCURACY = 0.95


def rnn(*args: str, out: str) -> None:
    """Run rnn.py, and stop here if it fails."""
    command = [sys.executable, os.path.join(ROOT, "rnn.py"), os.path.join(HERE, "digits.config"), *args]
    print("$", " ".join(["python", *(os.path.relpath(a) if os.path.isabs(a) else a for a in command[1:])]), flush=True)
    returncode = subprocess.call(command, env={**os.environ, "DEMO_OUT": out})
    if returncode:
        sys.exit(returncode)


def best_epoch(learning_rate_file: str) -> int:
    """:return: epoch with the lowest error on the dev data"""
    control = LearningRateControl(default_learning_rate=1.0, filename=learning_rate_file)
    return min(control.epoch_data, key=lambda epoch: control.get_epoch_error_dict(epoch)["dev_loss_ce"])


def accuracy(output_file: str) -> float:
    """:return: share of the sequences of output.hdf whose digit is that of digits.hdf"""
    outputs = init_dataset({"class": "HDFDataset", "files": [output_file]})
    reference = init_dataset({"class": "HDFDataset", "files": [os.path.join(HERE, "digits.hdf")]})
    outputs.init_seq_order(epoch=1)
    reference.init_seq_order(epoch=1, seq_list=outputs.get_all_tags())
    num_right = 0
    for i in range(outputs.num_seqs):
        outputs.load_seqs(i, i + 1)
        reference.load_seqs(i, i + 1)
        num_right += int(outputs.get_data(i, "digit")[0]) == int(reference.get_data(i, "classes")[0])
    return num_right / outputs.num_seqs


def main() -> None:
    """Run everything."""
    log.initialize(verbosity=[1])  # of this program itself: only what matters
    out = sys.argv[1] if len(sys.argv) > 1 else os.path.join("out", "digits")
    shutil.rmtree(out, ignore_errors=True)
    os.makedirs(out)
    rnn(out=out)
    rnn("++task", "eval", out=out)
    epoch = best_epoch(os.path.join(out, "learning_rates"))
    rnn("++task", "forward", "++load", f"{out}/models/epoch.{epoch:03}.pt", out=out)
    result = accuracy(os.path.join(out, "output.hdf"))
    passed = result >= REQUIRED_ACCURACY
    print(
        f"Accuracy on the test digits: {result:.2%} (must reach {REQUIRED_ACCURACY:.0%}): {'passed' if passed else 'FAILED'}"
    )
    sys.exit(0 if passed else 1)


if __name__ == "__main__":
    main()
