"""Raw batches with axes: from the loader's collation to extern_data, to outputs per sequence, and cut into parts."""

from __future__ import annotations

from typing import Any

import numpy
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.datasets.generating import DummyDataset, StaticDataset
from returnn.errors import BatchKeyError, ModelError, OptionError
from returnn.frontend.run_ctx import RunCtx
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from returnn.torch.data.collate import collate_batch
from returnn.torch.data.extern_data import (
    extern_data_template_from_config_opts,
    extern_data_template_from_dataset,
    get_batch_dim_from_extern_data,
    raw_dict_can_split_batch,
    raw_dict_split_batch,
    raw_dict_to_extern_data,
)
from returnn.torch.forward_seqs import split_outputs

LENS = st.lists(st.integers(0, 7), min_size=1, max_size=6)
OPTS: dict[str, Any] = {
    "data": {"dim": 2},
    "classes": {"dim": 9, "sparse": True, "available_for_inference": False},
}


def _seqs(lens: list[int], *, classes_lens: list[int] | None = None) -> list[dict[str, Any]]:
    return [
        {
            "data": numpy.random.RandomState(i).normal(size=(n, 2)).astype("float32"),
            "classes": numpy.arange(m, dtype="int32"),
            "seq_tag": f"seq-{i}",
            "seq_idx": i,
        }
        for i, (n, m) in enumerate(zip(lens, classes_lens or lens, strict=True))
    ]


def _shared_time_opts() -> dict[str, Any]:
    time = Dim(None, name="time")
    return {
        "data": {"dims": [batch_dim, time, Dim(2, name="in")], "dtype": "float32"},
        "classes": {"dims": [batch_dim, time], "sparse_dim": Dim(9), "available_for_inference": False},
    }


def _convert(raw: dict[str, Any], opts: dict[str, Any], **kwargs: Any) -> TensorDict:
    template = extern_data_template_from_config_opts(opts)
    return raw_dict_to_extern_data(
        raw, **{"extern_data_template": template, "device": "cpu", "with_eval_targets": True, **kwargs}
    )


@given(lens=LENS)
@settings(max_examples=40, deadline=None)
def test_from_and_to_raw_dict_is_identity(lens: list[int]) -> None:
    raw = collate_batch(_seqs(lens))
    data = _convert(raw, OPTS)
    assert list(data.data) == ["data", "classes", "seq_tag"]
    res = data.as_raw_tensor_dict(static_sizes=True)
    expected = {k: v for k, v in raw.items() if k != "seq_idx"}
    assert {k for k in res if k != "seq_tag:size0"} == set(expected)
    for key, value in expected.items():
        if key == "seq_tag":
            assert res[key].tolist() == value and res[key].dtype.kind == "U"
        elif key == "data:size2":
            assert [res[key]] * len(lens) == value.tolist()
        elif ":" in key:
            assert res[key].dtype == torch.int32 and torch.equal(res[key].long(), value)
        else:
            assert torch.equal(res[key], value)
    time = data["data"].dims[1]
    assert torch.equal(time.get_mask().raw_tensor.sum(1), torch.tensor(lens))
    assert batch_dim.get_dim_value() == len(lens)
    assert data["data"].dtype == "float32" and data["classes"].sparse_dim is not None


@given(lens=LENS, num=st.integers(1, 6))
@settings(max_examples=60, deadline=None)
def test_parts_are_what_the_loader_would_make_of_their_sequences(lens: list[int], num: int) -> None:
    seqs = _seqs(lens, classes_lens=lens[::-1])
    raw = collate_batch(seqs)
    assert raw_dict_can_split_batch(raw, num_splits=num) == (num <= len(seqs))
    if num > len(seqs):
        with pytest.raises(ModelError, match=f"a batch of {len(seqs)} sequences cannot be split into parts by {num}"):
            raw_dict_split_batch(raw, splits=num)
        return
    parts = raw_dict_split_batch(raw, splits=num)
    sizes = [len(part["seq_tag"]) for part in parts]
    assert sum(sizes) == len(seqs) and max(sizes) - min(sizes) <= 1 and sizes == sorted(sizes, reverse=True)
    start = 0
    for part, size in zip(parts, sizes, strict=True):
        expected = collate_batch(seqs[start : start + size])
        start += size
        assert list(part) == list(expected)
        for key, value in expected.items():
            assert torch.equal(part[key], value) if isinstance(value, torch.Tensor) else part[key] == value, key
    # and put together they are the batch
    for key in ("data", "classes"):
        pad = [0, 0] if key == "data" else []
        width = raw[key].shape[1]
        whole = [torch.nn.functional.pad(part[key], [*pad, 0, width - part[key].shape[1]]) for part in parts]
        assert torch.equal(torch.cat(whole), raw[key])
        assert torch.equal(torch.cat([part[f"{key}:size1"] for part in parts]), raw[f"{key}:size1"])


def test_split_by_sizes_and_other_forms() -> None:
    raw = {
        "x": torch.arange(5),
        "y": numpy.arange(10).reshape(5, 2),
        "all": torch.tensor(3),
        "x:seq_len": torch.ones(5),
    }
    first, second = raw_dict_split_batch(raw, splits=[4, 1])
    assert first["x"].tolist() == [0, 1, 2, 3] and second["y"].tolist() == [[8, 9]] and second["all"] == 3
    assert len(first["x:seq_len"]) == 4
    for splits in ([4, 2], [5, 0], 0):
        with pytest.raises(ModelError, match="cannot be split"):
            raw_dict_split_batch(raw, splits=splits)
    with pytest.raises(ModelError, match="no stream with a batch axis"):
        raw_dict_can_split_batch({"x": torch.tensor(1)})


@given(lens=LENS)
@settings(max_examples=40, deadline=None)
def test_sequences_cut_out_of_outputs_equal_the_originals(lens: list[int]) -> None:
    seqs = _seqs(lens)
    data = _convert(collate_batch(seqs), _shared_time_opts())
    ctx = RunCtx(stage="forward_step")
    ctx.mark_as_output(data["data"].raw_tensor, "data", dims=data["data"].dims)
    ctx.mark_as_output(data["classes"], "classes")
    ctx.mark_as_output(data["data"].raw_tensor.movedim(0, 2), "turned", dims=[*data["data"].dims[1:], batch_dim])
    for seq, cut in zip(seqs, split_outputs(ctx.outputs, data["seq_tag"].raw_tensor), strict=True):
        assert cut.seq_tag == seq["seq_tag"]
        assert numpy.array_equal(cut.outputs["data"].raw_tensor, seq["data"])
        assert numpy.array_equal(cut.outputs["classes"].raw_tensor, seq["classes"])
        assert numpy.array_equal(cut.outputs["turned"].raw_tensor, seq["data"])
        assert cut.outputs["data"].dims[0].dyn_size_ext.raw_tensor == len(seq["data"])  # type: ignore[union-attr]


def test_sizes_are_those_of_the_step() -> None:
    template = extern_data_template_from_config_opts(_shared_time_opts())
    time = template["data"].dims[1]
    for lens in ([3, 5], [2, 2, 1]):
        raw = collate_batch(_seqs(lens))
        data = raw_dict_to_extern_data(raw, extern_data_template=template, device="cpu")
        assert data["data"].dims[1] is time and time.get_size_tensor().raw_tensor.tolist() == lens
        assert time.get_size_tensor().raw_tensor.dtype == torch.int32
        assert "classes" not in data  # available_for_inference = False
    assert template["data"].raw_tensor is None
    assert get_batch_dim_from_extern_data(template) is batch_dim


def test_tensors_and_floats_are_converted() -> None:
    raw = {**collate_batch(_seqs([3, 5])), "x": torch.ones(2, dtype=torch.float64), "n": numpy.array([1.0, 2.0])}
    opts = {**OPTS, "x": {"dims": [batch_dim], "dtype": "float32"}, "n": {"dims": [batch_dim], "dtype": "float32"}}
    data = _convert(raw, opts, float_dtype="bfloat16")
    assert (data["data"].dtype, data["x"].dtype, data["classes"].dtype, data["n"].dtype) == (
        "bfloat16",
        "bfloat16",
        "int32",
        "float64",
    )
    assert data["data"].raw_tensor.dtype == torch.bfloat16 and isinstance(data["n"].raw_tensor, numpy.ndarray)
    data = _convert(raw, opts, device="meta", float_dtype=torch.float16)
    assert data["data"].raw_tensor.device.type == "meta" and data["data"].dtype == "float16"
    sizes = data["data"].dims[1].get_size_tensor().raw_tensor
    assert sizes.device.type == "cpu" and batch_dim.get_size_tensor().raw_tensor.device.type == "cpu"


def test_lengths_by_either_name_and_further_axes() -> None:
    raw = {"x": torch.zeros(2, 3, 4), "x:seq_len": torch.tensor([3, 1]), "x:size1": torch.tensor([9, 9])}
    data = _convert({**raw, "seq_tag": ["a", "b"]}, {"x": {"shape": (None, None)}})
    assert data["x"].dims[1].get_size_tensor().raw_tensor.tolist() == [3, 1]
    assert int(data["x"].dims[2].get_size_tensor().raw_tensor) == 4  # not given: of all sequences
    data = _convert({**raw, "seq_tag": ["a", "b"], "x:size2": torch.tensor([2, 4])}, {"x": {"shape": (None, None)}})
    assert data["x"].dims[2].get_size_tensor().raw_tensor.tolist() == [2, 4]


def test_own_batch_axis() -> None:
    batch, time = Dim(None, name="batch"), Dim(None, name="time")
    raw = collate_batch(_seqs([3, 5]))
    data = _convert(raw, {"data": {"dims": [batch, time, Dim(2)]}})
    assert data["seq_tag"].dims == (batch,) and batch.get_dim_value() == 2
    ctx = RunCtx(stage="train_step")
    ctx.mark_as_loss(torch.ones(2, 5), "x", dims=[batch, time])
    assert int(ctx.losses["x"].get_inv_norm_factor().raw_tensor) == 8


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"data": {"dim": 3}}, "shape mismatch for 'data': axis 2 of the data has size 2, but the description says"),
        ({"data": {"shape": ()}}, "ndim mismatch for 'data': the data have shape \\[2, 5, 2\\]"),
        (
            {"daten": {"dim": 2}},
            "describes 'daten', but the batch has no such stream; it has 'data', 'classes', 'seq_tag'",
        ),
    ],
)
def test_batches_that_do_not_fit(opts: dict[str, Any], text: str) -> None:
    with pytest.raises(AssertionError, match=text):
        _convert(collate_batch(_seqs([3, 5])), opts)


def test_missing_key_and_lengths() -> None:
    raw = collate_batch(_seqs([3, 5]))
    with pytest.raises(BatchKeyError):
        _convert({k: v for k, v in raw.items() if k != "classes"}, OPTS)
    with pytest.raises(ModelError, match="neither 'data:seq_len' nor 'data:size1'"):
        _convert({k: v for k, v in raw.items() if k != "data:size1"}, OPTS)
    with pytest.raises(ModelError, match="'classes': it has 1 sequences, but the streams before it have 2"):
        _convert({**raw, "classes": raw["classes"][:1]}, OPTS)


def test_shared_axis_with_other_lengths_names_the_sequence() -> None:
    raw = collate_batch(_seqs([3, 5], classes_lens=[3, 4]))
    text = "'classes': its axis 1 is Dim{'time'.B.}, .* in sequence 1 of the batch .'seq-1'. it is 5 there, and 4 in"
    with pytest.raises(ModelError, match=text):
        _convert(raw, _shared_time_opts())
    assert _convert(raw, OPTS)["classes"].dims[1].get_dim_value() == 4  # axes of their own


def test_seq_tag_given_by_the_config() -> None:
    template = extern_data_template_from_config_opts({**OPTS, "seq_tag": {"dims": [batch_dim], "dtype": "string"}})
    assert list(template.data) == ["data", "classes", "seq_tag"]
    assert extern_data_template_from_config_opts({})["seq_tag"].dims == (batch_dim,)
    with pytest.raises(OptionError, match=r'option "extern_data\["x"\]" is invalid'):
        extern_data_template_from_config_opts({"x": 3})
    with pytest.raises(ModelError, match="no entry with a batch axis"):
        get_batch_dim_from_extern_data(TensorDict())


def test_template_from_dataset() -> None:
    dataset = StaticDataset(
        data=[{"data": numpy.zeros((3, 2), "float32"), "classes": numpy.zeros(3, "int32")}],
        input_dim=2,
        output_dim={"data": (2, 2), "classes": (7, 1)},
    )
    template = extern_data_template_from_dataset(dataset)
    assert list(template.data) == ["data", "classes", "seq_tag"]
    assert template["data"].batch_shape == (None, None, 2) and template["data"].dtype == "float32"
    classes = template["classes"]
    assert classes.batch_shape == (None, None) and classes.dtype == "int32"
    assert classes.sparse_dim is not None and classes.sparse_dim.size == 7
    assert classes.dims[1] != template["data"].dims[1]
    raw = collate_batch([{**_seqs([3])[0]}])
    data = raw_dict_to_extern_data(raw, extern_data_template=template, device="cpu", with_eval_targets=True)
    assert data["data"].raw_tensor.shape == (1, 3, 2)
    assert isinstance(extern_data_template_from_dataset(DummyDataset(3, 4, num_seqs=1))["data"], Tensor)
