#!/usr/bin/env python3
"""Collects the symbols (characters, and special words in brackets) of transcriptions, as vocabulary file."""

from __future__ import annotations

import argparse
import os
import string
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._dataset_tools.orths import iter_orths
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.errors import DataFileError, describe
from returnn.util.fs import atomic_write
from returnn.util.strings import parse_orthography
from returnn.util.time_format import hms

_EPILOG = """\
The input is a config (its dataset train, or --dataset), a dataset literal, a Bliss corpus (.xml, .gz) or text (.gz).

examples:
  collect-orth-symbols.py corpus.xml.gz --output orth.symbols
  collect-orth-symbols.py corpus.xml.gz --dump_orth_syms --filter_orth_sym ä     sequences with that symbol
"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Collect the symbols of transcriptions.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("input", help="config, dataset literal, Bliss corpus, or text")
    parser.add_argument("--dataset", help="name of the dataset in the config (default: train)")
    parser.add_argument("--key", help="data key of the texts in the dataset")
    parser.add_argument("--frame_time", type=float, default=10, help="milliseconds per frame (default: 10)")
    parser.add_argument("--collect_time", type=int, default=1, help="0: do not sum up the time (default: 1)")
    parser.add_argument("--dump_orth_syms", action="store_true", help="print the symbols of each sequence")
    parser.add_argument("--filter_orth_sym", metavar="S", help="only sequences with this symbol")
    parser.add_argument("--filter_orth_syms_seq", metavar="S", help="only sequences with this sequence of symbols")
    parser.add_argument(
        "--max_seq_frame_len", type=float, default=float("inf"), metavar="N", help="skip longer sequences"
    )
    parser.add_argument(
        "--max_seq_orth_len", type=float, default=float("inf"), metavar="N", help="skip those with more symbols"
    )
    parser.add_argument("--add_numbers", type=int, default=1, help="0: not all digits (default: 1)")
    parser.add_argument("--add_lower_alphabet", type=int, default=1, help="0: not all of a-z (default: 1)")
    parser.add_argument("--add_upper_alphabet", type=int, default=1, help="0: not all of A-Z (default: 1)")
    parser.add_argument("--remove_symbols", default="(){}$", help="symbols that are left out (default: (){}$)")
    parser.add_argument("--output", metavar="FILE", help="a symbol per line, sorted; must not exist")
    parser.add_argument("--verbosity", type=int, default=3, choices=range(6), help="of the log (default: 3)")
    return parser


def _contains(symbols: Sequence[str], part: Sequence[str]) -> bool:
    """:return: whether part comes in symbols, without gaps"""
    return any(list(symbols[i : i + len(part)]) == list(part) for i in range(len(symbols) - len(part) + 1))


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    args = parser.parse_args(list(argv[1:]))
    if args.frame_time <= 0:
        parser.error(f"--frame_time must be positive, got {args.frame_time}")
    if args.output and os.path.exists(args.output):
        raise DataFileError(
            describe(f"--output {args.output!r} exists already", todo="Remove it, or give another name")
        )
    check_output_file(args.output, option="--output")
    wanted = parse_orthography(args.filter_orth_syms_seq, postfix=()) if args.filter_orth_syms_seq else []
    found: set[str] = set()
    num_seqs = num_symbols = num_frames = num_filtered = num_timed = 0
    orths = iter_orths(
        args.input, dataset_name=args.dataset, key=args.key, frame_time=args.frame_time, verbosity=args.verbosity
    )
    for orth in orths:
        symbols = parse_orthography(orth.text)
        if (
            (orth.num_frames is not None and orth.num_frames > args.max_seq_frame_len)
            or len(symbols) > args.max_seq_orth_len
            or (args.filter_orth_sym and args.filter_orth_sym not in symbols)
            or (wanted and not _contains(symbols, wanted))
        ):
            num_filtered += 1
            continue
        num_seqs += 1
        num_symbols += len(symbols)
        if orth.num_frames is not None:
            num_frames += orth.num_frames
            num_timed += 1
        found.update(symbols)
        if args.dump_orth_syms:
            print(f"{orth.tag!r}: {symbols}")
    print(f"Num seqs: {num_seqs}" + (f", filtered out: {num_filtered}" if num_filtered else ""))
    print(f"Num symbols: {num_symbols}, {num_symbols / max(num_seqs, 1):.2f} per seq")
    if args.collect_time and num_timed:
        print(f"Total time: {hms(num_frames * args.frame_time / 1000)} ({num_frames} frames in {num_timed} seqs)")
    for enabled, symbols_to_add in (
        (args.add_numbers, string.digits),
        (args.add_lower_alphabet, string.ascii_lowercase),
        (args.add_upper_alphabet, string.ascii_uppercase),
    ):
        if enabled:
            found.update(symbols_to_add)
    result = sorted(found - set(args.remove_symbols))
    print(f"Num different symbols: {len(result)}")
    if args.output:
        with atomic_write(args.output) as file:
            file.writelines(f"{symbol}\n" for symbol in result)
        print(f"Wrote {args.output!r}.")
    else:
        print("Symbols:", result)


if __name__ == "__main__":
    run_tool(main)
