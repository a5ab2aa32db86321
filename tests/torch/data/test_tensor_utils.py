"""Conversion of a TensorDict between numpy and torch."""

from __future__ import annotations

import numpy
import pytest
import torch

from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from returnn.torch.data.tensor_utils import tensor_dict_numpy_to_torch_, tensor_dict_torch_to_numpy_


def test_there_and_back() -> None:
    time = Dim(Tensor("time", [batch_dim], "int32", raw_tensor=numpy.array([3, 1], "int32")), name="time")
    data = TensorDict(
        {
            "data": Tensor("data", [batch_dim, time], "float32", raw_tensor=numpy.ones((2, 3), "float32")),
            "classes": Tensor("classes", [batch_dim, time], "uint16", raw_tensor=numpy.ones((2, 3), "uint16")),
            "seq_tag": Tensor("seq_tag", [batch_dim], "string", raw_tensor=numpy.array(["a", "b"])),
            "empty": Tensor("empty", [batch_dim]),
        }
    )
    tensor_dict_numpy_to_torch_(data)
    assert data["data"].raw_tensor.dtype == torch.float32 and data["data"].dtype == "float32"
    assert data["classes"].raw_tensor.dtype == torch.int32 and data["classes"].dtype == "int32"
    assert isinstance(data["seq_tag"].raw_tensor, numpy.ndarray) and data["seq_tag"].dtype == "string"
    assert isinstance(time.get_size_tensor().raw_tensor, torch.Tensor)
    assert data["empty"].raw_tensor is None
    data["data"].raw_tensor = data["data"].raw_tensor.bfloat16().requires_grad_()
    tensor_dict_torch_to_numpy_(data)
    assert data["data"].raw_tensor.dtype == numpy.float32 and data["data"].dtype == "float32"
    assert isinstance(time.get_size_tensor().raw_tensor, numpy.ndarray)
    assert time.get_mask().raw_tensor.tolist() == [[True] * 3, [True, False, False]]
    tensor_dict_torch_to_numpy_(data)
    assert time.get_size_tensor().raw_tensor.tolist() == [3, 1]


@pytest.mark.parametrize("dtype", ["bool", "int8", "int64", "float16", "float64", "complex64"])
def test_dtypes_stay(dtype: str) -> None:
    array = numpy.ones((2, 3), dtype)
    data = TensorDict({"x": Tensor("x", [batch_dim, Dim(3)], dtype, raw_tensor=array)})
    tensor_dict_numpy_to_torch_(data)
    tensor_dict_torch_to_numpy_(data)
    assert data["x"].raw_tensor.dtype == dtype == data["x"].dtype and numpy.array_equal(data["x"].raw_tensor, array)
