"""TensorDict: content, descriptions, raw dicts."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.errors import ModelError
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim


def _templates() -> TensorDict:
    time = Dim(None, name="time")
    return TensorDict(
        {
            "data": Tensor("data", [batch_dim, time, Dim(2, name="feature")]),
            "classes": Tensor("classes", [batch_dim, time], sparse_dim=Dim(5)),
            "score": Tensor("score", [batch_dim]),
        }
    )


def _raw(lens: list[int]) -> dict[str, Any]:
    sizes = torch.tensor(lens, dtype=torch.int32)
    num = torch.tensor(len(lens), dtype=torch.int32)
    return {
        "data": torch.randn(len(lens), max(lens), 2),
        "data:size0": num,
        "data:size1": sizes,
        "classes": torch.zeros(len(lens), max(lens), dtype=torch.int32),
        "classes:size0": num,
        "classes:size1": sizes,
        "score": torch.randn(len(lens)),
        "score:size0": num,
    }


@given(lens=st.lists(st.integers(0, 6), min_size=1, max_size=5))
@settings(max_examples=40, deadline=None)
def test_from_and_to_raw_dict_is_identity(lens: list[int]) -> None:
    data = _templates()
    raw = _raw(lens)
    data.assign_from_raw_tensor_dict_(raw)
    res = data.as_raw_tensor_dict()
    assert list(res) == list(raw)
    assert all(torch.equal(res[key], raw[key]) for key in raw)
    assert data["data"].dims[1].get_size_tensor().raw_tensor.tolist() == lens
    assert batch_dim.get_dim_value() == len(lens)
    assert list(data.as_raw_tensor_dict(with_sizes=False)) == ["data", "classes", "score"]
    assert data.as_raw_tensor_dict(static_sizes=True)["data:size2"] == 2
    data.reset_content()
    assert not data["data"].dims[1].is_dim_known() and data["data"].raw_tensor is None


def test_content() -> None:
    data = _templates()
    assert "data" in data and "other" not in data and data["score"].batch_ndim == 1
    data.update(TensorDict({"other": Tensor("other", [])}))
    data.update({"more": {"dim": 3, "name": "ignored", "vocab": {"class": "Utf8ByteTargets"}}}, auto_convert=True)
    assert list(data.data) == ["data", "classes", "score", "other", "more"]
    assert data["more"].batch_shape == (None, None, 3) and data["more"].name == "more"
    template = data.copy_template()
    assert template["data"] is not data["data"] and template["data"].dims == data["data"].dims
    for func in (iter, len, lambda x: x.keys()):
        with pytest.raises((TypeError, AttributeError)):
            func(data)


def test_mistakes() -> None:
    data = _templates()
    for entry, kwargs in (({"dim": 3}, {}), (3, {"auto_convert": True})):
        with pytest.raises(ModelError, match="the entry 'x' is .* expected a Tensor"):
            data.update({"x": entry}, **kwargs)  # type: ignore[dict-item, arg-type]
    with pytest.raises(KeyError, match="^there is no tensor 'x', but 'data', 'classes', 'score'. Streams of"):
        _ = data["x"]
    with pytest.raises(ModelError, match="'data' has no value"):
        data.as_raw_tensor_dict()
    with pytest.raises(ModelError, match="there is no value for 'score'"):
        data.assign_from_raw_tensor_dict_({k: v for k, v in _raw([2, 1]).items() if k != "score"})


@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"data": torch.zeros(2, 3)}, "ndim mismatch for 'data': the data have shape \\[2, 3\\]"),
        ({"data": torch.zeros(2, 3, 5)}, "shape mismatch for 'data': axis 2 of the data has size 5"),
        ({"classes:size1": torch.tensor([3, 2])}, "in sequence 1 of the batch it is 1 there, and 2 in 'classes'"),
        ({"data:size1": torch.tensor([3, 4])}, "go up to 4, but the data have only 3 places"),
        ({"data:size1": torch.tensor([3])}, "lengths of axis 1 have shape \\[1\\], expected one per sequence: \\[2\\]"),
    ],
)
def test_values_that_do_not_fit(changes: dict[str, Any], text: str) -> None:
    with pytest.raises(AssertionError, match=text) as info:
        _templates().assign_from_raw_tensor_dict_({**_raw([3, 1]), **changes})
    assert isinstance(info.value, ModelError)


def test_numpy_and_torch_lengths_are_compared() -> None:
    raw = _raw([3, 1])
    raw["classes:size1"] = numpy.array([3, 1])
    _templates().assign_from_raw_tensor_dict_(raw)
    raw["classes:size1"] = numpy.array([3, 2])
    with pytest.raises(ModelError, match="in sequence 1"):
        _templates().assign_from_raw_tensor_dict_(raw)


def test_copies_keep_shared_axes() -> None:
    data = _templates()
    data.assign_from_raw_tensor_dict_(_raw([3, 1]))
    for other in (pickle.loads(pickle.dumps(data)), copy.deepcopy(data)):
        assert other["data"].dims[0] is batch_dim
        assert other["data"].dims[1] is other["classes"].dims[1] is not data["data"].dims[1]
        assert torch.equal(other["data"].raw_tensor, data["data"].raw_tensor)
        other.reset_content()
        batch_dim.reset_eager()
        assert data["data"].dims[1].is_dim_known()
