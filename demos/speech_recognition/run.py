#!/usr/bin/env python3
"""
Speech recognition from WAV files: synthesise spoken digit strings, make ogg-zips of a Bliss corpus, train a CTC model on
log-mel features, recognise strings spoken by voices that are not in the training data, compute the word error rate.

usage: python demos/speech_recognition/run.py [folder for the files that are written] [--small]
About 4 minutes on two CPU cores (--small: 2); word error rate 1 % (--small: 3 %), must be under 10 %.
"""

from __future__ import annotations

import os
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.dirname(HERE))

from common import best_epoch, finish, need_programs, parse_args, rnn, tool  # noqa: E402
from make_corpus import DIGITS, make_corpus  # noqa: E402

MAX_WORD_ERROR_RATE = 10.0  # per cent


def prepare(out: str, *, small: bool) -> None:
    """Write the corpora, the zips, and the list of words."""
    make_corpus(out, small=small)
    for name in ("train", "dev", "test"):
        tool(
            "bliss-to-ogg-zip.py",
            f"{out}/{name}.xml",
            "--output",
            f"{out}/{name}.ogg.zip",
            "--ffmpeg_loglevel",
            "error",
        )
    with open(f"{out}/words.txt", "w", encoding="utf8") as file:
        file.writelines(word + "\n" for word in DIGITS)


def train(out: str) -> str:
    """:return: the best checkpoint"""
    rnn(f"{HERE}/train.config", DEMO_OUT=out)
    return f"{out}/models/epoch.{best_epoch(f'{out}/learning_rates', 'dev_loss_ctc'):03}.pt"


def main() -> None:
    """Run everything."""
    need_programs(espeak_ng="espeak-ng", sox="sox", ffmpeg="ffmpeg")
    args = parse_args("speech_recognition", __doc__)
    prepare(args.out, small=args.small)
    checkpoint = train(args.out)
    rnn(f"{HERE}/train.config", f"{HERE}/recognise.config", "++load", checkpoint, DEMO_OUT=args.out)
    test = f"{{'class': 'OggZipDataset', 'path': '{args.out}/test.ogg.zip', 'audio': None, 'targets': None}}"
    tool("dump-dataset-raw-strings.py", "--dataset", test, "--out", f"{args.out}/refs.py")
    tool(
        "calculate-word-error-rate.py",
        *(
            "--refs",
            f"{args.out}/refs.py",
            "--hyps",
            f"{args.out}/search_out.py",
            "--out",
            f"{args.out}/wer",
            "--expect_full",
        ),
    )
    with open(f"{args.out}/wer", encoding="utf8") as file:
        word_error_rate = float(file.read())
    finish(
        "Word error rate on voices that were not in training", word_error_rate, MAX_WORD_ERROR_RATE, "{:.2f}%".format
    )


if __name__ == "__main__":
    main()
