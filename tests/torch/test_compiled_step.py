"""Compiled training: equal to the uncompiled one, in both dialects; errors name the option."""

from __future__ import annotations

import inspect
import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch._dynamo.backends.common import aot_autograd
from torch._dynamo.testing import CompileCounter
from torch._functorch.aot_autograd import make_boxed_func

import returnn.frontend as rf
from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.errors import ModelError, OptionError
from returnn.log import log
from returnn.options.compile import CompileOptions
from returnn.torch.compiled_step import CompiledStep, compile_step_function
from returnn.torch.context import RunCtx, get_run_ctx, init_train_step_run_ctx
from returnn.torch.engine import Engine
from returnn.torch.updater import Updater
from returnn.torch.user_functions import UserFunction
from tests.torch.test_engine import _config, _dataset, _params, _scores, _train


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    torch._dynamo.reset()
    with process_state_ctx(global_config=None, run_ctx=None):
        yield
    torch._dynamo.reset()


def make_model() -> torch.nn.Module:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.1), torch.nn.Linear(8, 6))


def make_batch(num_seqs: int, max_len: int) -> dict[str, Any]:
    generator = torch.Generator().manual_seed(100 * num_seqs + max_len)
    lens = torch.randint(1, max_len + 1, (num_seqs,), generator=generator)
    return {
        "data": torch.randn(num_seqs, max_len, 4, generator=generator),
        "classes": torch.randint(0, 6, (num_seqs, max_len), generator=generator),
        "data:size1": lens,
        "seq_tag": [f"seq-{num_seqs}-{i}" for i in range(num_seqs)],
    }


def step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    lens = data["data:size1"]
    logits = model(data["data"])
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["classes"], reduction="none")
    mask = torch.arange(ce.shape[1], device=ce.device)[None] < lens[:, None]
    errors = (logits.argmax(-1) != data["classes"]) & mask
    run_ctx.mark_as_loss(name="ce", loss=torch.where(mask, ce, 0.0).sum(), inv_norm_factor=lens.sum())
    run_ctx.mark_as_loss(name="fer", loss=errors.sum().float(), scale=0.0, inv_norm_factor=lens.sum())


def step_with_graph_breaks(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **kwargs: object) -> None:
    with open("tags", "a") as f:
        f.write(f"{data['seq_tag'][0]} {data['data:size1'].max().item()}\n")
    step(model=model, data=data, run_ctx=run_ctx, **kwargs)


def run_step(func: Any, model: torch.nn.Module, data: dict[str, Any], *, train: bool = True) -> dict[str, float]:
    """:return: losses and a gradient. Any: function of the config"""
    init_train_step_run_ctx(device="cpu", epoch=1)
    run_ctx = get_run_ctx()
    run_ctx.init_step(0)
    model.train(train)
    model.zero_grad()
    torch.manual_seed(5)
    with torch.set_grad_enabled(train):
        UserFunction(func)(model=model, data=data, run_ctx=run_ctx)
    numbers = {name: loss.loss.item() for name, loss in run_ctx.losses.items()}
    if train:
        total: torch.Tensor = run_ctx.total_loss()
        total.backward()
        numbers["grad"] = next(model.parameters()).grad.norm().item()  # type: ignore[union-attr]
    return numbers


@pytest.mark.parametrize("func", [step, pytest.param(step_with_graph_breaks, marks=pytest.mark.slow)])
def test_equals_the_plain_step(func: Any) -> None:
    model = make_model()
    compiled = CompiledStep(func, CompileOptions(backend="aot_eager"))
    for num_seqs, max_len in ((5, 7), (4, 9), (2, 5), (1, 6)):
        data = make_batch(num_seqs, max_len)
        for train in (True, False):
            plain = run_step(func, model, data, train=train)
            assert run_step(compiled, model, data, train=train) == pytest.approx(plain, rel=1e-6)


def test_new_lengths_need_no_compilation() -> None:
    counter = CompileCounter()
    model = make_model()
    compiled = CompiledStep(step, CompileOptions(backend=counter))
    for num_seqs, max_len in ((5, 7), (4, 9), (2, 5), (3, 11), (7, 13)):
        run_step(compiled, model, make_batch(num_seqs, max_len))
    assert counter.frame_count == 1  # the losses and mark_as_loss are in the same graph


def test_signature_is_that_of_the_function() -> None:
    assert inspect.signature(CompiledStep(step, CompileOptions(backend="eager"))) == inspect.signature(step)
    assert compile_step_function(Config({}), step) is step


def failing_backend(_graph: object, _inputs: object) -> Any:
    raise ValueError("this device is not known")


def failing_backward(graph: Any, inputs: Any) -> Any:
    return aot_autograd(fw_compiler=lambda g, _: make_boxed_func(g.forward), bw_compiler=failing_backend)(graph, inputs)


@pytest.mark.parametrize("backend", [failing_backend, failing_backward])
def test_failure_is_a_sentence(backend: Any) -> None:
    compiled = CompiledStep(step, CompileOptions(backend=backend))
    text = 'option "torch_compile": train_step cannot be compiled: .*this device is not known'
    with pytest.raises(ModelError, match=text):
        updater_step(compiled, make_model())


def updater_step(compiled: CompiledStep, model: torch.nn.Module) -> None:
    """One step through the updater, which runs the backward pass."""
    updater = Updater(config={"optimizer": {"class": "sgd"}}, network=model, device="cpu")
    updater.create_optimizer()
    init_train_step_run_ctx(device="cpu", epoch=1)
    run_ctx = get_run_ctx()
    compiled(model=model, data=make_batch(5, 7), run_ctx=run_ctx)
    updater.step(run_ctx.total_loss())


@pytest.mark.parametrize("backend", [failing_backend, failing_backward])
def test_fall_back_with_one_warning(backend: Any, capsys: pytest.CaptureFixture[str]) -> None:
    model = make_model()
    compiled = CompiledStep(step, CompileOptions(backend=backend, suppress_errors=True))
    for num_seqs in (5, 3):
        data = make_batch(num_seqs, 7)
        assert run_step(compiled, model, data) == run_step(step, model, data)
    captured = capsys.readouterr()
    assert (captured.out + captured.err).count("train_step cannot be compiled") == 1


def test_fullgraph_refuses_graph_breaks() -> None:
    compiled = CompiledStep(step_with_graph_breaks, CompileOptions(backend="eager", fullgraph=True))
    with pytest.raises(ModelError, match='option "torch_compile": train_step cannot be compiled'):
        run_step(compiled, make_model(), make_batch(5, 7))


def test_errors_of_the_function_stay_as_they_are() -> None:
    def wrong_step(**_kwargs: object) -> None:
        raise RuntimeError("my own error")

    with pytest.raises(RuntimeError, match="my own error"):
        run_step(CompiledStep(wrong_step, CompileOptions(backend="eager")), make_model(), make_batch(5, 7))


@pytest.mark.parametrize("value", [{"backend": "inducter"}, {"mode": "fastest"}])
def test_unknown_names_of_torch(value: dict[str, Any]) -> None:
    with pytest.raises(OptionError, match='option "torch_compile" is invalid: .*aot_eager.*It says'):
        compile_step_function({"torch_compile": value}, step)


# ---- whole trainings


@pytest.mark.parametrize(
    ("opts", "rtol"),
    [
        ({}, 1e-5),
        pytest.param({"accum_grad_multiple_step": 3, "gradient_clip_norm": 0.5}, 1e-5, marks=pytest.mark.slow),
        # Where bfloat16 is rounded depends on the graph.
        pytest.param({"torch_amp_options": {"dtype": "bfloat16"}}, 1e-2, marks=pytest.mark.slow),
    ],
    ids=["plain", "accumulation", "amp"],
)
def test_training_equals_the_uncompiled_one(opts: dict[str, Any], rtol: float) -> None:
    plain = _train(_config(**opts, num_epochs=2))
    plain_params, plain_scores = _params(plain), _scores(2)
    names = list(torch.load("models/epoch.002.pt", weights_only=True)["model"])
    shutil.rmtree("models")
    os.remove("learning_rates")
    compiled = _train(_config(**opts, num_epochs=2, torch_compile={"backend": "aot_eager"}))
    for name, value in _params(compiled).items():
        torch.testing.assert_close(value, plain_params[name], rtol=rtol, atol=rtol / 10)
    assert _scores(2) == pytest.approx(plain_scores, rel=rtol)
    assert list(torch.load("models/epoch.002.pt", weights_only=True)["model"]) == names
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 2  # training and evaluation


def _mainline_train_step(*, model: torch.nn.Module, extern_data: Any, **_kwargs: object) -> None:
    data, classes = extern_data["data"], extern_data["classes"]
    logits = model(data.raw_tensor)
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), classes.raw_tensor.long(), reduction="none")
    ctx = rf.get_run_ctx()
    ctx.mark_as_loss(ce, "ce", dims=classes.dims, use_normalized_loss=True)
    ctx.mark_as_loss(logits.argmax(-1) != classes.raw_tensor, "fer", dims=classes.dims, as_error=True)


def test_mainline_dialect() -> None:
    opts: dict[str, Any] = {
        "extern_data": {"data": {"dim": 2}, "classes": {"dim": 3, "sparse": True}},
        "train_step": _mainline_train_step,
        "num_epochs": 2,
        "train": _dataset(9),
    }
    plain = _train(_config(**opts))
    plain_params, plain_scores = _params(plain), _scores(2)
    shutil.rmtree("models")
    os.remove("learning_rates")
    torch._dynamo.utils.counters.clear()
    compiled = _train(_config(**opts, torch_compile={"backend": "aot_eager"}))
    assert not torch._dynamo.utils.counters["graph_break"]  # sizes, masks and losses are in the graph
    for name, value in _params(compiled).items():
        torch.testing.assert_close(value, plain_params[name], rtol=1e-5, atol=1e-6)
    scores = {k: v for k, v in _scores(2).items() if not k.startswith(":meta:")}
    assert scores == pytest.approx({k: v for k, v in plain_scores.items() if not k.startswith(":meta:")}, rel=1e-5)


@pytest.mark.slow
def test_task_eval_is_compiled_too() -> None:
    _train(_config(num_epochs=1))
    torch._dynamo.utils.counters.clear()
    engine = Engine(config=_config(task="eval", load="models/epoch.001.pt", torch_compile={"backend": "aot_eager"}))
    engine.eval_task()
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 1


@pytest.mark.slow
@pytest.mark.skipif(not (shutil.which("g++") or shutil.which("clang++")), reason="needs a C++ compiler")
def test_inductor_equals_the_uncompiled_one() -> None:
    model = make_model()
    for func in (step, step_with_graph_breaks):
        compiled = CompiledStep(func, CompileOptions())
        model.eval()  # no dropout: its random numbers are others in compiled code
        for num_seqs, max_len in ((5, 7), (4, 9)):
            data = make_batch(num_seqs, max_len)
            model[1].p = 0.0  # type: ignore[index,union-attr]
            plain = run_step(func, model, data)
            assert run_step(compiled, model, data) == pytest.approx(plain, rel=1e-4)
