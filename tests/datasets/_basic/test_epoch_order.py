"""Orders that nobody can write to are taken without a copy, also in four bytes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from returnn.datasets._basic.epoch_order import checked_order, select_order
from returnn.datasets.basic import init_dataset
from returnn.datasets.hdf import HDFDataset, SimpleHDFWriter
from returnn.datasets.meta import MetaDataset
from returnn.errors import DatasetError


def _constant(values: list[int], dtype: str) -> np.ndarray:
    array = np.array(values, dtype=dtype)
    array.flags.writeable = False
    return array


@pytest.mark.parametrize("dtype", ["int32", "int64"])
def test_constant_order(dtype: str) -> None:
    given = _constant([2, 0, 1], dtype)
    assert checked_order(given, 3, where="x") is given
    with pytest.raises(DatasetError, match="outside of the corpus"):
        checked_order(given, 2, where="x")
    selected = select_order(given, np.array([0, 2]))
    assert (selected.tolist(), selected.dtype) == ([2, 1], np.int64)


def test_others_are_copied() -> None:
    array = np.array([2, 0, 1])
    view = array[:]
    view.flags.writeable = False  # but the array itself is not
    for given in (array, view, array.astype("int32"), _constant([2, 0, 1], "uint8"), [2, 0, 1]):
        order = checked_order(given, 3, where="x")
        assert order.dtype == np.int64
        assert not np.shares_memory(order, np.asarray(given))
        assert order.tolist() == [2, 0, 1]


def test_orders_of_the_children_of_a_meta_dataset(tmp_path: Path) -> None:
    children: dict[str, dict[str, object]] = {}
    for key, tags in {"a": "xyz", "b": "zxy"}.items():
        with SimpleHDFWriter(str(tmp_path / key), dim=3, ndim=1) as writer:
            writer.insert_batch(np.zeros((3, 1), "int32"), [1, 1, 1], list(tags))
        children[key] = {"class": "HDFDataset", "files": [str(tmp_path / key)]}
    children["a"]["seq_ordering"] = "random"
    dataset = init_dataset(
        {
            "class": "MetaDataset",
            "datasets": children,
            "data_map": {"data": ("a", "data"), "classes": ("b", "data")},
            "seq_order_control_dataset": "a",
        }
    )
    assert isinstance(dataset, MetaDataset)
    dataset.init_seq_order(epoch=1)
    a, b = dataset.datasets["a"], dataset.datasets["b"]
    assert isinstance(a, HDFDataset) and isinstance(b, HDFDataset)
    assert b._order is not None and not isinstance(b._order, range)
    assert np.asarray(b._order).dtype == np.int32
    order = dataset.get_current_seq_order()
    assert a.get_current_seq_order() is order
    assert b.get_current_seq_order().tolist() == [[1, 2, 0][i] for i in order]
    assert (order.dtype, b.get_current_seq_order().dtype) == (np.int64, np.int64)
