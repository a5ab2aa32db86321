"""Exponential moving average of the weights: the formula, resume, use in evaluation and forward."""

from __future__ import annotations

import os
import pathlib
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.errors import CheckpointError, NotSupportedError
from returnn.log import log
from returnn.options.ema import EmaOptions
from returnn.torch.ema import AveragedWeights, WeightAverage
from returnn.torch.engine import Engine
from tests.tools.tool_program import run_tool
from tests.torch.test_engine import _config, _params, _scores, _train
from tests.torch.test_updater import make_batches, make_loss, make_model, make_updater


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _weights(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.detach().clone() for name, value in model.state_dict().items()}


def _assert_equal(a: Any, b: Any) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


@pytest.mark.parametrize(("start_step", "every"), [(0, 1), (3, 1), (0, 2), (2, 3)])
def test_formula(start_step: int, every: int) -> None:
    model = make_model()
    updater = make_updater(model, 0.1, optimizer={"class": "sgd"}, accum_grad_multiple_step=2)
    average = WeightAverage(model, EmaOptions(decay=0.75, start_step=start_step, every_n_steps=every))
    updater.add_update_hook(average.after_update)
    expected: dict[str, torch.Tensor] = {}
    for step, batch in enumerate(make_batches(20)):
        updater.step(make_loss(model, batch), step)
        num_updates = (step + 1) // 2
        if step % 2 and num_updates > start_step and (num_updates - start_step) % every == 0:
            weights = _weights(model)
            expected = {n: 0.75 * expected.get(n, w) + 0.25 * w for n, w in weights.items()}
    assert average.has_begun
    torch.testing.assert_close(dict(average.averages), expected, rtol=1e-6, atol=1e-7)


def test_skipped_updates_do_not_count() -> None:
    model = make_model()
    updater = make_updater(model, 0.1, optimizer={"class": "sgd"})
    average = WeightAverage(model, EmaOptions(decay=0.5))
    updater.add_update_hook(average.after_update)
    for batch in make_batches(3):
        updater.step(make_loss(model, batch))
    before = {name: value.clone() for name, value in average.averages.items()}
    updater.step(make_loss(model, make_batches(1)[0]) * float("nan"))
    _assert_equal(average.averages, before)


def test_skipping_that_only_the_device_knows() -> None:
    """Fused optimizers on CUDA do not tell the host."""
    model, other = make_model(), make_model()
    on_host, on_device = (WeightAverage(m, EmaOptions(decay=0.5)) for m in (model, other))
    for step, skipped in enumerate((False, False, True, False)):
        if not skipped:
            with torch.no_grad():
                for m in (model, other):
                    for i, param in enumerate(m.parameters()):
                        param.add_(step + i)
        on_host.after_update(skipped)
        on_device.after_update(torch.tensor(float(skipped)))
    torch.testing.assert_close(dict(on_device.averages), dict(on_host.averages))


class _SomeError(Exception):
    pass


def test_weights_come_back_bit_by_bit_also_after_errors() -> None:
    model = make_model()
    average = WeightAverage(model, EmaOptions(decay=0.5))
    with average.in_place_of_weights():  # has not begun
        _assert_equal(_weights(model), _weights(make_model()))
    average.after_update(False)
    with torch.no_grad():
        for param in model.parameters():
            param.mul_(1.7)
    average.after_update(False)
    before = _weights(model)
    with pytest.raises(_SomeError), average.in_place_of_weights():
        _assert_equal(_weights(model), average.averages)
        raise _SomeError
    _assert_equal(_weights(model), before)


def test_which_tensors_are_averaged() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.frozen = torch.nn.Parameter(torch.zeros(2), requires_grad=False)
            self.coarse = torch.nn.Parameter(torch.zeros(2, dtype=torch.bfloat16))
            self.tied = self.coarse
            self.norm = torch.nn.BatchNorm1d(2)

    model = Model()
    average = WeightAverage(model, EmaOptions(decay=0.99))
    average.after_update(False)
    assert list(average.averages) == ["coarse", "tied", "norm.weight", "norm.bias"]
    with torch.no_grad():
        model.coarse.fill_(1.0)
    for _ in range(3):
        average.after_update(False)
    for name in ("coarse", "tied"):  # in bfloat16 the later steps would be lost
        torch.testing.assert_close(average.averages[name], torch.full((2,), 1 - 0.99**3))
    entries = average.as_entries(model.state_dict())
    assert list(entries["ema"]) == list(model.state_dict())
    average = WeightAverage(model, EmaOptions(buffers=True))
    average.after_update(False)
    assert list(average.averages)[-2:] == ["norm.running_mean", "norm.running_var"]


# ---- whole trainings

_EMA: dict[str, Any] = {"decay": 0.9, "eval": True, "start_step": 2}


def test_checkpoint_has_both_and_training_is_not_changed() -> None:
    plain = _params(_train(_config(num_epochs=2)))
    shutil.rmtree("models")
    os.remove("learning_rates")
    engine = _train(_config(num_epochs=2, ema={"decay": 0.9, "buffers": True}))
    _assert_equal(_params(engine), plain)
    checkpoint = torch.load("models/epoch.002.pt", weights_only=True)
    _assert_equal(checkpoint["model"], plain)
    assert list(checkpoint["ema"]) == list(plain)
    assert not torch.equal(checkpoint["ema"]["0.weight"], plain["0.weight"])
    assert checkpoint["ema_state"] == {"num_updates": engine._train_step, "names": list(plain)}


@pytest.mark.parametrize("opts", [{}, {"accum_grad_multiple_step": 3}])
def test_restart_equals_no_interruption(opts: dict[str, Any]) -> None:
    _train(_config(ema=_EMA, **opts))
    whole = torch.load("models/epoch.003.pt", weights_only=True)
    whole_scores = [_scores(epoch) for epoch in (1, 2, 3)]
    shutil.rmtree("models")
    os.remove("learning_rates")
    for num_epochs in (1, 3):
        _train(_config(ema=_EMA, num_epochs=num_epochs, **opts))
    again = torch.load("models/epoch.003.pt", weights_only=True)
    for key in ("model", "ema"):
        _assert_equal(again[key], whole[key])
    assert again["ema_state"] == whole["ema_state"]
    assert [_scores(epoch) for epoch in (1, 2, 3)] == whole_scores


def test_evaluation_uses_the_average_if_asked_for() -> None:
    _train(_config(ema=_EMA, num_epochs=2))
    averaged_scores = _scores(2)
    checkpoint = torch.load("models/epoch.002.pt", weights_only=True)
    torch.save(checkpoint["ema"], "averaged.pt")
    shutil.move("learning_rates", "learning_rates.train")
    for opts in ({"load": "averaged.pt"}, {"load": "models/epoch.002.pt", "ema": _EMA}):
        engine = Engine(config=_config(task="eval", **opts))
        engine.init_eval_task()
        scores = dict(engine._iter_eval_scores(["dev"]))["dev"]
        assert scores["ce"] == averaged_scores["dev_loss_ce"]
        engine.close_loaders()
    engine = Engine(config=_config(task="eval", load="models/epoch.002.pt", ema={"eval": False}))
    engine.init_eval_task()
    assert dict(engine._iter_eval_scores(["dev"]))["dev"]["ce"] != averaged_scores["dev_loss_ce"]
    engine.close_loaders()


def _forward_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: Any, **_kwargs: object) -> None:
    run_ctx.weights.update({name: value.clone() for name, value in model.state_dict().items()})


def _forward_init_hook(run_ctx: Any, **_kwargs: object) -> None:
    run_ctx.weights = {}


def _forward_finish_hook(run_ctx: Any, **_kwargs: object) -> None:
    torch.save(run_ctx.weights, "forward.pt")


def _forward_config(**opts: Any) -> Any:
    return _config(
        task="forward",
        forward=_config().typed_value("dev"),
        forward_step=_forward_step,
        forward_init_hook=_forward_init_hook,
        forward_finish_hook=_forward_finish_hook,
        **opts,
    )


@pytest.mark.parametrize("wanted", [False, True])
def test_forward_uses_the_average_if_asked_for(wanted: bool) -> None:
    _train(_config(ema=_EMA, num_epochs=1))
    checkpoint = torch.load("models/epoch.001.pt", weights_only=True)
    engine = Engine(config=_forward_config(load="models/epoch.001.pt", ema={**_EMA, "forward": wanted}))
    engine.init_forward()
    engine.forward()
    _assert_equal(torch.load("forward.pt", weights_only=True), checkpoint["ema" if wanted else "model"])


def test_checkpoint_without_average() -> None:
    _train(_config(num_epochs=1))
    text = r'models/epoch.001.* has no averaged weights \(entry "ema"\), .*"forward": True. .*set "forward": False'
    with pytest.raises(CheckpointError, match=text):
        Engine(config=_forward_config(load="models/epoch.001.pt", ema={"forward": True})).init_forward()


def test_training_goes_on_without_averages_in_the_checkpoint(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(num_epochs=1))
    _train(_config(num_epochs=2, ema=_EMA))
    assert "the checkpoint has no averages (ema), they start with its weights" in capsys.readouterr().out
    assert "ema" in torch.load("models/epoch.002.pt", weights_only=True)


def test_models_in_shards_are_refused() -> None:
    part_of_engine = AveragedWeights()
    part_of_engine.config = Config({"ema": _EMA})
    part_of_engine._model = make_model()
    next(part_of_engine._model.parameters()).full_tensor = None  # type: ignore[attr-defined]  # as a DTensor has it
    with pytest.raises(NotSupportedError, match='option "ema" is not supported for models in shards'):
        part_of_engine._start_averages()


def test_average_as_start_of_another_training() -> None:
    _train(_config(num_epochs=1, ema=_EMA))
    averages = torch.load("models/epoch.001.pt", weights_only=True)["ema"]
    preload = {"ema": {"filename": "models/epoch.001.pt", "checkpoint_key": "ema", "init_for_train": True}}
    engine = Engine(config=_config(model="other/epoch", learning_rate_file="other_lr", preload_from_files=preload))
    engine.init_train()
    _assert_equal(_params(engine), averages)
    engine.close_loaders()


def test_tools_ignore_the_averages(tmp_path: pathlib.Path) -> None:
    _train(_config(num_epochs=2, ema=_EMA))
    files = ["models/epoch.001.pt", "models/epoch.002.pt"]
    run_tool("torch_avg_checkpoints", "--checkpoints", *files, "--output_path", "avg.pt", cwd=tmp_path)
    models = [torch.load(file, weights_only=True)["model"] for file in files]
    for name, value in torch.load("avg.pt", weights_only=True)["model"].items():
        torch.testing.assert_close(value, (models[0][name] + models[1][name]) / 2)
    assert run_tool("torch_inspect_checkpoint", files[1], cwd=tmp_path).stdout
    count = run_tool("torch_count_params_via_checkpoint", files[1], cwd=tmp_path).stdout
    assert str(sum(value.numel() for value in models[1].values())) in count
