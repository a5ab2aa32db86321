"""Axes: sizes, masks, copies, with lengths of numpy and of torch."""

from __future__ import annotations

import copy
import pickle
import subprocess
import sys
from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.errors import ModelError
from returnn.tensor import Dim, Tensor, batch_dim, single_step_dim

LENS = st.lists(st.integers(0, 9), min_size=1, max_size=6)


def _dim(lens: Any, *, name: str = "time") -> Dim:
    return Dim(Tensor(name, [batch_dim] if lens.ndim else [], "int32", raw_tensor=lens), name=name)


def _raw(lens: list[int], framework: str) -> Any:
    return numpy.array(lens, "int32") if framework == "numpy" else torch.tensor(lens, dtype=torch.int32)


@pytest.mark.parametrize("framework", ["numpy", "torch"])
@given(lens=LENS)
@settings(max_examples=40, deadline=None)
def test_mask_equals_lengths(framework: str, lens: list[int]) -> None:
    dim = _dim(_raw(lens, framework))
    mask = dim.get_mask()
    assert mask.dims == (batch_dim, dim) and mask.dtype == "bool"
    assert type(mask.raw_tensor) is type(_raw(lens, framework))
    assert mask.raw_tensor.tolist() == [[i < n for i in range(max(lens))] for n in lens]
    assert mask.raw_tensor.sum(1).tolist() == lens
    transposed = dim.get_mask([dim, Dim(3, name="other"), batch_dim])
    assert transposed.dims == (dim, batch_dim)
    assert transposed.raw_tensor.tolist() == [list(row) for row in zip(*mask.raw_tensor.tolist(), strict=True)]
    assert dim.get_dim_value() == dim.capacity == int(dim.get_dim_value_tensor().raw_tensor) == max(lens)
    assert dim.get_dim_value_tensor().dims == ()
    assert dim.need_masking() == (len(set(lens)) > 1)
    assert dim.get_size_tensor() is dim.dyn_size_ext
    assert (dim.is_dynamic(), dim.is_static(), dim.is_dim_known(), dim.is_batch_dim()) == (True, False, True, False)


def test_mask_on_another_device() -> None:
    dim = _dim(torch.tensor([2, 1], dtype=torch.int32))
    assert dim.get_mask(device="meta").raw_tensor.device.type == "meta"
    assert dim.get_size_tensor("meta").raw_tensor.device.type == "meta"
    assert dim.get_size_tensor("cpu") is dim.get_size_tensor() is dim.dyn_size_ext  # stays


def test_nested_lengths() -> None:
    beam = Dim(2, name="beam")
    lens = Tensor("lens", [batch_dim, beam], "int32", raw_tensor=torch.tensor([[1, 3], [0, 2]]))
    dim = Dim(lens, name="time")
    assert dim.get_mask().dims == (batch_dim, beam, dim)
    assert dim.get_mask().raw_tensor.sum(-1).tolist() == [[1, 3], [0, 2]]
    assert dim.get_mask([beam, dim, batch_dim]).raw_tensor.shape == (2, 3, 2)
    with pytest.raises(ModelError, match=r"dim_order lacks \[Dim{'beam'\(2\)}\]"):
        dim.get_mask([batch_dim, dim])


def test_static_and_scalar() -> None:
    dim = Dim(3, name="feature", kind=Dim.Types.Feature)
    assert (dim.size, dim.dimension, dim.get_dim_value(), dim.capacity) == (3, 3, 3, 3)
    assert (dim.is_dynamic(), dim.is_static(), dim.is_dim_known(), dim.need_masking()) == (False, True, True, False)
    assert dim.get_mask().raw_tensor.tolist() == [True] * 3 and dim.get_mask().dims == (dim,)
    assert int(dim.get_size_tensor().raw_tensor) == int(dim.get_dim_value_tensor().raw_tensor) == 3
    assert dim.get_size_tensor().dtype == "int32"
    dim.reset_eager()
    assert dim.is_dim_known()
    scalar = _dim(torch.tensor(4, dtype=torch.int32))
    assert (scalar.get_dim_value(), scalar.need_masking(), scalar.get_mask().dims) == (4, False, (scalar,))
    assert Dim(numpy.int64(3)).size == 3


def test_unknown_sizes_and_reset() -> None:
    dim = Dim(None, name="time")
    assert (dim.is_dim_known(), dim.capacity, dim.is_dynamic(), dim.need_masking()) == (False, None, True, True)
    for func in (dim.get_dim_value, dim.get_dim_value_tensor, dim.get_size_tensor, dim.get_mask):
        with pytest.raises(ModelError, match=r"Dim{'time'\[\?\]}: the size is not known yet"):
            func()
    dim = _dim(torch.tensor([2, 1]))
    old = dim.dyn_size_ext
    dim.reset_eager()
    assert not dim.is_dim_known() and dim.dyn_size_ext is not None
    assert dim.dyn_size_ext.dims == (batch_dim,) and dim.dyn_size_ext.raw_tensor is None
    assert old is not None and old.raw_tensor is not None  # those of whoever holds them
    dim.dyn_size_ext.raw_tensor = torch.tensor([5])
    assert dim.get_dim_value() == 5


def test_no_sequences() -> None:
    dim = _dim(torch.zeros(0, dtype=torch.int32))
    assert dim.get_dim_value() == 0 and dim.get_mask().raw_tensor.shape == (0, 0) and not dim.need_masking()
    assert int(dim.get_dim_value_tensor().raw_tensor) == 0


def test_equality_is_identity() -> None:
    a, b = Dim(3, name="x"), Dim(3, name="x")
    assert a != b and len({a, b, a}) == 2
    other = a.copy()
    assert other != a and (other.size, other.name) == (3, "x")
    dim = _dim(torch.tensor([2, 1]))
    other = dim.copy(name="y")
    assert other.name == "y" and other.get_dim_value() == 2
    other.reset_eager()
    assert dim.is_dim_known()


def test_repr() -> None:
    dims = (batch_dim, _dim(torch.tensor([1])), Dim(4, name="feat"), Dim(None), _dim(torch.tensor(3), name="n"))
    assert str(dims) == "(Dim{B}, Dim{'time'[B]}, Dim{'feat'(4)}, Dim{'unnamed'[?]}, Dim{'n'[]})"


@pytest.mark.parametrize("how", ["pickle", "deepcopy", "copy"])
def test_copies(how: str) -> None:
    def duplicate(value: Any) -> Any:
        if how == "pickle":
            return pickle.loads(pickle.dumps(value))
        return copy.deepcopy(value) if how == "deepcopy" else copy.copy(value)

    assert duplicate(batch_dim) is batch_dim and duplicate(single_step_dim) is single_step_dim
    dim = _dim(torch.tensor([2, 1]))
    other = duplicate(dim)
    assert other != dim and other.get_dim_value() == 2 and other.name == "time"
    assert other.dyn_size_ext.dims == (batch_dim,)
    if how != "copy":
        tensor = Tensor("x", [batch_dim, dim], raw_tensor=torch.zeros(2, 2))
        first, second = duplicate([tensor, dim])
        assert first.dims == (batch_dim, second) and first.raw_tensor.shape == (2, 2)


@pytest.mark.parametrize(
    ("args", "text"),
    [
        (("x",), "expected int, None or Tensor as dimension, got 'x' \\(str\\)"),
        ((True,), "got True"),
        ((2.0,), "got 2.0"),
        ((-1,), "at least 0"),
        ((Tensor("x", [batch_dim], "float32"),), "lengths as Tensor of an int dtype"),
    ],
)
def test_mistakes(args: tuple[Any, ...], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        Dim(*args)


def test_sizes_without_torch() -> None:
    code = (
        "import sys, numpy; from returnn.tensor import Dim, Tensor, batch_dim\n"
        "d = Dim(Tensor('t', [batch_dim], 'int32', raw_tensor=numpy.array([2, 1])))\n"
        "assert d.get_mask().raw_tensor.tolist() == [[True, True], [True, False]]\n"
        "assert type(Dim(3).get_size_tensor().raw_tensor) is numpy.ndarray\n"
        "assert 'torch' not in sys.modules"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert out.returncode == 0, out.stderr
