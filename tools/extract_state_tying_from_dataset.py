#!/usr/bin/env python3
"""Writes the state tying (allophone state -> class) that the labels of a dataset describe."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.dataset_source import SOURCE_EPILOG, add_source_arguments, choose_key, open_dataset
from returnn.cli.tool_main import run_tool
from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError, describe
from returnn.util.fs import atomic_write

_EPILOG = """\
The labels of a class are its allophone states joined by "|", as an LmDataset with phone_info and state_tying_file has them, and
HDF files that are written from it. The output has lines "<allophone state> <class>", for the option state_tying_file.

example:
  extract_state_tying_from_dataset.py phones.hdf --key classes --output state-tying

"""


def _iter_ties(dataset: Dataset, key: str) -> list[tuple[str, int]]:
    """:return: allophone state and class, by class"""
    labels = dataset.labels.get(key)
    if not labels:
        raise DatasetError(
            describe(
                f"Dataset {dataset.name!r} has no labels of the data key {key!r}",
                expected="--key, one with labels",
                got=[k for k, values in dataset.labels.items() if values],
            )
        )
    class_of: dict[str, int] = {}
    for class_idx, label in enumerate(labels):
        for state in str(label).split("|"):
            if not state or state != "".join(state.split()) or class_of.setdefault(state, class_idx) != class_idx:
                raise DatasetError(
                    describe(
                        f"The labels of {key!r} are no state tying",
                        where=f"dataset {dataset.name!r}, class {class_idx}",
                        expected='allophone states joined by "|", each in one class only',
                        got=str(label),
                    )
                )
    return list(class_of.items())


def main(argv: Sequence[str]) -> None:
    """
    :param argv: argv[0] is the program
    """
    parser = argparse.ArgumentParser(
        description="Write the state tying that the labels of a dataset describe.",
        epilog=_EPILOG + SOURCE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--key", help='data key with the labels (default: "data")')
    parser.add_argument("--output", required=True, metavar="FILE", help="state tying file to write")
    parser.add_argument("--verbosity", type=int, default=3, choices=range(6), help="of the log (default: 3)")
    args = parser.parse_args(list(argv[1:]))
    _, dataset = open_dataset(args.returnn_config, args.dataset, verbosity=args.verbosity)
    ties = _iter_ties(dataset, choose_key(dataset, args.key))
    with atomic_write(args.output) as file:
        file.writelines(f"{state} {class_idx}\n" for state, class_idx in ties)
    print(f"Wrote {len(ties)} allophone states of {ties[-1][1] + 1} classes to {args.output!r}.")


if __name__ == "__main__":
    run_tool(main)
