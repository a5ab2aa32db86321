"""Lengths of HDF files, read together with their sums."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import h5py
import numpy
import pytest
from hypothesis import given
from hypothesis import strategies as st

from returnn.datasets._hdf import seq_lengths
from returnn.datasets._hdf.seq_lengths import read_with_sums
from returnn.datasets.hdf import HDFDataset
from returnn.errors import DataFileError


def _read(values: numpy.ndarray, **options: Any) -> tuple[numpy.ndarray, tuple[int, ...] | None] | None:
    with h5py.File("in memory", "w", driver="core", backing_store=False) as file:
        return read_with_sums(file.create_dataset("seqLengths", data=values, **options).id)


@given(
    lens=st.lists(st.integers(-5, 2**31 - 1) | st.integers(0, 100), max_size=40),
    num_columns=st.integers(1, 3),
    chunks=st.booleans(),
    dtype=st.sampled_from(["int32", "uint32"]),
    repeat=st.integers(1, 60),
)
def test_sums_are_exact_or_not_given(lens: list[int], num_columns: int, chunks: bool, dtype: str, repeat: int) -> None:
    """Also with lengths that are large or negative, and in several blocks (smaller ones here)."""
    values = numpy.array(lens * repeat, dtype="int64").astype(dtype)
    values = values[: len(values) // num_columns * num_columns].reshape(-1, num_columns)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(seq_lengths, "_BLOCK_ROWS", 64)
        patch.setattr(seq_lengths, "_MIN_ROWS_OF_PAIRS", 4)
        result = _read(values, **({"chunks": (7, num_columns)} if chunks and len(values) > 7 else {}))
    assert result is not None
    read, sums = result
    assert read.dtype == values.dtype
    numpy.testing.assert_array_equal(read, values)
    if sums is not None:
        assert values.astype("int64").min(initial=0) >= 0
        assert list(sums) == values.sum(axis=0, dtype="int64").tolist()
    else:
        assert values.astype("int64").min(initial=0) < 0 or values.max(initial=0) >= 2**31


def test_several_blocks_of_the_real_size() -> None:
    """Over 65536 rows; sums of small numbers, and of large ones."""
    values = numpy.random.RandomState(1).randint(0, 2**24, (200_003, 2)).astype("int32")
    values[:100_000] %= 1000
    for options in ({}, {"chunks": (1000, 2)}, {"chunks": (1000, 2), "compression": "gzip"}):
        result = _read(values, **options)
        assert result is not None
        numpy.testing.assert_array_equal(result[0], values)
        assert result[1] == tuple(values.sum(axis=0, dtype="int64").tolist())


@pytest.mark.parametrize(
    "values",
    [numpy.zeros((3, 2), "int64"), numpy.zeros((3, 2), "float32"), numpy.zeros(3, "int32"), numpy.zeros((3, 2), ">i4")],
    ids=["int64", "float", "one axis", "big endian"],
)
def test_other_forms_are_left_to_the_caller(values: numpy.ndarray) -> None:
    """They are read in the general way."""
    assert _read(values) is None


@pytest.mark.parametrize(
    ("lens", "text"),
    [
        ([[2, 0], [-1, 0]], "negative length for sequence 1"),
        ([[2**31 - 1, 0], [2**31 - 1, 0], [2, 0]], "does not have as many frames"),
        ([[5, 0]], "does not have as many frames"),
        ([[1, 1]], "does not have as many frames"),
    ],
    ids=["negative", "sum of 2**32", "too long", "other column"],
)
def test_wrong_lengths_are_worded(tmp_path: Path, lens: list[list[int]], text: str) -> None:
    """The quick sum lets none of them through."""
    path = str(tmp_path / "wrong.hdf")
    with h5py.File(path, "w") as file:
        file["inputs"] = numpy.zeros(1, "int32")
        file.attrs["inputPattSize"] = 5
        file["targets/data/classes"] = numpy.zeros(0, "int32")
        file.create_group("targets/size").attrs["classes"] = [5, 1]
        file["seqLengths"] = numpy.array(lens, "int32")
        file["seqTags"] = numpy.array([b"seq"] * len(lens))
    with pytest.raises(DataFileError, match=text):
        HDFDataset([path])
