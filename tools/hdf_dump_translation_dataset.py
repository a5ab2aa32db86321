#!/usr/bin/env python3
"""Writes a parallel text corpus as word indices into an HDF file."""

from __future__ import annotations

import argparse

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.datasets._hdf.translation_writer import POSTFIX, UNKNOWN_LABEL, TranslationCorpusWriter

__all__ = ["UNKNOWN_LABEL", "POSTFIX", "HDFTranslationDatasetCreator", "parse_args", "main"]

#: The name that client code knows.
HDFTranslationDatasetCreator = TranslationCorpusWriter


def parse_args() -> argparse.Namespace:
    """:return: arguments of the command line"""
    parser = argparse.ArgumentParser(description="Convert a parallel text corpus into an HDF file.")
    for short, name, text in [
        ("-s", "--source_corpus", "source text, one sentence per line, plain or .gz"),
        ("-t", "--target_corpus", "target text"),
        ("-v", "--source_vocabulary", "pickled dict word -> index; with factors a comma list, words first"),
        ("-w", "--target_vocabulary", "likewise for the target"),
        ("-o", "--hdf_file", "HDF file to write; an existing file is replaced"),
    ]:
        parser.add_argument(short, name, required=True, help=text)
    parser.add_argument("-n", "--number_of_lines", required=True, type=int, help="number of lines of each text")
    parser.add_argument("--source_factors", help="comma list of the data keys of the source factors")
    parser.add_argument("--target_factors", help="comma list of the data keys of the target factors")
    parser.add_argument("--factor_separator", default="|", help='between a word and its factors (default: "|")')
    parser.add_argument("-c", "--compression", choices=["gzip", "lzf"], help="compression of the HDF arrays")
    parser.add_argument("-l", "--line_buffer_size", type=int, default=100000, help="lines converted at once")
    parser.add_argument("-d", "--data_buffer_size", type=int, default=5000000, help="maximum chunk size in words")
    return parser.parse_args()


def main() -> None:
    """Run with the arguments of the command line."""
    args = parse_args()
    HDFTranslationDatasetCreator(
        args.hdf_file,
        args.source_corpus,
        args.target_corpus,
        args.source_vocabulary.split(","),
        args.target_vocabulary.split(","),
        args.source_factors.split(",") if args.source_factors else None,
        args.target_factors.split(",") if args.target_factors else None,
        args.number_of_lines,
        factor_separator=args.factor_separator,
        compression_method=args.compression,
        line_buffer_size=args.line_buffer_size,
        data_buffer_size=args.data_buffer_size,
    ).create()


if __name__ == "__main__":
    run_tool(lambda argv: main())
