"""The dataset of the task forward: in which order it is read, and from where on."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

from returnn.datasets.basic import Dataset
from returnn.datasets.meta import ConcatDataset
from returnn.datasets.multi_proc import MultiProcDataset
from returnn.log import log
from returnn.torch.data.loader import Loader

__all__ = ["keep_order_of_ranks", "positions_of_batch", "read_as_it_is", "sort_by_length"]

#: Their sequences come in an order that they were built with.
_FIXED_ORDER = (ConcatDataset, MultiProcDataset)


def sort_by_length(dataset: Dataset) -> bool:
    """
    Let a dataset give its longest sequences first, from its next epoch on: what does not fit into memory fails at the
    start, and there is less padding.

    :param dataset: changed, unless it does not know the lengths of its sequences
    :return: whether it is sorted now
    """
    target: Any = dataset  # Any: classes with children have more attributes
    while True:  # of a dataset with children, one may decide about the order
        children = getattr(target, "datasets", None)
        control = getattr(target, "seq_order_control_dataset", None)
        if not isinstance(children, dict) or control not in children:
            break
        target = children[control]
    name = getattr(dataset, "name", None) or type(dataset).__name__
    if isinstance(target, _FIXED_ORDER) or not hasattr(target, "seq_ordering"):
        return False
    if not target.supports_seq_order_sorting():
        print(
            f"Dataset {name!r} does not know the lengths of its sequences: they are forwarded in its order.",
            file=log.v4,
        )
        return False
    if target.seq_ordering != "sorted_reverse":
        print(
            f"Dataset {name!r}: sorted by length, longest first (seq_ordering was {target.seq_ordering!r}). "
            "sort_dataset = False keeps its order.",
            file=log.v3,
        )
        target.seq_ordering = "sorted_reverse"
    return True


def read_as_it_is(loader: Loader) -> None:
    """
    Read the epoch that the dataset is at already, in this process: worker processes have copies without it.

    :param loader: not yet in use
    """
    if loader.num_workers:
        print(f"Dataset {loader.name!r} has its order already, so it is read in the main process.", file=log.v4)
    loader.loader_options = dataclasses.replace(loader.loader_options, num_workers=0)
    loader.options = dataclasses.replace(loader.options, starts_epoch=False)


def keep_order_of_ranks(loader: object, num_ranks: int) -> None:
    """
    With several ranks, the place of a sequence in the dataset must be known from its place among those of its rank.

    :param loader: not yet in use. One of a custom engine is left alone
    :param num_ranks: number of processes that forward
    """
    if not isinstance(loader, Loader):
        return
    if num_ranks > 1 and loader.num_workers > 1 and not loader.options.is_global:
        print(
            f"Dataset {loader.name!r}: one worker process per rank instead of {loader.num_workers}, so that the results "
            'keep the order of the data. worker_batching = "global" works with any number.',
            file=log.v3,
        )
        loader.loader_options = dataclasses.replace(loader.loader_options, num_workers=1)


def positions_of_batch(data: Mapping[str, Any], loader: object, *, rank: int, num_ranks: int) -> list[int]:
    """
    :param data: raw batch, of a loader for which keep_order_of_ranks was called. Any: tensors and lists
    :param loader: that gave it
    :param rank: of this process
    :param num_ranks: number of processes
    :return: places of its sequences in the epoch of the dataset. If the dataset itself gives each rank its part, the
        parts count as taken in turn
    """
    idxs = [int(idx) for idx in data["seq_idx"]]
    if (
        isinstance(loader, Loader) and loader.options.is_global and loader.options.num_ranks > 1
    ):  # whole batches are dealt to the ranks
        return idxs
    return [idx * num_ranks + rank for idx in idxs]
