#!/usr/bin/env python3
"""Calculates the word error rate of hypotheses against references."""

from __future__ import annotations

import argparse
import contextlib
import itertools
import time
from collections.abc import Iterable, Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._dataset_tools.texts import iter_texts, open_text_dataset
from returnn.cli._dataset_tools.wer import WerResult, best_text, compute_wer
from returnn.cli.dataset_source import init_tool_log
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.errors import DatasetError, describe
from returnn.log import log
from returnn.util.edit_distance import EditCounts
from returnn.util.fs import atomic_write
from returnn.util.py_text_dict import load_text_dict
from returnn.util.time_format import hms_fraction

_EPILOG = """\
Hypotheses and references are Python dicts as text, plain or .gz: {'tag': 'some words', ...}.
A value can be an n-best list [(score, 'some words'), ...]; its first entry counts.
WER = (substitutions + insertions + deletions) / words of the references.

examples:
  calculate-word-error-rate.py --refs refs.py --hyps search_out.py.gz --out wer
  calculate-word-error-rate.py --refs refs.py --hyps search_out.py --per_seq errors.tsv
  calculate-word-error-rate.py --config my.config --dataset dev --key orth --hyps search_out.py
"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Calculate the word error rate.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--hyps", required=True, metavar="FILE", help="hypotheses")
    parser.add_argument("--refs", metavar="FILE", help="references; or they come from a dataset:")
    parser.add_argument(
        "--config", metavar="FILE", help="config with the dataset of the references (option wer_data or eval)"
    )
    parser.add_argument("--dataset", help="name of that dataset in the config; or without --config, a dataset literal")
    parser.add_argument("--key", default="raw", help="data key of the reference texts in the dataset (default: raw)")
    parser.add_argument("--startseq", type=int, default=0, help="first sequence of the references (default: 0)")
    parser.add_argument("--endseq", type=int, default=-1, help="last one, inclusive (default: -1, all)")
    parser.add_argument("--verbosity", type=int, default=4, choices=range(6), help="of the log (default: 4)")
    parser.add_argument("--out", metavar="FILE", help="the WER in percent goes there, with two decimals")
    parser.add_argument("--per_seq", metavar="FILE", help="write a table of the errors of each sequence, tab-separated")
    parser.add_argument("--expect_full", action="store_true", help="it is an error if a hypothesis has no reference")
    return parser


def _refs(args: argparse.Namespace) -> Iterable[tuple[str, str]]:
    """:return: tag and text of the references"""
    if args.refs is None:
        dataset = open_text_dataset(
            args.config, args.dataset, option_names=("wer_data", "search_data", "eval"), verbosity=args.verbosity
        )
        return iter_texts(dataset, key=args.key, start=args.startseq, end=args.endseq)
    items = itertools.islice(
        load_text_dict(args.refs).items(), args.startseq, None if args.endseq < 0 else args.endseq + 1
    )
    return ((tag, best_text(value, where=f"{args.refs}, tag {tag!r}")) for tag, value in items)


def _report(result: WerResult, start_time: float) -> None:
    total_time = hms_fraction(time.monotonic() - start_time)
    print(f"Done. Num seqs {result.num_seqs}. Total time {total_time}.", file=log.v2)
    print(f"Remaining num hyp seqs {len(result.unused_tags)}.", file=log.v2)
    result.ref_chars.dump(stream=log.v3, stream_prefix="Seq-length 'raw' ")
    counts = result.counts
    print(
        f"{counts.num_errors} errors in {counts.num_ref} words: {counts.substitutions} substitutions, "
        f"{counts.insertions} insertions, {counts.deletions} deletions.",
        file=log.v2,
    )
    print(f"{result.num_wrong_seqs} of {result.num_seqs} sequences with errors.", file=log.v2)


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    args = parser.parse_args(list(argv[1:]))
    if args.refs is not None and args.dataset is not None:
        parser.error("give the references by --refs, or by --config and --dataset, not both")
    if args.startseq < 0:
        parser.error(f"--startseq must not be negative, got {args.startseq}")
    check_output_file(args.out, option="--out")
    check_output_file(args.per_seq, option="--per_seq")
    start_time = time.monotonic()
    init_tool_log(args.verbosity)
    with contextlib.ExitStack() as stack:
        on_seq = None
        if args.per_seq is not None:
            file = stack.enter_context(atomic_write(args.per_seq))
            file.write("tag\twords\tsubstitutions\tinsertions\tdeletions\n")

            def on_seq(tag: str, n: EditCounts) -> None:
                file.write(f"{tag}\t{n.num_ref}\t{n.substitutions}\t{n.insertions}\t{n.deletions}\n")

        result = compute_wer(_refs(args), load_text_dict(args.hyps), hyps_name=args.hyps, on_seq=on_seq)
        wer = result.wer_percent
    _report(result, start_time)
    if args.expect_full and result.unused_tags:
        unused = result.unused_tags
        raise DatasetError(
            describe(
                f"There are still remaining hypotheses: {len(unused)} tags of {args.hyps} have no reference, "
                f"e.g. {unused[:3]}",
                todo="Leave out --expect_full if that is wanted",
            )
        )
    print(f"Final WER: {wer:.02f}%")
    if args.out:
        with atomic_write(args.out) as file:
            file.write(f"{wer:.02f}\n")
        print(f"Wrote WER% to {args.out!r}.", file=log.v2)


if __name__ == "__main__":
    run_tool(main)
