"""The options extern_data and model_outputs."""

from __future__ import annotations

from typing import Any

import pytest

from returnn.errors import OptionError
from returnn.options.extern_data import ExternDataOptions
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim


def _read(**options: Any) -> ExternDataOptions:
    return ExternDataOptions.from_config(options)


def test_not_given() -> None:
    assert _read() == ExternDataOptions(extern_data=None, model_outputs=None)


def test_all_forms_and_shared_axes() -> None:
    time = Dim(None, name="time")
    options = _read(
        extern_data={
            "a": {"dim": 3},
            "b": {"dims": [batch_dim, time], "sparse_dim": Dim(5), "available_for_inference": False},
            "c": Tensor("c", [batch_dim]),
        },
        model_outputs={"x": {"dim_tags": [batch_dim, time, Dim(5)], "dtype": "float16"}},
    )
    assert options.extern_data is not None and options.model_outputs is not None
    assert options.extern_data["a"].batch_shape == (None, None, 3)
    assert options.extern_data["b"].dims[1] is options.model_outputs["x"].dims[1] is time
    assert not options.extern_data["b"].available_for_inference and options.extern_data["c"].batch_ndim == 1
    assert options.model_outputs["x"].dtype == "float16"
    again = _read(extern_data=options.extern_data)
    assert again.extern_data is not None and again.extern_data["a"].dims == options.extern_data["a"].dims
    assert _read(extern_data={}).extern_data is not None


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"extern_data": [3]}, 'option "extern_data" is invalid: expected a dict from names to descriptions'),
        ({"extern_data": {"a": 3}}, r'option "extern_data\["a"\]" is invalid: .*got 3 \(int\)'),
        ({"extern_data": {"a": {"dimm": 3}}}, r'"extern_data\["a"\]" is invalid: .*unknown arguments dimm'),
        (
            {"extern_data": {"a": {"dims": [batch_dim], "dytpe": "int32"}}},
            r'"extern_data\["a"\]" is invalid: .*unknown arguments dytpe. Did you mean \'dtype\'\?',
        ),
        ({"extern_data": {"a": {"dim": 3, "dtype": "float33"}}}, r"dtype = 'float33', expected the name of one"),
        ({"extern_data": {"a": {"dim": 3, "dtype": float}}}, r"dtype = <class 'float'>, expected the name of one"),
        (
            {"extern_data": {"a": {"dims": [batch_dim, 3]}}},
            r'"extern_data\["a"\]".*the entry 3 \(int\), expected a Dim',
        ),
        ({"extern_data": {"a": {"shape": (None,), "dims": [batch_dim]}}}, r'"extern_data\["a"\]".*both given'),
        ({"extern_data": {"a": {"dims": [Dim(None), batch_dim]}}}, r"expected the batch as first axis"),
        ({"extern_data": {"a": {"dims": []}}}, r"expected the batch as first axis"),
        ({"extern_data": {"a:size1": {"dim": 3}}}, "names without colon"),
        ({"model_outputs": {"x": {"sparse": True}}}, r'"model_outputs\["x"\]" is invalid: .*number of classes'),
    ],
)
def test_mistakes(options: dict[str, Any], words: str) -> None:
    with pytest.raises(OptionError, match=words):
        _read(**options)


def test_entries_are_no_other_templates_than_given() -> None:
    given = TensorDict({"x": {"dim": 3}})
    options = _read(model_outputs=given)
    assert options.model_outputs is not given and options.model_outputs is not None
    assert options.model_outputs["x"].dims == given["x"].dims


@pytest.mark.parametrize("dtype", ["bfloat16", "float16", "float64", "int8", "uint16", "int64", "bool", "string"])
def test_dtypes(dtype: str) -> None:
    options = _read(extern_data={"a": {"dim": 3, "dtype": dtype}})
    assert options.extern_data is not None and options.extern_data["a"].dtype == dtype
