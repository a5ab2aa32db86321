#!/usr/bin/env python3
"""Makes a zip file for OggZipDataset from a Bliss corpus: the audio of each segment as Ogg Vorbis, and the transcriptions."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.datasets._audio.bliss_to_zip import BlissToZip
from returnn.datasets._audio.segment_audio import CopyAudio, FfmpegAudio, NoAudio, SegmentAudio
from returnn.errors import NotSupportedError

__all__ = ["main"]

_DEFAULT_RAW_SAMPLE_RATE = 8000
_DEFAULT_FEAT_SAMPLE_RATE = 100


def _positive(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a number from 1 on, got {text!r}")
    return int(text)


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Make a zip file for OggZipDataset from a Bliss corpus. File names of recordings are relative to the "
        "working directory. Nothing is left if it does not finish."
    )
    parser.add_argument("bliss_filename", help="Bliss XML (or .xml.gz)")
    parser.add_argument("--output", required=True, help='zip file to write, NAME.zip; "": only show what would be done')
    parser.add_argument("--subset_segment_file", help="text with one full segment name per line: only these")
    parser.add_argument("--no_ogg", action="store_true", help="no audio, only the transcriptions and durations")
    parser.add_argument("--no_conversion", action="store_true", help="copy whole recordings, which must be .ogg")
    parser.add_argument("--no_cleanup", action="store_true", help="keep the temporary directory with all files")
    parser.add_argument("--raw_sample_rate", type=int, default=_DEFAULT_RAW_SAMPLE_RATE, help="has no effect")
    parser.add_argument("--feat_sample_rate", type=int, default=_DEFAULT_FEAT_SAMPLE_RATE, help="has no effect")
    parser.add_argument("--ffmpeg_loglevel", default="info", help="of ffmpeg (default: info)")
    parser.add_argument("--ffmpeg_acodec", help="audio codec of the recordings, if ffmpeg does not find out")
    parser.add_argument("--ffmpeg_resample", type=int, default=0, help="sample rate of the result in Hz")
    parser.add_argument("--number_of_channels", type=int, default=0, help="of the result")
    parser.add_argument("--sprint_cache", help="not supported")
    parser.add_argument("--jobs", type=_positive, help="ffmpeg processes at the same time (default: number of CPUs)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing zip file")
    return parser


def _make_audio(args: argparse.Namespace) -> SegmentAudio:
    if args.no_ogg or not args.output:
        return NoAudio()
    if args.no_conversion:
        return CopyAudio()
    return FfmpegAudio(
        acodec=args.ffmpeg_acodec,
        number_of_channels=args.number_of_channels,
        resample=args.ffmpeg_resample,
        loglevel=args.ffmpeg_loglevel,
    )


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    args = _make_parser().parse_args(list(argv[1:]))
    if args.sprint_cache:
        raise NotSupportedError(
            "--sprint_cache is not supported: RASR caches cannot be read. Give a corpus with the start and end times."
        )
    if args.raw_sample_rate != _DEFAULT_RAW_SAMPLE_RATE or args.feat_sample_rate != _DEFAULT_FEAT_SAMPLE_RATE:
        print("Note: --raw_sample_rate and --feat_sample_rate only matter with a RASR cache, they have no effect here.")
    BlissToZip(
        args.bliss_filename,
        args.output,
        _make_audio(args),
        subset_segment_file=args.subset_segment_file,
        overwrite=args.overwrite,
        recordings_must_exist=not args.no_ogg,
        cleanup=not args.no_cleanup,
        num_jobs=args.jobs or len(os.sched_getaffinity(0)),
    ).run()


if __name__ == "__main__":
    run_tool(main)
