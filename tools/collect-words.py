#!/usr/bin/env python3
"""Counts the words of transcriptions, and finds those that a lexicon does not have."""

from __future__ import annotations

import argparse
from collections import Counter
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._dataset_tools.orths import iter_orths
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.datasets._lm.lexicon import Lexicon
from returnn.util.fs import atomic_write

_EPILOG = """\
The input is a config (its dataset train, or --dataset), a dataset literal, a Bliss corpus (.xml, .gz) or text (.gz).

examples:
  collect-words.py corpus.xml.gz --lexicon lexicon.xml.gz
  collect-words.py text.gz --output counts.txt
"""


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(
        description="Count the words of transcriptions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="config, dataset literal, Bliss corpus, or text")
    parser.add_argument("--dataset", help="name of the dataset in the config (default: train)")
    parser.add_argument("--key", help="data key of the texts in the dataset")
    parser.add_argument("--dump_orth", action="store_true", help="print each transcription")
    parser.add_argument("--lexicon", metavar="FILE", help="Bliss lexicon: print the words that it does not have")
    parser.add_argument("--output", metavar="FILE", help="write the words with their counts, most frequent first")
    parser.add_argument("--verbosity", type=int, default=3, choices=range(6), help="of the log (default: 3)")
    args = parser.parse_args(list(argv[1:]))
    check_output_file(args.output, option="--output")
    counts: Counter[str] = Counter()
    num_seqs = 0
    for orth in iter_orths(
        args.input, dataset_name=args.dataset, key=args.key, frame_time=10, verbosity=args.verbosity
    ):
        num_seqs += 1
        counts.update(orth.text.split())
        if args.dump_orth:
            print(f"{orth.tag!r}: {orth.text!r}")
    num_words = counts.total()
    print(f"Num seqs: {num_seqs}")
    print(f"Num words: {num_words}, {num_words / max(num_seqs, 1):.2f} per seq")
    print(f"Num different words: {len(counts)}")
    ranked = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    if args.lexicon:
        lemmas = Lexicon(args.lexicon).lemmas
        missing = [(word, count) for word, count in ranked if word not in lemmas]
        num_missing = sum(count for _, count in missing)
        print(
            f"Not in the lexicon: {len(missing)} different words, {num_missing} in all "
            f"({100.0 * num_missing / max(num_words, 1):.2f}%)"
        )
        for word, count in missing:
            print(f"  {word} {count}")
    if args.output:
        with atomic_write(args.output) as file:
            file.writelines(f"{word} {count}\n" for word, count in ranked)
        print(f"Wrote {args.output!r}.")


if __name__ == "__main__":
    run_tool(main)
