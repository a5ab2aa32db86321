"""returnn.frontend.run_ctx and returnn.torch.context: losses and outputs in all forms."""

from __future__ import annotations

import json
import os
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import returnn.frontend as rf
from returnn._state import process_state_ctx
from returnn.errors import ModelError
from returnn.frontend.run_ctx import RunCtx
from returnn.tensor import Dim, Tensor, batch_dim
from returnn.torch import context

GOLDEN = os.path.join(os.path.dirname(__file__), "..", "golden", "06-engine", "run_ctx_mainline_losses.json")
LENS = torch.tensor([3, 2], dtype=torch.int32)


def _train_ctx(dialect: type[RunCtx] = context.RunCtx) -> RunCtx:
    ctx = dialect(stage="train_step", device="cpu", train_flag=True)
    ctx.init_step(0)
    return ctx


def _time_dim() -> Dim:
    return Dim(Tensor("time", [batch_dim], "int32", raw_tensor=LENS), name="time")


def _sizes_tensor() -> Tensor:
    return Tensor("sizes", [batch_dim], "int32", raw_tensor=LENS)


BT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 100.0]])
BTF = torch.arange(24, dtype=torch.float32).reshape(2, 3, 4)
GOLDEN_ROWS = dict(json.load(open(GOLDEN)))
#: golden row name -> raw loss, arguments
GOLDEN_CASES: dict[str, tuple[torch.Tensor, dict[str, Any]]] = {
    "raw [B,T] dims=[batch,time]": (BT, {"dims": [batch_dim, _time_dim()]}),
    "raw [B,T] use_normalized_loss": (BT, {"dims": [batch_dim, _time_dim()], "use_normalized_loss": True}),
    "raw [B,T] scale=0.5": (BT, {"dims": [2, _time_dim()], "scale": 0.5}),
    "raw [B,T] scale=0.5 norm": (BT, {"dims": [2, _time_dim()], "scale": 0.5, "use_normalized_loss": True}),
    "raw [B,T,F]": (BTF, {"dims": [batch_dim, _time_dim(), Dim(4, name="feat")], "use_normalized_loss": True}),
    "raw [B] dims=[batch]": (torch.tensor([6.0, 9.0]), {"dims": [batch_dim], "use_normalized_loss": True}),
    "raw [B] custom_inv_norm=time sizes": (
        torch.tensor([6.0, 9.0]),
        {"dims": [batch_dim], "custom_inv_norm_factor": _sizes_tensor(), "use_normalized_loss": True},
    ),
    "raw [B] custom_inv_norm=get_size_tensor, not normalized": (
        torch.tensor([6.0, 9.0]),
        {"dims": [batch_dim], "custom_inv_norm_factor": _time_dim().get_size_tensor()},
    ),
    "raw [B] custom_inv_norm raw torch": (
        torch.tensor([6.0, 9.0]),
        {"dims": [batch_dim], "custom_inv_norm_factor": LENS, "use_normalized_loss": True},
    ),
    "scalar raw no dims": (torch.tensor(6.0), {}),
    "scalar raw dims=[]": (torch.tensor(6.0), {"dims": []}),
    "raw vector no dims": (torch.tensor([6.0, 9.0]), {}),
    "as_error": (BT, {"dims": [batch_dim, _time_dim()], "as_error": True}),
    "int raw": (torch.tensor([1, 0]), {"dims": [batch_dim]}),
    "use_flatten_frames False": (BT, {"dims": [batch_dim, _time_dim()], "use_flatten_frames": False}),
    "scalar custom_inv Tensor scalar": (
        torch.tensor(6.0),
        {"custom_inv_norm_factor": Tensor("n", [], "int32", raw_tensor=torch.tensor(4)), "use_normalized_loss": True},
    ),
    "scale 0": (BT, {"dims": [batch_dim, _time_dim()], "scale": 0.0}),
    "scalar scale 0": (torch.tensor(6.0), {"scale": 0.0}),
}


def _number(value: Any) -> float:
    return float(getattr(value, "raw_tensor", value))


@pytest.mark.parametrize("dialect", [RunCtx, context.RunCtx], ids=["mainline", "mini"])
@pytest.mark.parametrize("row", json.load(open(GOLDEN)), ids=lambda row: row[0])
def test_golden_losses(row: tuple[str, Any], dialect: type[RunCtx]) -> None:
    name, expected = row
    if isinstance(expected, str):  # upstream refuses a raw factor; ours takes it, as any other
        name, expected = "raw [B] custom_inv_norm raw torch", dict(GOLDEN_ROWS["raw [B] custom_inv_norm=time sizes"])
    raw, args = GOLDEN_CASES[name]
    ctx = _train_ctx(dialect)
    ctx.mark_as_loss(raw, "x", **args)
    loss = ctx.losses["x"]
    assert _number(loss.get_summed_loss()) == expected["summed"]
    assert _number(loss.get_mean_loss()) == expected["mean"]
    assert _number(loss.get_inv_norm_factor()) == expected["inv_norm"]
    assert _number(loss.get_scaled_reduced_loss()) == expected["scaled_reduced"]
    assert _number(ctx.total_loss()) == expected["total"] == float(ctx.total_loss_raw())
    if dialect is RunCtx:
        assert type(loss.get_inv_norm_factor()).__name__ == expected["inv_norm_type"]
        assert type(ctx.total_loss()) is type(loss.get_mean_loss()) is type(loss.get_summed_loss()) is Tensor
        assert loss.get_summed_loss().dtype == expected["dtype"] and loss.get_summed_loss().dims == ()
        assert str(loss.dims) == expected["loss_dims"]


def test_mini_total_loss() -> None:
    ctx = _train_ctx()
    ctx.mark_as_loss(torch.tensor(6.0), "a", inv_norm_factor=torch.tensor(4))
    ctx.mark_as_loss(name="b", loss=torch.tensor(3.0), scale=0.5)
    ctx.mark_as_loss(loss=torch.tensor(100.0), name="c", scale=0.0)
    ctx.mark_as_loss(torch.tensor(2.0, dtype=torch.float64), "d", inv_norm_factor=torch.tensor(0))
    ctx.mark_as_loss(torch.tensor(2.0), "e", inv_norm_factor=8)
    assert list(ctx.losses) == ["a", "b", "c", "d", "e"]
    assert ctx.total_loss() == 5.25
    assert ctx.total_loss().dtype == torch.float32


@given(st.lists(st.integers(0, 7), min_size=1, max_size=5), st.integers(0, 2), st.integers(1, 3))
@settings(max_examples=50, deadline=None)
def test_masked_sum_equals_sum_over_cut_sequences(lens: list[int], extra: int, feat: int) -> None:
    max_len = max(lens) + extra
    raw = torch.randn(len(lens), max_len, feat, dtype=torch.float64)
    raw_with_nan = raw.clone()
    for i, n in enumerate(lens):
        raw_with_nan[i, n:] = float("nan")
    ctx = _train_ctx()
    ctx.mark_as_loss(raw_with_nan, "x", dims=[batch_dim, torch.tensor(lens), feat])
    loss = ctx.losses["x"]
    assert float(loss.loss) == pytest.approx(sum(float(raw[i, :n].sum()) for i, n in enumerate(lens)), abs=1e-9)
    assert int(loss.get_inv_norm_factor()) == sum(lens) * feat


def test_gradient_of_padding_is_zero() -> None:
    raw = BT.clone().requires_grad_()
    ctx = _train_ctx()
    ctx.mark_as_loss(raw, "x", dims=[batch_dim, LENS], use_normalized_loss=True)
    ctx.total_loss().backward()
    assert raw.grad is not None
    assert torch.allclose(raw.grad, torch.tensor([[0.2, 0.2, 0.2], [0.2, 0.2, 0.0]]))


@pytest.mark.parametrize(
    ("kwargs", "text"),
    [
        ({"loss": BT, "inv_norm_factor": 3}, "summed already"),
        ({"loss": BT, "dims": [batch_dim]}, "has 2 axes, but dims has 1"),
        ({"loss": BT, "dims": [batch_dim, 7]}, "axis 1 has size 3, but dims says 7"),
        ({"loss": BT, "dims": [batch_dim, "time"]}, "entry 1 of dims is 'time'"),
        ({"loss": BT, "dims": [batch_dim, Dim(None, name="t")]}, "dyn_size_ext.raw_tensor"),
        ({"loss": BT.sum(), "inv_norm_factor": 2, "use_normalized_loss": True}, "cannot be combined"),
        ({"loss": BT, "dims": [batch_dim, torch.tensor([1, 2, 3])]}, "do not fit"),
        ({"loss": "text"}, "the loss is str, expected a tensor or a number"),
        ({"loss": BT.sum(), "inv_norm_factor": "3"}, "the norm factor is '3' (str)"),
    ],
)
def test_errors_of_mark_as_loss_name_loss_and_remedy(kwargs: dict[str, Any], text: str) -> None:
    with pytest.raises(ModelError, match="my_loss") as info:
        _train_ctx().mark_as_loss(name="my_loss", **kwargs)
    assert text in str(info.value)


def test_loss_marked_twice_or_in_wrong_stage_or_missing() -> None:
    ctx = _train_ctx()
    with pytest.raises(AssertionError, match=r"call RunCtx.mark_as_loss\(...\)"):
        ctx.total_loss()
    ctx.mark_as_loss(torch.tensor(1.0), "a")
    with pytest.raises(AssertionError, match="'a' was marked already"):
        ctx.mark_as_loss(torch.tensor(1.0), "a")
    with pytest.raises(AssertionError, match="use mark_as_output"):
        RunCtx(stage="forward_step").mark_as_loss(torch.tensor(1.0), "a")


def test_one_element_loss_and_python_numbers_are_accepted() -> None:
    ctx = _train_ctx()
    ctx.mark_as_loss(torch.tensor([4.0]), "a", inv_norm_factor=2.0)
    ctx.mark_as_loss(3.0, "b")
    assert ctx.total_loss() == 5.0 and ctx.total_loss().ndim == 0


def test_outputs() -> None:
    ctx = RunCtx(stage="forward_step", device="cpu")
    ctx.init_step(0)
    ctx.mark_as_output(BTF, "feat", dims=[batch_dim, LENS, 4])
    ctx.mark_as_default_output(BT.sum(1), shape=[batch_dim])
    assert list(ctx.outputs.data) == ["feat", "output"]
    assert ctx.outputs["feat"].dims[1].lengths().tolist() == [3, 2]  # type: ignore[union-attr]
    with pytest.raises(ModelError, match="'feat' was marked already"):
        ctx.mark_as_output(BTF, "feat")


def test_expected_outputs_idiom_of_client_code() -> None:
    time = Dim(Tensor("time:sizes", [batch_dim], "int32"))
    expected = rf.RunCtx(stage="init").outputs.copy_template()
    expected.update({"log_probs": Tensor("log_probs", [batch_dim, time, Dim(4)])})
    ctx = RunCtx(stage="forward_step", expected_outputs=expected)
    ctx.expected_outputs["log_probs"].dims[1].dyn_size_ext.raw_tensor = LENS  # type: ignore[index,union-attr]
    with pytest.raises(ModelError, match=r"mark_as_output: 'other' is not among the expected outputs \['log_probs'\]"):
        ctx.mark_as_output(BTF, "other")
    with pytest.raises(ModelError, match="marked the outputs"):
        ctx.check_outputs_complete()
    with pytest.raises(ModelError, match="has dtype float64, expected float32"):
        ctx.mark_as_output(BTF.double(), name="log_probs")
    ctx.mark_as_output(BTF, name="log_probs")
    ctx.check_outputs_complete()
    assert ctx.outputs["log_probs"].dims[1] is time


def test_train_flag_ctx() -> None:
    def func() -> None:
        pass

    ctx = RunCtx(stage="train_step", train_flag=True)
    with ctx.train_flag_ctx(False):
        assert not ctx.train_flag
        with ctx.train_flag_ctx(True, func=func):
            assert not ctx.train_flag and ctx.is_train_flag_enabled(func=func)
    assert ctx.train_flag
    with pytest.raises(TypeError, match="func must be a Python function"), ctx.train_flag_ctx(False, func=3):  # type: ignore[arg-type]
        pass


def test_both_modules_give_the_same_context() -> None:
    with process_state_ctx(run_ctx=None):
        with pytest.raises(Exception, match="RunCtx was not initialized yet"):
            context.get_run_ctx()
        assert (rf.get_run_ctx().stage, rf.get_run_ctx().train_flag) == ("init", False)
        assert rf.get_run_ctx() is rf.get_run_ctx()
        context.init_load_run_ctx("cpu", None, 3)
        ctx = context.get_run_ctx()
        assert ctx is rf.get_run_ctx()
        assert (ctx.stage, ctx.epoch, ctx.global_step, ctx.device, ctx.engine) == ("load", 3, None, "cpu", None)
        context.init_train_step_run_ctx(device="cpu", engine=None, epoch=2)
        assert (context.get_run_ctx().stage, context.get_run_ctx().train_flag) == ("train_step", True)
        rf.init_forward_step_run_ctx(epoch=4, step=7)
        ctx = rf.get_run_ctx()
        assert (ctx.stage, ctx.epoch, ctx.step, rf.get_run_ctx_step().raw_tensor.item()) == ("forward_step", 4, 7, 7)
        assert ctx.get_epoch_tensor().raw_tensor.item() == 4
        ctx.anything = 42  # type: ignore[attr-defined]  # user code keeps its own things there
        context.reset_run_ctx()


def test_who_made_the_context_decides_the_type_of_its_losses() -> None:
    with process_state_ctx(run_ctx=None):
        context.init_train_step_run_ctx("cpu")
        rf.get_run_ctx().mark_as_loss(torch.tensor(6.0), "a", inv_norm_factor=4)
        assert isinstance(rf.get_run_ctx().total_loss(), torch.Tensor)
        assert isinstance(rf.get_run_ctx().losses["a"].get_mean_loss(), torch.Tensor)
        rf.init_train_step_run_ctx(train_flag=False, step=3, epoch=2)
        ctx = context.get_run_ctx()
        assert (ctx.stage, ctx.train_flag, ctx.step, ctx.epoch, ctx.device) == ("train_step", False, 3, 2, None)
        ctx.mark_as_loss(torch.tensor(6.0), "a", inv_norm_factor=4)  # Mini's form
        assert ctx.total_loss().raw_tensor == 1.5 and ctx.losses["a"].get_inv_norm_factor() == 4
        assert isinstance(ctx.losses["a"], rf.Loss) and not isinstance(ctx.losses["a"], context.Loss)


def test_loss_with_positional_arguments_of_the_peer() -> None:
    loss = context.Loss(torch.tensor(4.0), "x", 0.5, torch.tensor(2))
    assert (loss.name, loss.scale, float(loss.get_scaled_reduced_loss())) == ("x", 0.5, 1.0)


@pytest.mark.parametrize(
    ("shape", "dims", "text"),
    [
        ((3, 2), [LENS, 2], r"lengths of shape \(2,\) for axis 0 .* give returnn.tensor.batch_dim for it"),
        ((2, 2), [2, LENS], "the lengths go up to 3, but axis 1 has size 2. Are they those of another axis"),
    ],
)
def test_lengths_that_do_not_fit(shape: tuple[int, ...], dims: list[Any], text: str) -> None:
    with pytest.raises(ModelError, match=text):
        _train_ctx().mark_as_loss(torch.ones(shape), "x", dims=dims)
