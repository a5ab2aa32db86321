"""
Which part of the data a rank reads, if several processes train together.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from returnn.errors import DatasetError
from returnn.log import log

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["data_rank", "num_seqs_of_rank"]


def data_rank(dataset: Dataset, rank: int, num_ranks: int, *, name: str, is_global: bool) -> tuple[int, int]:
    """
    Data is cut into shards once: by the dataset if its options say so, else by the loader.

    :param dataset: to load from
    :param rank: of this process
    :param num_ranks: number of processes that train together
    :param name: of the dataset, for messages
    :param is_global: whole batches are dealt to the ranks
    :return: (rank, number of ranks) for the loader; (0, 1): this process reads all that its dataset gives
    :raises DatasetError: the dataset cannot be shared out
    """
    if num_ranks <= 1:
        return 0, 1
    own = _own_sharding(dataset)
    if own is not None:
        print(f"Dataset {name!r}: its part for rank {rank} of {num_ranks} comes from {own}.", file=log.v3)
        return 0, 1
    if hasattr(dataset, "distrib_shard_files"):
        print(
            f"Dataset {name!r}: each rank reads all files, and uses one of {num_ranks} sequences in turn. "
            "With distrib_shard_files = True, each rank reads files of its own.",
            file=log.v3,
        )
    if not is_global and not dataset.supports_sharding():
        raise DatasetError(
            f"Dataset {name!r} is a {type(dataset).__name__}, which does not support sharding, so {num_ranks} ranks cannot "
            'each read their own part of it. Set worker_batching = "global", or use one process.'
        )
    return rank, num_ranks


def _own_sharding(dataset: Dataset) -> str | None:
    """:return: by what the dataset gives each rank its own data; None: it does not"""
    uses_custom = getattr(dataset, "_uses_custom_distributed_sharding", None)  # classes of users may have less
    if uses_custom is not None and uses_custom():
        return "the dataset itself (distrib_shard_files)"
    num_shards = getattr(dataset, "_num_shards", 1)
    if num_shards > 1:
        return f"its options _num_shards = {num_shards} and _shard_index = {dataset._shard_index}"
    if hasattr(dataset, "child_datasets"):
        for child in dataset.child_datasets():
            own = _own_sharding(child)
            if own is not None:
                return f"the dataset {child.name!r} in it: {own}"
    # Datasets that are only built in other processes (MultiProcDataset).
    if _asks_for_sharded_files(getattr(dataset, "dataset", None)):
        return "a dataset in it (distrib_shard_files)"
    return None


def _asks_for_sharded_files(opts: object) -> bool:
    """:param opts: a dataset dict, maybe with others in it"""
    if isinstance(opts, Mapping):
        return bool(opts.get("distrib_shard_files")) or any(map(_asks_for_sharded_files, opts.values()))
    return isinstance(opts, (list, tuple)) and len(opts) < 1000 and any(map(_asks_for_sharded_files, opts))


def num_seqs_of_rank(num_seqs: int | None, rank: int, num_ranks: int) -> int | None:
    """:return: how many of the sequences of an epoch this rank reads; None: not known"""
    return None if num_seqs is None else len(range(rank, num_seqs, num_ranks))
