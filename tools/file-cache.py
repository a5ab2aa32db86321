#!/usr/bin/env python3
"""Shows the local file cache (see CachedFile, config option file_cache_opts), or cleans it up."""

from __future__ import annotations

import argparse
import os
import re
import shutil
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.tool_main import run_tool
from returnn.util.file_cache import FileCache
from returnn.util.numbers import human_bytes_size
from returnn.util.temp_dirs import get_temp_dir

__all__ = ["parse_size", "main"]

_UNITS = {"": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}


def parse_size(text: str) -> int:
    """
    :param text: bytes, e.g. "10G", "500M", "1.5K", "123"
    :return: number of bytes
    :raises argparse.ArgumentTypeError: something else
    """
    match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([KMGT]?)B?", text.strip(), re.IGNORECASE)
    if match is None:
        raise argparse.ArgumentTypeError(f"expected a number of bytes, e.g. 10G, 500M, 1K or 123, got {text!r}")
    return int(float(match[1]) * _UNITS[match[2].upper()])


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("command", choices=["info", "cleanup"], help="show where the cache is, or delete old files")
    parser.add_argument("--temp-dir", metavar="D", help="set TMPDIR to this (default: the environment's)")
    parser.add_argument(
        "--cache-dir", metavar="D", help="folder of the cache (default: $TMPDIR/$USER/returnn/file_cache)"
    )
    parser.add_argument(
        "--cleanup-require-free-space",
        type=parse_size,
        default=0,
        metavar="SIZE",
        help="free at least this (10G, 500M, 1K, or bytes); an error if that is not possible",
    )
    parser.add_argument(
        "--cleanup-files-always-older-than-days", type=float, metavar="X", help="delete these in any case (default: 31)"
    )
    parser.add_argument(
        "--cleanup-files-wanted-older-than-days",
        type=float,
        metavar="X",
        help="delete these until the wanted space is free (default: 1)",
    )
    parser.add_argument(
        "--cleanup-disk-usage-wanted-free-ratio",
        type=float,
        metavar="X",
        help="wanted free space, as part of the disk (default: 0.2)",
    )
    parser.add_argument(
        "--cleanup-disk-usage-wanted-multiplier",
        type=float,
        metavar="X",
        help="wanted free space, as multiple of the required one (default: 2)",
    )
    return parser


def main(argv: Sequence[str]) -> int:
    """
    :param argv: argv[0] is the program
    :return: exit code
    """
    args = _make_parser().parse_args(list(argv[1:]))
    if args.temp_dir:
        os.environ["TMPDIR"] = args.temp_dir
    for name in ("TMPDIR", "TEMP", "TMP"):
        print(f"Env {name}: {os.environ.get(name)}")
    print("Temp dir:", get_temp_dir())
    opts = {
        "cache_directory": args.cache_dir,
        **{name: value for name, value in vars(args).items() if name.startswith("cleanup_")},
    }
    required = opts.pop("cleanup_require_free_space")
    cache = FileCache(**{name: value for name, value in opts.items() if value is not None})
    print("Cache dir:", cache.cache_directory)
    if not os.path.isdir(cache.cache_directory):
        print("Cache dir does not exist.")
        return 1
    usage = shutil.disk_usage(cache.cache_directory)
    sizes = ", ".join(f"{name} {human_bytes_size(getattr(usage, name))}" for name in ("total", "used", "free"))
    print(f"Cache dir, disk usage: {sizes}")
    if args.command == "cleanup":
        result = cache.cleanup(need_at_least_free_space_size=required)
        reason = f", abort_reason={result.abort_reason!r}" if result.abort_reason else ""
        print(f"CleanupResult(freed={human_bytes_size(result.freed)}{reason})")
    return 0


if __name__ == "__main__":
    run_tool(main)
