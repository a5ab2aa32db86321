"""The order of an epoch as a range or as an array, without going through a range item by item."""

from __future__ import annotations

from collections.abc import Sequence

import numpy

from returnn.datasets.seq_order import SeqOrder, order_to_array
from returnn.errors import DatasetError, describe

__all__ = ["checked_order", "same_order", "select_order"]


def checked_order(seq_order: Sequence[int] | numpy.ndarray, num_seqs: int, *, where: str) -> numpy.ndarray:
    """
    :param seq_order: corpus indices, as the caller of init_seq_order gives them
    :param num_seqs: of the corpus
    :param where: for the error text
    :return: int64, own copy. What nobody can write to: itself, also if it is int32
    :raises DatasetError: an index is outside of the corpus
    """
    if (
        isinstance(seq_order, numpy.ndarray)
        and seq_order.flags.owndata
        and not seq_order.flags.writeable
        and seq_order.dtype.str in ("<i4", "<i8")
    ):
        order = seq_order
    else:
        order = numpy.array(seq_order, dtype=numpy.int64)
    if len(order) and not (0 <= int(order.min()) and int(order.max()) < num_seqs):
        raise DatasetError(
            describe(
                "seq_order has an index outside of the corpus",
                where=where,
                expected=f"0 <= index < {num_seqs}",
                got=[int(order.min()), int(order.max())],
            )
        )
    return order


def select_order(order: SeqOrder, idxs: numpy.ndarray | slice) -> numpy.ndarray:
    """
    :param order: corpus indices
    :param idxs: positions in it, not negative
    :return: int64, order[idxs]; of a range without making it an array
    :raises IndexError: the order is shorter
    """
    if not isinstance(order, range):
        selected: numpy.ndarray = numpy.asarray(order)[idxs]
        return selected.astype(numpy.int64, copy=False)
    if isinstance(idxs, slice):
        part = order[idxs]
        return numpy.arange(part.start, part.stop, part.step, dtype=numpy.int64)
    idxs = numpy.asarray(idxs, dtype=numpy.int64)
    if len(idxs) and not 0 <= int(idxs.min()) <= int(idxs.max()) < len(order):
        raise IndexError(f"positions {int(idxs.min())} to {int(idxs.max())}, but the epoch has {len(order)} sequences")
    return idxs * order.step + order.start


def same_order(first: SeqOrder, second: SeqOrder) -> bool:
    """
    :param first: corpus indices
    :param second: corpus indices
    :return: whether they are the same; quick for two ranges, which numpy would go through item by item
    """
    if isinstance(first, range) and isinstance(second, range):
        return first == second
    return len(first) == len(second) and numpy.array_equal(order_to_array(first), order_to_array(second))
