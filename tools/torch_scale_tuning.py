#!/usr/bin/env python3
"""Finds the weights of several scores (e.g. acoustic and language model) over n-best lists with the lowest word error rate."""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli._dataset_tools.scale_tuning import (
    ScaleOptions,
    SearchResult,
    iter_pairs,
    load_n_best,
    make_evaluator,
    search_scales,
)
from returnn.cli.dataset_source import init_tool_log
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.errors import ConfigError, describe
from returnn.log import log
from returnn.util.fs import atomic_write
from returnn.util.optional_import import optional_import
from returnn.util.py_text_dict import load_text_dict

_EPILOG = """\
Score files: {'tag': [(score, 'some words'), ...], ...}, plain or .gz, all with the same tags and texts; references:
{'tag': 'some words', ...}. The hypothesis with the largest sum of scale * score counts.

example:
  torch_scale_tuning.py --names am lm --scores am.py.gz lm.py.gz --ref refs.py --fixed-scales am 1.0 --output-scales scales.json
  ... --names am lm prior --negative-scales prior --scale-relative-to prior lm     prior: factor on the scale of lm, subtracted
"""


def make_parser() -> argparse.ArgumentParser:
    """:return: parser of the command line"""
    parser = argparse.ArgumentParser(
        description="Find the weights of several scores over n-best lists with the lowest word error rate.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--names", nargs="+", required=True, help="of the scores")
    parser.add_argument(
        "--scores", nargs="+", required=True, metavar="FILE", help="score files, in the order of the names"
    )
    parser.add_argument(
        "--evaluation", choices=["edit_distance"], default="edit_distance", help="what is made smallest"
    )
    parser.add_argument("--ref", required=True, metavar="FILE", help="references")
    parser.add_argument("--fixed-scales", nargs="*", default=[], metavar="NAME VALUE", help="scales that are given")
    parser.add_argument("--negative-scales", nargs="*", default=[], metavar="NAME", help="scores that are subtracted")
    parser.add_argument(
        "--scale-relative-to",
        nargs="*",
        default=[],
        metavar="NAME OTHER",
        help="the scale is a factor on that of the other",
    )
    parser.add_argument("--max-scale", type=float, default=2.0, help="largest scale (default: 2.0)")
    parser.add_argument("--min-scales", nargs="*", default=[], metavar="NAME VALUE", help="smallest ones (default: 0)")
    parser.add_argument("--max-scales", nargs="*", default=[], metavar="NAME VALUE", help="largest ones")
    parser.add_argument("--num-iterations", type=int, default=10, help="each searches smaller ranges (default: 10)")
    parser.add_argument("--num-steps", type=int, default=21, help="scales to try in a range (default: 21)")
    parser.add_argument(
        "--search-mode",
        choices=["auto", "grid", "single"],
        default="auto",
        help="grid: all combinations; single: one scale after the other; auto: grid if two scales are free",
    )
    parser.add_argument(
        "--device", choices=["cpu", "auto", "cuda"], default="cpu", help="cpu needs no torch (default: cpu)"
    )
    parser.add_argument("--batch-size", type=int, default=1024, help="combinations of scales at once (default: 1024)")
    parser.add_argument("--output-scales", metavar="FILE", help="JSON file of the scales")
    parser.add_argument("--output-real-scales", metavar="FILE", help="JSON file of the factors on the scores")
    parser.add_argument(
        "--output-grid-plot", metavar="FILE", help="image of the word error rates of a grid of two scales"
    )
    return parser


def _floats(args: Sequence[str], *, option: str) -> dict[str, float]:
    result = {}
    for name, text in iter_pairs(args, option=option):
        try:
            result[name] = float(text)
        except ValueError as exc:
            raise ConfigError(describe(f"{option} is invalid for {name!r}", expected="a number", got=text)) from exc
    return result


def _plot(result: SearchResult, names: Sequence[str], filename: str) -> None:
    if result.grid is None or len(names) != 2:
        raise ConfigError("--output-grid-plot needs a grid search (--search-mode) over two free scales.")
    matplotlib = optional_import("matplotlib", needed_by="--output-grid-plot")
    matplotlib.use("agg")
    plt = optional_import("matplotlib.pyplot", needed_by="--output-grid-plot")
    (xs, ys), values = result.grid
    figure, axes = plt.subplots()
    image = axes.pcolormesh(xs, ys, values.T * 100, shading="nearest")
    figure.colorbar(image, label="WER [%]")
    axes.set_xlabel(names[0])
    axes.set_ylabel(names[1])
    axes.plot([result.scales[names[0]]], [result.scales[names[1]]], "r+")
    with atomic_write(filename, "wb") as file:
        figure.savefig(file, format=filename.rpartition(".")[2] if "." in filename else "png")


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = make_parser()
    args = parser.parse_args(list(argv[1:]))
    if len(args.names) != len(args.scores):
        parser.error(f"{len(args.names)} --names, but {len(args.scores)} --scores")
    if args.num_steps < 1 or args.num_iterations < 1 or args.batch_size < 1:
        parser.error("--num-steps, --num-iterations and --batch-size must be at least 1")
    for option in ("output_scales", "output_real_scales", "output_grid_plot"):
        check_output_file(getattr(args, option), option="--" + option.replace("_", "-"))
    init_tool_log(4)
    options = ScaleOptions(
        args.names,
        fixed=_floats(args.fixed_scales, option="--fixed-scales"),
        negative=args.negative_scales,
        relative_to=dict(iter_pairs(args.scale_relative_to, option="--scale-relative-to")),
        min_scales=_floats(args.min_scales, option="--min-scales"),
        max_scales=_floats(args.max_scales, option="--max-scales"),
        max_scale=args.max_scale,
    )
    lists = load_n_best(
        [(name, load_text_dict(name)) for name in args.scores], load_text_dict(args.ref), refs_name=args.ref
    )
    print(f"{lists.distances.shape[0]} sequences, {int(lists.is_hyp.sum())} hypotheses", file=log.v3)
    oracle = lists.distances.min(axis=1, where=lists.is_hyp, initial=float("inf")).sum() / lists.num_ref_words
    print(f"Oracle WER: {oracle * 100:.02f}%", file=log.v3)
    evaluate = make_evaluator(lists, device=args.device, batch_size=args.batch_size)
    result = search_scales(
        evaluate, options, mode=args.search_mode, num_iterations=args.num_iterations, num_steps=args.num_steps
    )
    print(f"Scales: {json.dumps(result.scales)}")
    print(f"Real scales: {json.dumps(result.real_scales)}")
    print(f"WER: {result.value * 100:.02f}%")
    for filename, scales in ((args.output_scales, result.scales), (args.output_real_scales, result.real_scales)):
        if filename:
            with atomic_write(filename) as file:
                file.write(json.dumps(scales) + "\n")
    if args.output_grid_plot:
        _plot(result, options.free_names, args.output_grid_plot)


if __name__ == "__main__":
    run_tool(main)
