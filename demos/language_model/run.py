#!/usr/bin/env python3
"""
Language model from plain text: English sentences (Python's documentation), byte pair units, LSTM; perplexity of other sentences.

usage: python demos/language_model/run.py [folder for the files that are written] [--small]
About 4 minutes on two CPU cores (--small: 1); perplexity per word 113 (--small: 252), must be under 130 (300).
"""

from __future__ import annotations

import collections
import gzip
import math
import os
import random
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from common import best_epoch, finish, parse_args, rnn, scores  # noqa: E402
from learn_bpe import learn_bpe  # noqa: E402
from make_text import sentences  # noqa: E402

from returnn.datasets.util.vocabulary import Vocabulary  # noqa: E402

MAX_PERPLEXITY = 130.0
MAX_PERPLEXITY_SMALL = 300.0


def prepare(out: str, *, small: bool) -> None:
    """Write train, dev and test text, the byte pair units, and which of them end a word."""
    lines = sentences()
    random.Random(1).shuffle(lines)
    if small:
        lines = lines[:5000]
    parts = {"dev": lines[:400], "test": lines[400:800], "train": lines[800:]}
    for name, part in parts.items():
        with gzip.open(f"{out}/{name}.txt.gz", "wt", encoding="utf8") as file:
            file.writelines(line + "\n" for line in part)
        print(f"{name}: {len(part)} sentences, {sum(len(line.split()) for line in part)} words")
    counts = collections.Counter(word for line in parts["train"] for word in line.split())
    learn_bpe(counts, 1000, codes_file=f"{out}/bpe.codes", vocab_file=f"{out}/bpe.vocab")
    labels = Vocabulary(vocab_file=f"{out}/bpe.vocab", unknown_label="<unk>").labels
    with open(f"{out}/word_end_units.txt", "w", encoding="utf8") as file:
        file.writelines(f"{i}\n" for i, label in enumerate(labels) if not label.endswith("@@"))


def main() -> None:
    """Run everything."""
    args = parse_args("language_model", __doc__)
    prepare(args.out, small=args.small)
    rnn(f"{HERE}/lm.config", DEMO_OUT=args.out, DEMO_EPOCHS="8")
    lr_file = f"{args.out}/learning_rates"
    epoch = best_epoch(lr_file, "dev_loss_ce")
    perplexity = {name: math.exp(scores(lr_file, epoch)[f"{name}_loss_ce_per_word"]) for name in ("dev", "test")}
    print(f"Epoch {epoch} is best. Perplexity per word: dev {perplexity['dev']:.1f}, test {perplexity['test']:.1f}")
    finish("Perplexity per word on test", perplexity["test"], MAX_PERPLEXITY_SMALL if args.small else MAX_PERPLEXITY)


if __name__ == "__main__":
    main()
