"""Orders that a caller of init_seq_order gives, instead of the dataset's own."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy

from returnn.errors import UnknownSeqTagError

__all__ = ["idxs_of_tags", "predefined_order"]


def predefined_order(
    seq_list: Sequence[str] | None,
    seq_order: Sequence[int] | numpy.ndarray | None,
    *,
    order_of_tags: Callable[[Sequence[str]], numpy.ndarray],
) -> numpy.ndarray | None:
    """
    :param seq_list: tags in the wanted order
    :param seq_order: corpus indices in the wanted order; goes first
    :param order_of_tags: finds the corpus indices of tags
    :return: int64 corpus indices; None: the dataset's own order is wanted
    """
    if seq_order is not None:
        return numpy.asarray(seq_order, dtype=numpy.int64)
    if seq_list is not None:
        return order_of_tags(seq_list)
    return None


def idxs_of_tags(seq_list: Sequence[str], idx_by_tag: dict[str, int], *, where: str) -> numpy.ndarray:
    """
    :param seq_list: tags
    :param idx_by_tag: corpus index of each tag
    :param where: dataset, for the error
    :return: int64 corpus indices, one per entry of seq_list
    :raises UnknownSeqTagError: tags that are not in the corpus
    """
    missing = [tag for tag in seq_list if tag not in idx_by_tag]
    if missing:
        raise UnknownSeqTagError(f"{where}: {len(missing)} tags of seq_list are not in the corpus, e.g. {missing[:3]}")
    return numpy.array([idx_by_tag[tag] for tag in seq_list], dtype=numpy.int64)
