#!/usr/bin/env python3
"""Prints attributes of the segments of a Bliss corpus, grouped by recording, on request sorted and merged."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.datasets._audio.segment_items import ATTRIBUTES, iter_segment_items
from returnn.datasets.seq_lists import load_seq_list_file
from returnn.datasets.util.bliss import BlissSegment, iter_segments

__all__ = ["main"]


def _attributes(text: str) -> list[str]:
    names = [name.strip() for name in text.split(",") if name.strip()] or ["segment_name"]
    unknown = [name for name in names if name not in ATTRIBUTES]
    if unknown:
        raise argparse.ArgumentTypeError(f"unknown {', '.join(unknown)}; known are {', '.join(ATTRIBUTES)}")
    return names


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(description="Print attributes of the segments, grouped by recording.")
    parser.add_argument("bliss_filename", help="Bliss XML (or .xml.gz)")
    parser.add_argument("--subset_segment_file", help="text with one full segment name per line: only these")
    parser.add_argument(
        "--output_type",
        type=_attributes,
        default=["segment_name"],
        help=f"comma separated: {', '.join(ATTRIBUTES)} (default: segment_name)",
    )
    parser.add_argument(
        "--merge_swb_ab", action="store_true", help="recordings that differ only in A or B at the end are one group"
    )
    parser.add_argument("--sort_by_time", action="store_true", help="sort by start time in each group")
    parser.add_argument(
        "--merge_segs_up_to_time",
        type=float,
        metavar="SEC",
        help="merge consecutive segments of a group while the sum of durations is not more than that",
    )
    args = parser.parse_args(list(argv[1:]))
    subset = set(load_seq_list_file(args.subset_segment_file)) if args.subset_segment_file else None
    found: set[str] = set()

    def note(segment: BlissSegment) -> BlissSegment:
        if subset is not None and segment.name in subset:
            found.add(segment.name)
        return segment

    items = iter_segment_items(
        map(note, iter_segments(args.bliss_filename)),
        merge_swb_ab=args.merge_swb_ab,
        sort_by_time=args.sort_by_time,
        merge_segs_up_to_time=args.merge_segs_up_to_time,
        subset=subset,
    )
    for item in items:
        print(" ".join(item.text(name) for name in args.output_type))
    missing = sorted((subset or set()) - found)
    if missing:
        print(
            f"Warning: {len(missing)} segments of the subset are not in the corpus, e.g. {missing[:3]}.",
            file=sys.stderr,
        )


if __name__ == "__main__":
    run_tool(main)
