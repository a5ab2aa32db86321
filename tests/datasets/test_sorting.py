"""Tests of returnn.datasets._basic.sorting."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets._basic.sorting import sort_bins, stable_argsort


def _sort_bins_naive(perm: numpy.ndarray, lens: numpy.ndarray, bounds: numpy.ndarray) -> list[int]:
    result: list[int] = []
    for i, (start, end) in enumerate(zip(bounds[:-1], bounds[1:], strict=True)):
        sign = 1 if i % 2 == 0 else -1
        result += sorted(perm[start:end].tolist(), key=lambda idx, sign=sign: sign * lens[idx].item())  # type: ignore[misc]
    return result


@given(
    num_seqs=st.integers(1, 200),
    num_bins=st.integers(1, 250),
    dtype=st.sampled_from(["int32", "int64", "float64"]),
    high=st.sampled_from([2, 30, 70_000, 2**31 - 1]),
    low=st.sampled_from([0, -3, -(2**31)]),
    seed=st.integers(0, 1000),
)
def test_bins_are_sorted_as_python_does(
    num_seqs: int, num_bins: int, dtype: str, high: int, low: int, seed: int
) -> None:
    """Any kind of lengths, bins of sizes that differ by one, empty bins."""
    rnd = numpy.random.RandomState(seed)
    lens = rnd.randint(low, high, num_seqs).astype(dtype)
    perm = rnd.permutation(num_seqs)
    bounds = numpy.arange(num_bins + 1, dtype=numpy.int64) * num_seqs // num_bins
    assert sort_bins(perm, lens, bounds).tolist() == _sort_bins_naive(perm, lens, bounds)


def test_bins_in_several_blocks() -> None:
    """More sequences than are sorted at once."""
    rnd = numpy.random.RandomState(1)
    num_seqs = 300_007
    lens = rnd.randint(0, 20, num_seqs).astype("int32")
    perm = rnd.permutation(num_seqs)
    for num_bins in (2, 3001):
        bounds = numpy.arange(num_bins + 1, dtype=numpy.int64) * num_seqs // num_bins
        assert sort_bins(perm, lens, bounds).tolist() == _sort_bins_naive(perm, lens, bounds)


@given(st.lists(st.integers(-(2**40), 2**40)), st.integers(0, 3))
def test_argsort_is_stable(values: list[int], shift: int) -> None:
    """Small and large ranges."""
    keys = numpy.array(values, dtype=numpy.int64) >> (shift * 10)
    assert stable_argsort(keys).tolist() == numpy.argsort(keys, kind="stable").tolist()
