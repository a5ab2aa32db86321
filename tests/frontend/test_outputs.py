"""mark_as_output: with and without expected outputs, of both dialects; and lengths within lengths."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from returnn.errors import ModelError
from returnn.frontend.run_ctx import RunCtx
from returnn.tensor import Dim, Tensor, TensorDict, batch_dim
from returnn.torch import context

LENS = torch.tensor([3, 2], dtype=torch.int32)
BTF = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
TIME = Dim(Tensor("time", [batch_dim], "int32", raw_tensor=LENS), name="time")
FEAT = Dim(4, name="feat")
OTHER = Dim(4, name="other")
CLASSES = Dim(4, name="classes")


def _ctx(dialect: type[RunCtx] = RunCtx, **templates: Any) -> RunCtx:
    return dialect(stage="forward_step", expected_outputs=TensorDict(templates) if templates else None)


@pytest.mark.parametrize("dialect", [RunCtx, context.RunCtx], ids=["mainline", "mini"])
def test_forms_without_expectation(dialect: type[RunCtx]) -> None:
    ctx = _ctx(dialect)
    ctx.mark_as_output(BTF, "raw")
    assert ctx.outputs["raw"].dims[0] is batch_dim
    assert [d.name for d in ctx.outputs["raw"].dims[1:]] == ["raw_dim1", "raw_dim2"]
    ctx.mark_as_output(BTF, "dims", dims=[batch_dim, TIME, FEAT])
    assert ctx.outputs["dims"].dims == (batch_dim, TIME, FEAT)
    ctx.mark_as_output(BTF, "lens", dims=[2, LENS, 4])
    assert ctx.outputs["lens"].dims[1].get_size_tensor().raw_tensor is LENS
    ctx.mark_as_default_output(BTF.sum(), shape=[])
    assert ctx.outputs["output"].dims == ()
    tensor = Tensor("x", [FEAT, batch_dim, TIME], sparse_dim=CLASSES, raw_tensor=BTF.permute(2, 0, 1))
    ctx.mark_as_output(tensor, "tensor")
    assert ctx.outputs["tensor"].dims == (batch_dim, TIME, FEAT) and ctx.outputs["tensor"].sparse_dim is CLASSES
    assert torch.equal(ctx.outputs["tensor"].raw_tensor, BTF)
    ctx.mark_as_output(tensor, "turned", dims=[TIME, FEAT, batch_dim])
    assert torch.equal(ctx.outputs["turned"].raw_tensor, BTF.permute(1, 2, 0))
    assert ctx.outputs["raw"].dtype == "float32"
    ctx.check_outputs_complete()


def test_expected_by_the_old_form_and_the_idiom_of_client_code() -> None:
    template = TensorDict()
    template.update({"log_probs": {"dim": 4}}, auto_convert=True)
    ctx = RunCtx(stage="forward_step", expected_outputs=template)
    assert ctx.expected_outputs is not None
    sizes = ctx.expected_outputs["log_probs"].dims[1].dyn_size_ext
    assert sizes is not None and sizes.raw_tensor is None and sizes.dims == (batch_dim,)
    with pytest.raises(ModelError, match=r"^mark_as_output: 'log_probs': Cannot infer dynamic size of .*raw_tensor"):
        ctx.mark_as_output(BTF, name="log_probs")
    sizes.raw_tensor = LENS
    ctx.mark_as_output(BTF, name="log_probs")
    ctx.check_outputs_complete()
    output = ctx.outputs["log_probs"]
    assert output.dims[1].get_dim_value() == 3 and output.feature_dim is output.dims[2]
    template.reset_content()
    assert not output.dims[1].is_dim_known()
    ctx.init_step()
    ctx.mark_as_output(BTF, "log_probs", dims=[2, LENS, 4])  # Mini's form gives the lengths itself


def test_expected_tensor_is_put_into_order() -> None:
    ctx = _ctx(x=Tensor("x", [batch_dim, TIME, FEAT], "float32"))
    ctx.mark_as_output(Tensor("y", [batch_dim, FEAT, TIME], raw_tensor=BTF.transpose(1, 2)), "x")
    assert torch.equal(ctx.outputs["x"].raw_tensor, BTF)


def test_sparse_dim_comes_from_the_description() -> None:
    ctx = _ctx(x=Tensor("x", [batch_dim, TIME], "int64", sparse_dim=CLASSES))
    ctx.mark_as_output(BTF.argmax(-1), "x")
    assert ctx.outputs["x"].sparse_dim is CLASSES


@pytest.mark.parametrize(
    ("value", "dims", "text"),
    [
        (BTF, [batch_dim, TIME, OTHER], "'x' has dims .*'other'.*, expected .*'feat'.* Use the same Dim objects"),
        (BTF, [batch_dim, Dim(3), FEAT], "'x' has dims .* expected"),
        (BTF, [2, 3, 4], "'x' has dims .* expected"),
        (BTF[..., :3], None, "'x': axis 2 has size 3, but Dim{'feat'.4.} is static"),
        (BTF[0], None, r"'x' has 2 axes \(shape \(3, 4\)\), expected the 3 axes"),
        (BTF.double(), None, "'x' has dtype float64, expected float32. Convert it"),
        (BTF[:, :2], None, "'x': the lengths go up to 3, but axis 1 has size 2"),
        (BTF[:1], None, "'x': there are 2 lengths for axis 1, but 1 sequences"),
        (Tensor("t", [batch_dim, TIME, OTHER], raw_tensor=BTF), None, "'x': it is a Tensor with dims .* expected"),
        (
            Tensor("t", [batch_dim, TIME, FEAT], sparse_dim=CLASSES, raw_tensor=BTF),
            None,
            "'x' has sparse_dim .* expected None",
        ),
        (Tensor("t", [batch_dim, TIME, FEAT]), None, "'x' is Tensor.* without value"),
        ("text", None, "'x' is str, expected a torch tensor"),
    ],
)
def test_what_is_not_expected(value: Any, dims: Any, text: str) -> None:
    ctx = _ctx(x=Tensor("x", [batch_dim, TIME, FEAT], "float32"))
    with pytest.raises(AssertionError, match=f"^mark_as_output: {text}"):
        ctx.mark_as_output(value, "x", dims=dims)
    assert "x" not in ctx.outputs


def test_wrong_calls() -> None:
    ctx = _ctx()
    with pytest.raises(
        ModelError, match="^mark_as_output: 'x' is a Tensor with the axes .* beside batch and time there are 2"
    ):
        ctx.mark_as_output(Tensor("t", [batch_dim, FEAT, OTHER], raw_tensor=torch.zeros(2, 4, 4)), "x")
    with pytest.raises(ModelError, match="^mark_as_output: 'x' was marked in stage 'train_step'"):
        RunCtx(stage="train_step").mark_as_output(BTF, "x")
    ctx = _ctx(x=Tensor("x", [batch_dim]), y=Tensor("y", [batch_dim]))
    with pytest.raises(ModelError, match=r"^mark_as_output: 'z' is not among the expected outputs \['x', 'y'\]"):
        ctx.mark_as_output(BTF, "z")
    ctx.mark_as_output(BTF[:, 0, 0], "x")
    with pytest.raises(ModelError, match="^mark_as_output: the output 'x' was marked already"):
        ctx.mark_as_output(BTF[:, 0, 0], "x")
    with pytest.raises(ModelError, match=r"marked the outputs \['x'\], expected .* are \['x', 'y'\]"):
        ctx.check_outputs_complete()


def test_losses_given_as_tensor() -> None:
    ctx = RunCtx(stage="train_step")
    tensor = Tensor("ce", [batch_dim, FEAT, TIME], raw_tensor=BTF.transpose(1, 2))
    ctx.mark_as_loss(tensor, "a")
    ctx.mark_as_loss(tensor, "b", dims=[batch_dim, TIME, FEAT], custom_inv_norm_factor=TIME.get_size_tensor())
    assert [float(loss.get_summed_loss().raw_tensor) for loss in ctx.losses.values()] == [190, 190]
    assert [int(loss.get_inv_norm_factor().raw_tensor) for loss in ctx.losses.values()] == [20, 5]
    with pytest.raises(ModelError, match="has no value"):
        ctx.mark_as_loss(tensor.copy_template(), "c")


@pytest.mark.parametrize("factor", [5, 5.0, torch.tensor(5), torch.tensor([3, 2]), TIME.get_size_tensor(), 0])
def test_custom_norm_factors(factor: Any) -> None:
    ctx = RunCtx(stage="train_step")
    ctx.mark_as_loss(
        torch.tensor([6.0, 9.0]), "x", dims=[batch_dim], custom_inv_norm_factor=factor, use_normalized_loss=True
    )
    loss = ctx.losses["x"]
    assert float(loss.get_mean_loss().raw_tensor) == (3 if not isinstance(factor, int) or factor else 15)
    assert float(loss.get_inv_norm_factor().raw_tensor) == (5 if not isinstance(factor, int) or factor else 0)


def test_custom_norm_factor_with_padding_or_without_value() -> None:
    ctx = RunCtx(stage="train_step")
    weights = Tensor("weights", [batch_dim, TIME], "float32", raw_tensor=torch.full((2, 3), 0.5))
    ctx.mark_as_loss(torch.tensor([6.0, 9.0]), "x", dims=[batch_dim], custom_inv_norm_factor=weights)
    assert float(ctx.losses["x"].get_inv_norm_factor().raw_tensor) == 2.5
    with pytest.raises(ModelError, match="mark_as_loss: 'y': custom_inv_norm_factor is .* without value"):
        ctx.mark_as_loss(torch.zeros(2), "y", dims=[batch_dim], custom_inv_norm_factor=weights.copy_template())


def test_only_excluded_losses() -> None:
    ctx = RunCtx(stage="train_step")
    ctx.mark_as_loss(torch.tensor(2.0), "a", scale=0)
    ctx.mark_as_loss(torch.tensor([True, False]), "b", dims=[batch_dim], as_error=True)
    assert ctx.total_loss().raw_tensor == 0 and ctx.losses["b"].get_mean_loss().raw_tensor == 0.5
    assert RunCtx(stage="train_step").losses == {}


def test_lengths_within_lengths() -> None:
    beam = Dim(Tensor("beam", [batch_dim], "int32", raw_tensor=torch.tensor([2, 1])), name="beam")
    lens = Tensor("lens", [batch_dim, beam], "int32", raw_tensor=torch.tensor([[3, 1], [2, 9]]).clamp(max=3))
    out = Dim(lens, name="out")
    ctx = RunCtx(stage="train_step")
    ctx.mark_as_loss(torch.ones(2, 2, 3, 4), "x", dims=[batch_dim, beam, out, FEAT])
    assert float(ctx.losses["x"].get_summed_loss().raw_tensor) == (3 + 1 + 2) * 4
    assert int(ctx.losses["x"].get_inv_norm_factor().raw_tensor) == (3 + 1 + 2) * 4
    with pytest.raises(ModelError, match=r"lengths of shape \(2, 2\) for axis 1 do not fit"):
        ctx.mark_as_loss(torch.ones(2, 3), "y", dims=[batch_dim, out])
