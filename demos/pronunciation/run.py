#!/usr/bin/env python3
"""
Sequence to sequence with attention: the pronunciation of English words. Byte pair units of the spelling to phonemes of
espeak-ng, beam search, phoneme error rate on words that are not in the training data.

usage: python demos/pronunciation/run.py [folder for the files that are written] [--small]
About 3 minutes on two CPU cores (--small: under 1); phoneme error rate 5 % (--small: 15 %), must be under 8 % (18 %).
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from common import best_epoch, finish, need_files, need_programs, parse_args, rnn, tool  # noqa: E402
from make_data import WORD_LIST, make_data  # noqa: E402

MAX_PHONEME_ERROR_RATE = 8.0  # per cent
MAX_PHONEME_ERROR_RATE_SMALL = 18.0


def main() -> None:
    """Run everything."""
    need_programs(espeak_ng="espeak-ng")
    need_files({WORD_LIST: "wamerican-small"})
    args = parse_args("pronunciation", __doc__)
    out = args.out
    make_data(out, num_words=6000 if args.small else 20000)
    rnn(f"{HERE}/train.config", DEMO_OUT=out, DEMO_EPOCHS="10" if args.small else "12")
    checkpoint = f"{out}/models/epoch.{best_epoch(f'{out}/learning_rates', 'dev_loss_error'):03}.pt"
    rnn(f"{HERE}/train.config", f"{HERE}/search.config", "++load", checkpoint, DEMO_OUT=out)
    with open(f"{out}/target.test", encoding="utf8") as lines, open(f"{out}/refs.py", "w", encoding="utf8") as file:
        file.write("{\n" + "".join(f"'line-{i}': {line.strip()!r},\n" for i, line in enumerate(lines)) + "}\n")
    # Phonemes are separated by blanks, so the rate of wrong "words" is that of phonemes. Of an n-best list the first counts.
    hyps = ("--refs", f"{out}/refs.py", "--hyps", f"{out}/search_out.py", "--out", f"{out}/per", "--expect_full")
    tool("calculate-word-error-rate.py", *hyps)
    with open(f"{out}/per", encoding="utf8") as file:
        error_rate = float(file.read())
    limit = MAX_PHONEME_ERROR_RATE_SMALL if args.small else MAX_PHONEME_ERROR_RATE
    finish("Phoneme error rate of new words", error_rate, limit, "{:.2f}%".format)


if __name__ == "__main__":
    main()
