"""Ragged arrays."""

from __future__ import annotations

import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets.ragged import Ragged


def make(lens: list[int], dim: int | None = 2) -> tuple[Ragged, list[numpy.ndarray]]:
    shape = () if dim is None else (dim,)
    arrays = [
        numpy.arange(100 * i, 100 * i + n * (dim or 1), dtype="int32").reshape((n, *shape)) for i, n in enumerate(lens)
    ]
    return Ragged.from_list(arrays), arrays


@given(lens=st.lists(st.integers(0, 6), min_size=1, max_size=8), dim=st.sampled_from([None, 1, 3]), data=st.data())
def test_properties(lens: list[int], dim: int | None, data: st.DataObject) -> None:
    ragged, arrays = make(lens, dim)
    assert len(ragged) == len(lens) and ragged.offsets[-1] == sum(lens)
    assert all(numpy.array_equal(a, b) for a, b in zip(ragged, arrays, strict=True))
    padded = ragged.to_padded()
    assert padded.shape[:2] == (len(lens), max(lens)) and padded.dtype == "int32"
    out = numpy.full((len(lens), max(lens) + 2, *padded.shape[2:]), 7, dtype="int32")
    assert ragged.to_padded(out) is out
    for i, array in enumerate(arrays):
        assert numpy.array_equal(padded[i, : lens[i]], array) and not padded[i, lens[i] :].any()
        assert numpy.array_equal(out[i, : lens[i]], array) and not out[i, lens[i] :].any()
    idxs = data.draw(st.lists(st.integers(0, len(lens) - 1), max_size=10))
    selected = ragged.select(idxs)
    assert len(selected) == len(idxs)
    assert all(numpy.array_equal(a, arrays[i]) for a, i in zip(selected, idxs, strict=True))
    both = Ragged.concat([ragged, selected])
    assert [a.tolist() for a in both] == [a.tolist() for a in ragged] + [a.tolist() for a in selected]


def test_scalars() -> None:
    ragged = Ragged.from_list([numpy.array(3), numpy.array(5)])
    assert ragged.lens is None and len(ragged) == 2
    assert ragged[1].shape == () and ragged[1] == 5
    assert ragged.to_padded().tolist() == [3, 5]
    assert ragged.select([1, 1]).flat.tolist() == [5, 5]
    assert Ragged.concat([ragged, ragged]).flat.tolist() == [3, 5, 3, 5]


def test_strings() -> None:
    ragged = Ragged(numpy.array(["a", "b", "c"], dtype=object), numpy.array([1, 2]))
    assert ragged.to_padded().tolist() == [["a", 0], ["b", "c"]]


def test_errors() -> None:
    with pytest.raises(ValueError, match="sum up to 3"):
        Ragged(numpy.zeros(4), numpy.array([1, 2]))
    ragged, _ = make([1, 2])
    with pytest.raises(IndexError):
        ragged[2]
    assert numpy.array_equal(ragged[-1], ragged[1])
    with pytest.raises(ValueError, match="out has shape"):
        ragged.to_padded(numpy.zeros((2, 1, 2)))
