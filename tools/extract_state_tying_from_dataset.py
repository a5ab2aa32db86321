#!/usr/bin/env python3
"""Writes the state tying (allophone state -> class) of a dataset whose labels are the allophone states of each class."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import _setup_returnn_env  # noqa: F401

from returnn.cli.dataset_source import SOURCE_EPILOG, add_source_arguments, choose_key, open_dataset
from returnn.cli.output_file import check_output_file
from returnn.cli.tool_main import run_tool
from returnn.datasets.basic import Dataset
from returnn.errors import DatasetError, describe
from returnn.util.fs import atomic_write

_EPILOG = """\
Nothing is taken from the data itself, only from the labels of the data key: the label of each class must be its allophone
states, sorted and joined by "|". Such labels has an LmDataset with phone_info that has a state_tying_file (which needs a lexicon),
and an HDF file written from one; other datasets are refused. So the tool gives back the state tying that such a dataset was made
with. It writes lines "<allophone state> <class>", which the option state_tying_file reads. The tool of this name in RETURNN may
do more; this definition is our own.

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
        description="Write the state tying of a dataset whose labels are the allophone states of each class.",
        epilog=_EPILOG + SOURCE_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add_source_arguments(parser)
    parser.add_argument("--key", help='data key with the labels (default: "data")')
    parser.add_argument("--output", required=True, metavar="FILE", help="state tying file to write")
    parser.add_argument("--verbosity", type=int, default=3, choices=range(6), help="of the log (default: 3)")
    args = parser.parse_args(list(argv[1:]))
    check_output_file(args.output, option="--output")
    _, dataset = open_dataset(args.returnn_config, args.dataset, verbosity=args.verbosity)
    ties = _iter_ties(dataset, choose_key(dataset, args.key))
    with atomic_write(args.output) as file:
        file.writelines(f"{state} {class_idx}\n" for state, class_idx in ties)
    print(f"Wrote {len(ties)} allophone states of {ties[-1][1] + 1} classes to {args.output!r}.")


if __name__ == "__main__":
    run_tool(main)
