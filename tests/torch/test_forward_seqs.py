"""returnn.torch.forward_seqs: outputs of a batch, taken apart."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.errors import ModelError
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from returnn.torch.forward_seqs import split_outputs


def _lens(values: list[int], name: str = "time") -> Dim:
    return Dim(Tensor(name, [batch_dim], "int32", raw_tensor=torch.tensor(values, dtype=torch.int32)), name=name)


def _outputs(**tensors: Tensor) -> TensorDict:
    return TensorDict(tensors)


@settings(deadline=None, max_examples=60)
@given(
    lens=st.lists(st.integers(0, 5), min_size=1, max_size=6),
    batch_axis=st.integers(0, 2),
    has_feature=st.booleans(),
    more_padding=st.integers(0, 2),
)
def test_parts_are_the_rows_without_padding(
    lens: list[int], batch_axis: int, has_feature: bool, more_padding: int
) -> None:
    time = _lens(lens)
    size = max(lens) + more_padding
    dims: list[Dim] = [time]
    shape = [size]
    if has_feature:
        dims.append(Dim(3, name="feature"))
        shape.append(3)
    batch_axis = min(batch_axis, len(dims))
    values = torch.randn([len(lens), *shape])
    raw = values.movedim(0, batch_axis)
    dims.insert(batch_axis, batch_dim)
    tags = [f"seq-{i}" for i in range(len(lens))]
    parts = split_outputs(_outputs(x=Tensor("x", dims, raw_tensor=raw)), tags)
    assert [part.seq_tag for part in parts] == tags
    for i, part in enumerate(parts):
        x = part.outputs["x"]
        np.testing.assert_array_equal(x.raw_tensor, values[i, : lens[i]].numpy())
        assert x.raw_tensor.base is None and x.dtype == "float32"  # its own memory: keeping it does not keep the batch
        assert x.dims[0] is not time and x.dims[0].name == "time"
        assert x.dims[0].dyn_size_ext is not None and x.dims[0].dyn_size_ext.dims == ()
        assert int(x.dims[0].dyn_size_ext.raw_tensor) == lens[i] == x.dims[0].get_dim_value()
        assert x.dims[1:] == tuple(dims[j] for j in range(len(dims)) if dims[j] not in (batch_dim, time))


def test_outputs_of_a_sequence_share_their_axes() -> None:
    time = _lens([2, 1])
    feature = Dim(4)
    outputs = _outputs(
        a=Tensor("a", [batch_dim, time, feature], feature_dim=feature, raw_tensor=torch.zeros(2, 2, 4)),
        b=Tensor("b", [time, batch_dim], "int64", sparse_dim=feature, raw_tensor=torch.ones(2, 2, dtype=torch.int64)),
    )
    first, second = (part.outputs for part in split_outputs(outputs, ["x", "y"]))
    assert first["a"].dims[0] is first["b"].dims[0] and first["a"].dims[0] is not second["a"].dims[0]
    assert first["a"].feature_dim is feature and first["b"].sparse_dim is feature and first["b"].dtype == "int64"


def test_scalars_and_dtypes() -> None:
    outputs = _outputs(
        score=Tensor("score", [batch_dim], "bfloat16", raw_tensor=torch.tensor([1.5, 2.0], dtype=torch.bfloat16)),
        flag=Tensor("flag", [batch_dim], "bool", raw_tensor=torch.tensor([True, False])),
        grad=Tensor("grad", [batch_dim], raw_tensor=torch.tensor([1.0, 2.0], requires_grad=True)),
    )
    second = split_outputs(outputs, ["x", "y"])[1].outputs
    for name, dtype, value in [("score", "float32", 2.0), ("flag", "bool", False), ("grad", "float32", 2.0)]:
        array = second[name].raw_tensor
        assert isinstance(array, np.ndarray) and array.shape == () and str(array.dtype) == dtype == second[name].dtype
        assert array == value


def test_lengths_that_differ_within_a_sequence() -> None:
    beam = Dim(2, name="beam")
    lens = Tensor("lens", [batch_dim, beam], "int32", raw_tensor=torch.tensor([[1, 3], [2, 2]], dtype=torch.int32))
    time = Dim(lens, name="time")
    raw = torch.arange(2 * 2 * 4).reshape(2, 2, 4)
    outputs = _outputs(hyps=Tensor("hyps", [batch_dim, beam, time], "int64", raw_tensor=raw))
    first, second = (part.outputs["hyps"] for part in split_outputs(outputs, ["x", "y"]))
    assert first.raw_tensor.shape == (2, 3) and second.raw_tensor.shape == (2, 2)
    assert first.dims[0] is beam and first.dims[1].dyn_size_ext is not None
    assert first.dims[1].dyn_size_ext.dims == (beam,) and first.dims[1].dyn_size_ext.raw_tensor.tolist() == [1, 3]


def test_one_length_for_all_sequences_stays() -> None:
    time = Dim(Tensor("time", (), "int32", raw_tensor=torch.tensor(3, dtype=torch.int32)), name="time")
    part = split_outputs(_outputs(x=Tensor("x", [batch_dim, time], raw_tensor=torch.zeros(2, 3))), ["a", "b"])[0]
    assert part.outputs["x"].dims == (time,) and part.outputs["x"].raw_tensor.shape == (3,)


@pytest.mark.parametrize(
    ("dims", "shape", "text"),
    [
        ([Dim(2)], [2], r"output 'x' has no batch axis, its dims are .*dims=\[batch_dim, ...\]"),
        ([batch_dim], [3], "output 'x' has 3 sequences, but the batch has 2"),
        ([batch_dim, _lens([1, 2, 3])], [2, 3], r"'x': lengths of shape \(3,\), but there are 2 sequences"),
        ([batch_dim, _lens([1, 5])], [2, 3], "'x': the lengths go up to 5, but axis 1 has size 3"),
        ([batch_dim, Dim(None, name="time")], [2, 3], "Cannot infer dynamic size of .*'time'"),
    ],
)
def test_what_does_not_fit_is_worded(dims: list[Dim], shape: list[int], text: str) -> None:
    output = Tensor("x", dims)
    output.raw_tensor = torch.zeros(shape)
    with pytest.raises(ModelError, match=text):
        split_outputs(_outputs(x=output), ["a", "b"])
