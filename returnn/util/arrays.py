"""
Small functions on numpy arrays.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy

__all__ = [
    "class_idx_seq_to_1_of_k",
    "uniq",
    "uniq_generic",
    "slice_pad_zeros",
    "random_orthogonal",
    "inplace_increment",
    "prod",
    "softmax",
    "find_ranges",
]


def class_idx_seq_to_1_of_k(
    seq: Sequence[int] | numpy.ndarray, num_classes: int, dtype: str = "float32"
) -> numpy.ndarray:
    """
    :param seq: class indices [T]
    :param num_classes: all indices are below
    :param dtype: of the result
    :return: one-hot vectors [T, num_classes]
    """
    indices = numpy.asarray(seq, dtype="int64")
    result = numpy.zeros((len(indices), num_classes), dtype=dtype)
    result[numpy.arange(len(indices)), indices] = 1
    return result


def uniq(seq: numpy.ndarray) -> numpy.ndarray:
    """:return: like the Unix tool uniq: [0, 0, 1, 1, 0] -> [0, 1, 0]"""
    seq = numpy.asarray(seq)
    if len(seq) == 0:
        return seq
    return seq[numpy.append(True, seq[1:] != seq[:-1])]


def uniq_generic(seq: Iterable[Any]) -> list[Any]:
    """:return: as :func:`uniq`, of any objects"""
    result: list[Any] = []
    for item in seq:
        if not result or result[-1] != item:
            result.append(item)
    return result


def slice_pad_zeros(x: numpy.ndarray, begin: int, end: int, axis: int = 0) -> numpy.ndarray:
    """
    :param x: [T, ...]
    :param begin: may be negative: so many zeros come first
    :param end: may be larger than T: zeros come last
    :param axis: only 0
    :return: [end - begin, ...]
    """
    if axis != 0:
        raise NotImplementedError(f"slice_pad_zeros: only axis 0 is supported, got {axis}")
    if begin > end:
        raise ValueError(f"slice_pad_zeros: expected begin <= end, got {begin} and {end}")
    result = numpy.zeros((end - begin, *x.shape[1:]), dtype=x.dtype)
    first, last = min(max(begin, 0), x.shape[0]), max(min(end, x.shape[0]), 0)
    if last > first:
        result[first - begin : last - begin] = x[first:last]
    return result


def random_orthogonal(shape: Sequence[int], gain: float = 1.0, seed: int | None = None) -> numpy.ndarray:
    """
    Orthogonal matrix by SVD of normal random numbers (Saxe et al., https://arxiv.org/abs/1312.6120).

    :param shape: at least two axes; all but the first count as columns
    :param gain: factor
    :param seed: of the random numbers
    :return: array of that shape, float64
    """
    shape = tuple(shape)
    if len(shape) < 2:
        raise ValueError(f"random_orthogonal: expected a shape with at least 2 axes, got {shape}")
    num_rows = shape[0]
    num_cols = int(numpy.prod(shape[1:]))
    matrix = numpy.random.RandomState(seed).normal(0.0, 1.0, (num_rows, num_cols))
    u, _, v = numpy.linalg.svd(matrix, full_matrices=False)
    q = u if u.shape == (num_rows, num_cols) else v
    return gain * q.reshape(shape)[: shape[0], : shape[1]]


def inplace_increment(x: numpy.ndarray, idx: numpy.ndarray, y: numpy.ndarray | float) -> numpy.ndarray:
    """
    :param x: changed in place
    :param idx: indices into axis 0; repeated ones add up
    :param y: added there
    :return: x
    """
    numpy.add.at(x, idx, y)
    return x


def prod(ls: Iterable[Any]) -> Any:
    """:return: product; of nothing it is 1. Any: numbers, arrays or dims"""
    result: Any = None
    for item in ls:
        result = item if result is None else result * item
    return 1 if result is None else result


def softmax(x: numpy.ndarray, axis: int | None = None) -> numpy.ndarray:
    """
    :param x: logits
    :param axis: of the sum; None: over everything
    """
    e = numpy.exp(x - numpy.max(x, axis=axis, keepdims=True))
    return e / numpy.sum(e, axis=axis, keepdims=True)


def find_ranges(ls: Sequence[int]) -> list[tuple[int, int]]:
    """
    :param ls: sorted ints
    :return: ranges [start, end) of consecutive ints: [0, 1, 2, 5] -> [(0, 3), (5, 6)]
    """
    ranges: list[tuple[int, int]] = []
    for value in ls:
        if ranges and value == ranges[-1][1]:
            ranges[-1] = (ranges[-1][0], value + 1)
        else:
            ranges.append((value, value + 1))
    return ranges
