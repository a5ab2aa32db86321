"""An epoch of partition_epoch sorts only what it needs."""

from __future__ import annotations

import numpy
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets.seq_order import order_seqs, parse_seq_ordering, part_bounds


@given(
    text=st.sampled_from(["laplace", "laplace:5", "laplace:.3", "laplace:.7", "laplace:90", "sorted", "random"]),
    num_seqs=st.integers(1, 80),
    num_parts=st.integers(1, 90),
    seed=st.integers(0, 20),
)
def test_parts_are_those_of_the_whole_order(text: str, num_seqs: int, num_parts: int, seed: int) -> None:
    """Also empty parts, bins that are cut by a part, and empty bins."""
    lens = numpy.random.RandomState(seed).randint(0, 9, num_seqs)
    ordering = parse_seq_ordering(text)
    whole = numpy.asarray(order_seqs(ordering, num_seqs, seed=seed, seq_lens=lens))
    for part_idx in range(num_parts):
        start, end = part_bounds(num_seqs, num_parts, part_idx)
        part = numpy.asarray(order_seqs(ordering, num_seqs, seed=seed, seq_lens=lens, wanted=(start, end)))
        assert part[start:end].tolist() == whole[start:end].tolist()
