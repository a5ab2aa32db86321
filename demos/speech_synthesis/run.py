#!/usr/bin/env python3
"""
Speech synthesis in the style of FastSpeech: durations of words from the aligner of the speech recognition demo (an HDF file,
joined with the audio in a MetaDataset), a model of durations and log-mel frames; then the recognition has to understand
what was synthesised.

usage: python demos/speech_synthesis/run.py [folder for the files that are written] [--asr FOLDER] [--small]
FOLDER: what the demo speech_recognition has written; without it, that is done first.
About 2 minutes on two CPU cores (--small: 1) after the recognition; word error rate 2 % (--small: 5 %), must be under 10 %.
"""

from __future__ import annotations

import os
import subprocess
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
DEMOS = os.path.dirname(HERE)
sys.path.insert(0, DEMOS)

from common import best_epoch, finish, parse_args, rnn, scores, tool  # noqa: E402

MAX_WORD_ERROR_RATE = 10.0  # per cent
ASR = os.path.join(DEMOS, "speech_recognition")


def main() -> None:
    """Run everything."""
    args = parse_args("speech_synthesis", __doc__, asr="folder of the finished demo speech_recognition")
    out, asr = args.out, args.asr
    if not asr:
        asr = os.path.join(out, "speech_recognition")
        command = [sys.executable, os.path.join(ASR, "run.py"), asr, *(["--small"] if args.small else [])]
        if subprocess.call(command):
            sys.exit(1)
    asr_checkpoint = f"{asr}/models/epoch.{best_epoch(f'{asr}/learning_rates', 'dev_loss_ctc'):03}.pt"
    env = {"DEMO_OUT": out, "DEMO_ASR": asr}
    for name in ("train", "dev"):
        command = ["++load", asr_checkpoint, "++align_data", name, "++durations_dir", out]
        rnn(f"{ASR}/train.config", f"{ASR}/align.config", *command, DEMO_OUT=asr)
    rnn(f"{HERE}/train.config", **env)
    epoch = best_epoch(f"{out}/learning_rates", "dev_loss_log_mel_l1")
    result = scores(f"{out}/learning_rates", epoch)
    print(
        f"Epoch {epoch} is best. On dev: mean difference of log-mel values {result['dev_loss_log_mel_l1']:.2f}, "
        f"of log durations {result['dev_loss_duration_l1']:.2f}"
    )
    rnn(f"{HERE}/train.config", f"{HERE}/synthesise.config", "++load", f"{out}/models/epoch.{epoch:03}.pt", **env)
    configs = [f"{ASR}/train.config", f"{ASR}/recognise.config", f"{HERE}/recognise.config"]
    rnn(*configs, "++load", asr_checkpoint, DEMO_OUT=asr, DEMO_SYNTHESIS=out)
    files = ("--refs", f"{asr}/refs.py", "--hyps", f"{out}/search_out.py", "--out", f"{out}/wer", "--expect_full")
    tool("calculate-word-error-rate.py", *files)
    with open(f"{out}/wer", encoding="utf8") as file:
        word_error_rate = float(file.read())
    what = "Word error rate of the recognition on synthesised speech"
    finish(what, word_error_rate, MAX_WORD_ERROR_RATE, "{:.2f}%".format)


if __name__ == "__main__":
    main()
