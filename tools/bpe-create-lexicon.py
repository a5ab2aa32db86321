#!/usr/bin/env python3
"""Writes a lexicon (Bliss XML) with all segmentations of each word by the labels of a BPE vocabulary."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import IO

import _setup_returnn_env  # noqa: F401

from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.datasets._vocabulary.bpe_lexicon import iter_lemmas, read_labels, write_lexicon
from returnn.errors import DataFileError
from returnn.log import log
from returnn.util.fs import atomic_write

_FORMATS = "one label per line, Python dict of label to index, or lexicon XML; plain or .gz"


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Write a lexicon: each BPE label is a phoneme, each word has all its segmentations as pronunciations."
    )
    parser.add_argument("--bpe_vocab", required=True, metavar="FILE", help=f"BPE labels: {_FORMATS} (its phonemes)")
    parser.add_argument("--word_vocab", required=True, metavar="FILE", help=f"words: {_FORMATS} (its words)")
    parser.add_argument("--unk", help="has no effect; words without segmentation are left out")
    parser.add_argument(
        "--skip_special", action="store_true", help="leave out words as [..] and <..> that are no BPE label"
    )
    parser.add_argument("--lower_case", action="store_true", help="convert the words to lower case")
    parser.add_argument("--output", metavar="FILE", help="lexicon XML (default: standard output)")
    return parser


def _with_segmentation(
    lemmas: Iterable[tuple[str, list[list[str]]]], messages: IO[str]
) -> Iterator[tuple[str, list[list[str]]]]:
    for word, segmentations in lemmas:
        if segmentations:
            yield word, segmentations
        else:
            print(f"no BPE seq found for word {word!r}", file=messages)


def main(argv: Sequence[str]) -> None:
    """
    :param argv: program name, then its arguments
    """
    args = make_parser().parse_args(argv[1:])
    check_output_file(args.output, option="--output")
    # The lexicon itself may go to stdout, where the log would be.
    log.initialize(verbosity=[0])
    messages = sys.stdout if args.output else sys.stderr
    if args.unk is not None:
        print("--unk has no effect: words without segmentation are left out", file=sys.stderr)
    bpe_labels = read_labels(args.bpe_vocab, phonemes=True)
    print(f"BPE symbols: num {len(bpe_labels)}, first {bpe_labels[0]!r}", file=messages)
    words = read_labels(args.word_vocab, phonemes=False)
    if not words:
        raise DataFileError(f"--word_vocab {args.word_vocab!r} has no words.")
    print(f"Words: num {len(words)}, first {words[0]!r}", file=messages)
    print("Build BPE prefix tree...", file=messages)
    lemmas = iter_lemmas(bpe_labels, words, skip_special=args.skip_special, lower_case=args.lower_case)
    print("Build lexicon...", file=messages, flush=True)
    if args.output:
        with atomic_write(args.output) as file:
            write_lexicon(file, bpe_labels, _with_segmentation(lemmas, messages))
        print(f"Wrote XML: {args.output}", file=messages)
    else:
        write_lexicon(sys.stdout, bpe_labels, _with_segmentation(lemmas, messages))


if __name__ == "__main__":
    run_tool(main)
