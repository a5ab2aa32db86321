#!/usr/bin/env python3
"""Draws the scores and learning rates of one or more trainings over the epochs: on the terminal, or as picture."""

from __future__ import annotations

import argparse
import fnmatch
import math
import os
import sys
from collections.abc import Sequence
from typing import Any

import _setup_returnn_env  # noqa: F401

from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.errors import ConfigError, DataFileError
from returnn.lr import lr_file
from returnn.util.optional_import import optional_import
from returnn.util.terminal import terminal_size
from returnn.util.text_chart import Curve, chart, curve_mark, short_number, sparkline

__all__ = ["main"]

#: Name of the curve with the learning rates, which are no score: nothing is the best.
LEARNING_RATE = "learning_rate"
#: Below this width a chart would not show more than a line of bars.
_MIN_CHART_WIDTH = 40


def _make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        description="Plot scores and learning rates over the epochs. Lower is better: the lowest value of each curve is "
        "marked by a star."
    )
    parser.add_argument(
        "files", nargs="+", help="learning-rate files, or folders with a file learning_rates; several are compared"
    )
    parser.add_argument(
        "--keys", metavar="A,B", help="which scores, with * and ?, e.g. 'dev_*,learning_rate' (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="list the keys with their best and last values")
    parser.add_argument("--png", metavar="FILE", help="write a picture (needs matplotlib); other endings: .svg, .pdf")
    parser.add_argument("--spark", action="store_true", help="one line per curve instead of charts")
    parser.add_argument("--log_scale", action="store_true", help="logarithmic values")
    parser.add_argument("--width", type=int, help="columns (default: of the terminal, else 80)")
    parser.add_argument("--height", type=int, default=13, help="rows of each chart (default: 13)")
    parser.add_argument("--ascii", action="store_true", help="only ASCII characters")
    return parser


def _read(path: str) -> dict[str, dict[int, float]]:
    """:return: key -> epoch -> value"""
    filename = os.path.join(path, "learning_rates") if os.path.isdir(path) else path
    res: dict[str, dict[int, float]] = {}
    for epoch, data in sorted(lr_file.load(filename).items()):
        for key, value in sorted(data.error.items()):
            res.setdefault(key, {})[epoch] = value
        if data.learning_rate is not None:
            res.setdefault(LEARNING_RATE, {})[epoch] = data.learning_rate
    if not res:
        raise DataFileError(f"Learning-rate file {filename!r} has no epochs yet.")
    res[LEARNING_RATE] = res.pop(LEARNING_RATE, {})  # at last
    return {key: points for key, points in res.items() if points}


def _choose_keys(all_keys: Sequence[str], patterns: str | None) -> list[str]:
    if patterns is None:
        return list(all_keys)
    res: list[str] = []
    for pattern in patterns.split(","):
        found = fnmatch.filter(all_keys, pattern.strip())
        if not found:
            raise ConfigError(f"--keys: nothing has the name {pattern.strip()!r}. There are: {', '.join(all_keys)}.")
        res += found
    return list(dict.fromkeys(res))


def _curve(name: str, key: str, points: dict[int, float]) -> Curve:
    finite = {epoch: value for epoch, value in points.items() if math.isfinite(value)}
    best = min(finite, key=lambda epoch: (finite[epoch], epoch)) if finite and key != LEARNING_RATE else None
    return Curve(name, points, best)


def _summary(curve: Curve) -> str:
    last = max(curve.points)
    text = f"last {short_number(curve.points[last])} at epoch {last}"
    if curve.best is not None:
        text = f"best {short_number(curve.points[curve.best])} at epoch {curve.best}, " + text
    return text


def _print_chart(key: str, curves: Sequence[Curve], args: argparse.Namespace, width: int) -> None:
    print(key)
    for i, curve in enumerate(curves):
        mark = "" if len(curves) == 1 else f"{curve_mark(i, ascii_only=args.ascii)} {curve.name}: "
        print(f"  {mark}{_summary(curve)}")
    for line in chart(curves, width=width, height=args.height, log_scale=args.log_scale, ascii_only=args.ascii):
        print(line)
    print()


def _print_sparklines(curves: dict[str, list[Curve]], args: argparse.Namespace, width: int) -> None:
    for key, of_key in curves.items():
        for curve in of_key:
            name = key if len(of_key) == 1 and len(args.files) == 1 else f"{key} ({curve.name})"
            print(name)
            print("  " + sparkline(curve.points, width=max(width - 2, 8), ascii_only=args.ascii))
            print("  " + _summary(curve))


def _write_picture(filename: str, curves: dict[str, list[Curve]], *, log_scale: bool) -> None:
    """:raises MissingDependencyError: without matplotlib"""
    figure_module: Any = optional_import("matplotlib.figure", needed_by="the option --png of plot-scores")
    num_columns = min(len(curves), 2)
    num_rows = math.ceil(len(curves) / num_columns)
    figure = figure_module.Figure(figsize=(7 * num_columns, 3.5 * num_rows), layout="constrained")
    axes = figure.subplots(num_rows, num_columns, squeeze=False).reshape(-1)
    for axis, (key, of_key) in zip(axes, curves.items(), strict=False):
        for curve in of_key:
            epochs = sorted(curve.points)
            (line,) = axis.plot(epochs, [curve.points[epoch] for epoch in epochs], label=curve.name, marker=".")
            if curve.best is not None:
                axis.plot([curve.best], [curve.points[curve.best]], marker="*", markersize=12, color=line.get_color())
        axis.set_title(key)
        axis.set_xlabel("epoch")
        axis.set_yscale("log" if log_scale else "linear")
        axis.grid(alpha=0.3)
        if len(of_key) > 1:
            axis.legend()
    for axis in axes[len(curves) :]:
        axis.set_visible(False)
    ending = os.path.splitext(filename)[1].lstrip(".") or "png"
    tmp_filename = f"{filename}.tmp"
    try:
        figure.savefig(tmp_filename, format=ending)
        os.replace(tmp_filename, filename)
    except (OSError, ValueError) as exc:
        raise ConfigError(f"--png: cannot write {filename}: {exc}.") from exc
    finally:
        if os.path.exists(tmp_filename):
            os.remove(tmp_filename)
    print(f"Wrote {filename}")


def _can_print_unicode() -> bool:
    try:
        "●★┤▁".encode(sys.stdout.encoding or "ascii")
    except (UnicodeEncodeError, LookupError):
        return False
    return True


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    :raises DataFileError: a file is missing or broken
    :raises ConfigError: no such key
    """
    args = _make_parser().parse_args(list(argv[1:]))
    check_output_file(args.png, option="--png")
    args.ascii = args.ascii or not _can_print_unicode()
    data = {path: _read(path) for path in args.files}
    all_keys = list(dict.fromkeys(key for of_file in data.values() for key in of_file if key != LEARNING_RATE))
    all_keys += [LEARNING_RATE] if any(LEARNING_RATE in of_file for of_file in data.values()) else []
    curves = {
        key: [_curve(path, key, of_file[key]) for path, of_file in data.items() if key in of_file]
        for key in _choose_keys(all_keys, args.keys)
    }
    if args.list:
        for key, of_key in curves.items():
            for curve in of_key:
                print(
                    f"{key}{'' if len(data) == 1 else f' ({curve.name})'}: {len(curve.points)} epochs, {_summary(curve)}"
                )
        return
    if args.png:
        _write_picture(args.png, curves, log_scale=args.log_scale)
        return
    width = args.width or max(terminal_size()[0], 0) or 80
    if args.spark or width < _MIN_CHART_WIDTH:
        _print_sparklines(curves, args, width)
        return
    for key, of_key in curves.items():
        _print_chart(key, of_key, args, width)


if __name__ == "__main__":
    run_tool(main)
