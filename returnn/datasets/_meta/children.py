"""Children of datasets that combine others: how they are made, and what is asked of them as arrays."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from returnn._state import state
from returnn.datasets._meta.seq_rows import get_tag_table
from returnn.datasets.basic import Dataset, init_dataset
from returnn.datasets.seq_order import order_to_array
from returnn.errors import ConfigError, DatasetError, describe
from returnn.log import log

__all__ = [
    "DatasetSpec",
    "make_child",
    "check_no_shared_dataset",
    "dims_of_stream",
    "known_num_seqs",
    "corpus_idxs_of_epoch",
    "tags_of_epoch",
    "lens_to_order_by",
    "init_child_by_positions",
    "warn_about_unused_options",
]

#: What init_dataset takes. Any: options have many types; the function returns a dict or dataset.
DatasetSpec = Mapping[str, Any] | Dataset | Callable[[], Any] | str


def make_child(spec: DatasetSpec, *, name: str, owner: Dataset, seed_offset: int | None, shard: bool) -> Dataset:
    """
    :param spec: of the child
    :param name: unless the child's options have one
    :param owner: dataset that reads it
    :param seed_offset: random_seed_offset where the child's options have none. None: as without owner
    :param shard: the child gives the shard of the owner; else the owner takes its shard itself
    :return: constructed, without an order
    :raises ConfigError: a shard is wanted, but the child is a dataset object that has another one
    """
    defaults: dict[str, Any] = {"name": name}  # Any: str and int
    if seed_offset is not None:
        defaults["random_seed_offset"] = seed_offset
    if shard and owner._num_shards > 1:
        defaults.update(_num_shards=owner._num_shards, _shard_index=owner._shard_index)
    child = init_dataset(spec, default_kwargs=defaults)
    child._is_top_level = False
    if shard and (child._num_shards, child._shard_index) != (owner._num_shards, owner._shard_index):
        raise ConfigError(
            describe(
                f"the child {child.name!r} has another shard than its owner",
                where=f"dataset {owner.name!r}",
                expected=f"shard {owner._shard_index} of {owner._num_shards}",
                got=[child._shard_index, child._num_shards],
                todo="Give the child as dict of options, without shard",
            )
        )
    return child


def check_no_shared_dataset(children: Mapping[str, Dataset], *, where: str) -> None:
    """
    Each child has its own order and position in the epoch, so that none can be read in two places.

    :param children: by their name for the error text
    :param where: for the error text
    :raises ConfigError: a dataset object is used twice, in these or below
    """
    seen: dict[int, str] = {}
    for name, child in children.items():
        todo = [child]
        while todo:
            dataset = todo.pop()
            first = seen.setdefault(id(dataset), name)
            if first is not name:
                raise ConfigError(
                    describe(
                        f"the children {first} and {name} are, or contain, the same dataset object {dataset.name!r}",
                        where=where,
                        todo="Give each of them as dict of options, or make two objects",
                    )
                )
            todo.extend(dataset.child_datasets())


def dims_of_stream(child: Dataset, sub_stream: str, *, what: str, where: str) -> Any:
    """
    :param child: dataset
    :param sub_stream: its stream
    :param what: which option names it, for the error text
    :param where: for the error text
    :return: (dim, ndim), or whatever form the child has in num_outputs
    :raises ConfigError: it has no such stream
    """
    outputs = child.num_outputs or {}
    if sub_stream in outputs:
        return outputs[sub_stream]
    try:
        known = list(child.get_data_keys())
    except (NotImplementedError, AssertionError):
        known = sorted(outputs)
    if sub_stream not in known:
        raise ConfigError(
            describe(
                f"{what}: dataset {child.name!r} has no stream {sub_stream!r}",
                where=where,
                expected=f"one of {known}",
                got=sub_stream,
            )
        )
    return child.get_data_dim(sub_stream), 1 + len(child.get_data_shape(sub_stream))


def known_num_seqs(child: Dataset) -> int | None:
    """
    :param child: with the order of an epoch
    :return: number of sequences; None: not known before the end, or without end
    """
    try:
        num: Any = child.num_seqs  # int, inf, or None in classes of users
    except NotImplementedError:
        return None
    return None if num is None or num == float("inf") else int(num)


def _is_ours(child: Dataset, *methods: str) -> bool:
    """:return: whether no class of the user overrides one of these methods"""
    return all(getattr(type(child), name).__module__.startswith("returnn.") for name in methods)


def corpus_idxs_of_epoch(child: Dataset, num_seqs: int) -> np.ndarray:
    """
    :param child: with an order, and have_corpus_seq_idx
    :param num_seqs: of its epoch
    :return: int64 [num_seqs], corpus index of each position
    """
    if _is_ours(child, "get_corpus_seq_idx", "get_current_seq_order"):
        try:
            return order_to_array(child.get_current_seq_order())  # type: ignore[arg-type]  # any sequence of int
        except NotImplementedError:
            pass
    return np.array([child.get_corpus_seq_idx(i) for i in range(num_seqs)], dtype=np.int64)


def tags_of_epoch(child: Dataset, num_seqs: int) -> list[str]:
    """
    :param child: with an order
    :param num_seqs: of its epoch
    :return: tags in that order; without loading data where the child can list its tags
    """
    table = get_tag_table(child) if child.have_corpus_seq_idx() and not child.supports_bulk() else None
    if table is not None:
        return table.select(corpus_idxs_of_epoch(child, num_seqs))
    return child.get_seq_tags(np.arange(num_seqs))


def lens_to_order_by(child: Dataset, num_seqs: int) -> np.ndarray:
    """
    :param child: with an order
    :param num_seqs: of its epoch
    :return: [num_seqs] lengths by which orderings sort, as get_estimated_seq_length says
    :raises DatasetError: it does not know them
    """
    try:
        if _is_ours(child, "get_estimated_seq_length"):
            return np.asarray(child.get_estimated_seq_lengths())
        return np.array([child.get_estimated_seq_length(i) for i in range(num_seqs)])
    except NotImplementedError as exc:
        raise DatasetError(
            describe(
                f"the ordering needs lengths, which dataset {child.name!r} does not know without loading data",
                todo='Use "default", "reverse" or "random", or give the lengths by seq_order_seq_lens_file',
            )
        ) from exc


def init_child_by_positions(
    child: Dataset, positions: np.ndarray, num_seqs: int, *, epoch: int | None, where: str
) -> None:
    """
    Restrict and reorder the epoch of a child.

    :param child: with its own order of this epoch
    :param positions: int64, in that order
    :param num_seqs: of that order
    :param epoch: current
    :param where: for the error text
    :raises DatasetError: the child does not know its corpus indices
    """
    if len(positions) == num_seqs and bool((positions[1:] > positions[:-1]).all()):
        return  # all, in order
    if not child.have_corpus_seq_idx():
        raise DatasetError(
            describe(
                f"the child {child.name!r} of class {type(child).__name__} cannot be reordered: it does not tell the"
                " corpus indices of its sequences (have_corpus_seq_idx)",
                where=where,
                todo='Use seq_ordering "default", "interleave" or "random_dataset", which keep the order of each child,'
                " or another class",
            )
        )
    child.init_seq_order(epoch=epoch, seq_order=corpus_idxs_of_epoch(child, num_seqs)[positions])


def warn_about_unused_options(dataset: Dataset, names: Sequence[str], *, reason: str) -> None:
    """
    Say once which options have no effect.

    :param dataset: whose options
    :param names: which; may be empty
    :param reason: why
    """
    if names and not state.in_worker:
        print(
            f"Warning: {type(dataset).__name__} {dataset.name!r}: no effect of {', '.join(names)}: {reason}.",
            file=log.v2,
        )
