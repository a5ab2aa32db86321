"""Tensor templates from the descriptions that configs give."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from returnn.errors import ModelError
from returnn.tensor import Dim, Tensor, batch_dim


@pytest.mark.parametrize(
    ("entry", "sizes", "dtype", "sparse_size"),
    [
        ({"dim": 5}, (None, None, 5), "float32", None),
        ({"shape": (None, 5)}, (None, None, 5), "float32", None),
        ({"shape": (None, None, 3)}, (None, None, None, 3), "float32", None),
        ({"dim": 7, "sparse": True}, (None, None), "int32", 7),
        ({"sparse_dim": Dim(4, name="classes"), "shape": (None,)}, (None, None), "int32", 4),
        ({"dim": 1, "shape": (None, 1), "dtype": "int16"}, (None, None, 1), "int16", None),
        ({"shape": ()}, (None,), "float32", None),
        ({"dim": None, "shape": ()}, (None,), "float32", None),
        ({"dim": 3, "time_dim_axis": None}, (None, 3), "float32", None),
        ({"dims": [batch_dim, Dim(None, name="time"), Dim(9)]}, (None, None, 9), "float32", None),
        ({"dim_tags": [batch_dim], "dtype": "string"}, (None,), "string", None),
    ],
)
def test_entries_of_extern_data(
    entry: dict[str, Any], sizes: tuple[int | None, ...], dtype: str, sparse_size: int | None
) -> None:
    tensor = Tensor(name="x", **entry)
    assert tensor.batch_shape == sizes
    assert tensor.dims[0] is batch_dim
    assert tensor.dtype == dtype
    assert (tensor.sparse_dim.size if tensor.sparse_dim else None) == sparse_size
    assert tensor.available_for_inference
    for dim in tensor.dims[1:]:
        if dim.size is None:
            assert dim.dyn_size_ext is not None
            assert dim.dyn_size_ext.dims == (batch_dim,) and dim.dyn_size_ext.raw_tensor is None
        else:
            assert dim.dyn_size_ext is None


def test_names_of_the_axes() -> None:
    tensor = Tensor("data", shape=(None, None, 3), available_for_inference=False)
    assert [d.name for d in tensor.dims[1:3]] == ["time:var-unk:data", "spatial1:var-unk:data"]
    assert not tensor.copy_template().available_for_inference


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"dimm": 5}, "unknown arguments dimm"),
        ({"dim": 5, "shape": (None, 6)}, "does not fit"),
        ({"sparse": True}, "number of classes"),
        ({"dim": "5"}, "expected an int"),
        ({"shape": (None, "x")}, "expected ints"),
        ({"shape": (None,), "dims": [batch_dim]}, "both given"),
        ({"dim": 5, "batch_dim_axis": 1}, "batch_dim_axis"),
    ],
)
def test_wrong_entries(entry: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Tensor("data", **entry)


def test_members() -> None:
    time = Dim(None, name="time")
    tensor = Tensor("x", [batch_dim, time, Dim(3)], "float16", raw_tensor=np.zeros((2, 4, 3), "float16"))
    assert (tensor.batch_ndim, tensor.batch_shape, tensor.size_dtype) == (3, (None, None, 3), "int32")
    other = tensor.copy(name="y")
    assert (other.name, other.dims, other.dtype) == (
        "y",
        tensor.dims,
        "float16",
    ) and other.raw_tensor is tensor.raw_tensor
    assert tensor.copy_template().raw_tensor is None and tensor.copy_template("z").name == "z"
    other.raw_tensor = None
    assert tensor.raw_tensor is not None
    assert Tensor("x", dim=4).feature_dim is not None
    assert Tensor("x", dim=4, sparse=True).feature_dim is None


@pytest.mark.parametrize("dtype", ["float16", np.float16, np.dtype("float16"), torch.float16])
def test_dtypes(dtype: Any) -> None:
    assert Tensor("x", [batch_dim], dtype).dtype == "float16"


@pytest.mark.parametrize("dtype", ["float33", "torch.float16", "", float, 16, "f4"])
def test_unknown_dtypes(dtype: Any) -> None:
    with pytest.raises(ModelError, match="Tensor 'x': dtype = .*, expected the name of one"):
        Tensor("x", [batch_dim], dtype)


@pytest.mark.parametrize(
    ("kwargs", "words"),
    [
        ({"dims": [batch_dim, 5]}, "dims has the entry 5 .int., expected a Dim"),
        ({"dims": [batch_dim], "sparse_dim": 7}, "sparse_dim is 7 .int., expected a Dim"),
        ({"dims": [batch_dim], "feature_dim": Dim(3, name="f")}, "feature_dim Dim{'f'.3.} is none of the dims"),
        ({"dims": [batch_dim], "raw_tensor": np.zeros((2, 3))}, "shape .2, 3. does not fit"),
    ],
)
def test_wrong_dims(kwargs: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        Tensor("data", **kwargs)
