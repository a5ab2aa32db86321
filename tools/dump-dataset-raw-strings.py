#!/usr/bin/env python3
"""Writes the texts of a dataset as Python dict, tag -> text: the form of all tools for recognition output."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._dataset_tools.texts import iter_texts, open_text_dataset
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError, describe
from returnn.log import log
from returnn.util.py_text_dict import save_text_dict
from returnn.util.time_format import hms_fraction

_EPILOG = """\
examples:
  dump-dataset-raw-strings.py --config my.config --dataset dev --key orth --out refs.py
  dump-dataset-raw-strings.py --dataset '{"class": "OggZipDataset", "path": "a.zip", "audio": None, ...}' --out refs.py.gz
"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Write the texts of a dataset as Python dict {'tag': 'text', ...}.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "--config", metavar="FILE", help="config with the dataset (option dump_data, search_data or eval)"
    )
    parser.add_argument("--dataset", help="name of the dataset in the config; or without --config, a dataset literal")
    parser.add_argument("--startseq", type=int, default=0, help="first sequence (default: 0)")
    parser.add_argument("--endseq", type=int, default=-1, help="last sequence, inclusive (default: -1, all)")
    parser.add_argument("--key", default="raw", help="data key of the texts (default: raw)")
    parser.add_argument("--verbosity", type=int, default=4, choices=range(6), help="of the log (default: 4)")
    parser.add_argument("--out", required=True, metavar="FILE", help="file to write; compressed if it ends with .gz")
    return parser


def _iter_unique(dataset: Dataset, args: argparse.Namespace) -> Iterator[tuple[str, str]]:
    seen: set[str] = set()
    for tag, text in iter_texts(dataset, key=args.key, start=args.startseq, end=args.endseq):
        if tag in seen:
            raise DatasetError(
                describe(
                    f"Two sequences have the tag {tag!r}, but a dict has only one text per tag",
                    where=f"dataset {dataset.name!r}",
                    todo="Set unique_seq_tags = True in the dataset to use only the first",
                )
            )
        seen.add(tag)
        yield tag, text
    print(f"Num seqs: {len(seen)}", file=log.v2)


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    args = parser.parse_args(list(argv[1:]))
    if args.config is None and args.dataset is None:
        parser.error("give --config or --dataset")
    if args.startseq < 0:
        parser.error(f"--startseq must not be negative, got {args.startseq}")
    check_output_file(args.out, option="--out")
    start_time = time.monotonic()
    dataset = open_text_dataset(
        args.config, args.dataset, option_names=("dump_data", "search_data", "eval"), verbosity=args.verbosity
    )
    print("Returnn dump-dataset-raw-strings starting up.", file=log.v3)
    save_text_dict(args.out, _iter_unique(dataset, args))
    print(f"Done. Total time {hms_fraction(time.monotonic() - start_time)}. Wrote {args.out!r}.", file=log.v2)


if __name__ == "__main__":
    run_tool(main)
