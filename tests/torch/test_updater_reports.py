"""Learning rates per step, the reported norm of the gradients, and what is told after each update: golden D and plain PyTorch."""

from __future__ import annotations

import json
import pathlib
from typing import Any

import numpy
import pytest
import torch

from returnn.engine.losses import LossAccumulator
from returnn.errors import ModelError, OptionError
from returnn.frontend.run_ctx import Loss
from returnn.torch.optim.gradients import _without_nonfinite
from returnn.torch.updater import Updater
from returnn.util.math import PiecewiseLinear, merge_random_seeds
from tests.torch.test_updater import make_batches, make_loss, make_model, make_updater, params_of, plain_loop

_GOLDEN_D = pathlib.Path(__file__).parent.parent / "golden" / "06-engine" / "traj" / "d_mainline_raw_torch.golden.json"


class ModelD(torch.nn.Module):
    """The model of golden config D."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = torch.nn.Linear(2, 3)
        self.dropout = torch.nn.Dropout(0.1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[B,T,2] -> [B,T,3]"""
        logits: torch.Tensor = self.linear(self.dropout(x))
        return logits


def _loss_d(model: torch.nn.Module, seq_idxs: list[int]) -> torch.Tensor:
    """:return: what golden config D optimises on sequences of its training data"""
    seqs = []
    for i in seq_idxs:
        t = numpy.arange(3 + (i * 5) % 7, dtype="float64")
        values = numpy.stack([numpy.sin(0.7 * t + i), numpy.cos(0.3 * t * (i + 1))], axis=1).astype("float32")
        seqs.append((torch.from_numpy(values), torch.from_numpy((t.astype("int64") + i) % 3)))
    data, classes = (torch.nn.utils.rnn.pad_sequence([s[k] for s in seqs], batch_first=True) for k in (0, 1))
    mask = torch.nn.utils.rnn.pad_sequence([torch.ones(len(s[1]), dtype=torch.bool) for s in seqs], batch_first=True)
    ce = torch.nn.functional.cross_entropy(model(data).transpose(1, 2), classes, reduction="none")
    return ce[mask].mean() + 0.1 * ce.mean()


def _dynamic_lr_d(*, global_train_step: int, learning_rate: float, epoch_continuous: float, **_kwargs: object) -> float:
    return learning_rate * (1.0 - 0.02 * global_train_step)


def test_golden_d() -> None:
    golden = json.loads(_GOLDEN_D.read_text())
    model = ModelD()
    model.load_state_dict({name: torch.tensor(value) for name, value in golden["init_params"].items()})
    updater = Updater(
        config={
            "optimizer": {"class": "adamw", "epsilon": 1e-8, "weight_decay": 0.1},
            "accum_grad_multiple_step": 2,
            "gradient_clip_global_norm": 0.5,
            "log_grad_norm": True,
            "dynamic_learning_rate": _dynamic_lr_d,
        },
        network=model,
        device="cpu",
        initial_learning_rate=0.05,
        dialect="mainline",
    )
    updater.create_optimizer()
    step = 0
    for epoch, num_done, norm in ((1, 0, 0.6028721928596497), (2, 5, 0.560692697763443), (3, 10, 0.3945900946855545)):
        torch.manual_seed(merge_random_seeds([epoch, num_done, 11]))
        for _ in range(2):  # an iterator over a DataLoader draws two numbers
            torch.empty((), dtype=torch.int64).random_()
        updater.set_learning_rate(0.05)
        losses = LossAccumulator()
        rows = [row for row in golden["steps"] if row["mode"] == "train" and row["epoch"] == epoch]
        for step_idx, row in enumerate(rows):
            updater.set_train_position(epoch=epoch, epoch_continuous=epoch - 1 + step_idx / 5, global_train_step=step)
            assert updater.effective_learning_rate == 0.05 * (1.0 - 0.02 * step)
            loss = _loss_d(model, [int(tag.removeprefix("seq-")) for tag in row["seq_tag"]])
            assert loss.item() == pytest.approx(row["total_loss"], rel=1e-6)
            updater.step(loss, step_idx)
            reported = updater.take_losses()
            text = "".join(f", {name} {x.loss.item():.3f}" for name, x in reported.items())
            assert row["log"].partition("fer ")[2][5:] == text
            losses.add(reported, step)
            step += 1
        updater.finish_epoch()
        assert losses.means() == {"grad_norm:p2": pytest.approx(norm, rel=1e-6)}
        for name, value in golden["params_after_epoch"][str(epoch)].items():
            torch.testing.assert_close(model.state_dict()[name], torch.tensor(value), rtol=1e-6, atol=1e-7)


def test_dynamic_learning_rate_times_multiplier_of_the_group() -> None:
    model = make_model()

    def groups(*, model: torch.nn.Sequential, **_kwargs: object) -> list[dict[str, Any]]:
        return [{"params": model[0].parameters()}, {"params": model[2].parameters(), "learning_rate_multiplier": 0.5}]

    calls: list[dict[str, Any]] = []

    def func(**kwargs: Any) -> float:
        calls.append(kwargs)
        return 10 * float(kwargs["learning_rate"])

    updater = make_updater(
        model, 0.01, optimizer={"class": "sgd", "param_groups_custom": groups}, dynamic_learning_rate=func
    )
    optimizer = updater.get_optimizer()
    assert optimizer is not None
    updater.set_learning_rate(0.02)
    assert [g["lr"] for g in optimizer.param_groups] == [0.02, 0.01]
    updater.set_train_position(epoch=3, epoch_continuous=2.0, global_train_step=7)
    assert [g["lr"] for g in optimizer.param_groups] == [0.2, 0.1]
    assert (updater.learning_rate, updater.effective_learning_rate) == (0.02, 0.2)
    (call,) = calls
    extra = [name for name in call if name.startswith("__fwd_compat_random_arg_")]
    assert len(extra) == 1 and call.pop(extra[0]) is None
    assert call == {"learning_rate": 0.02, "epoch": 3, "epoch_continuous": 2.0, "global_train_step": 7}


def test_dynamic_learning_rate_of_the_helpers_for_configs() -> None:
    schedule = PiecewiseLinear({0: 0.0, 10: 1.0}, kw_name="global_train_step", ignore_other_kwargs=True)
    updater = make_updater(make_model(), dynamic_learning_rate=schedule)
    updater.set_train_position(epoch=1, epoch_continuous=0.0, global_train_step=5)
    assert updater.effective_learning_rate == 0.5


@pytest.mark.parametrize("value", [None, -0.1, float("nan"), float("inf"), "high"])
def test_dynamic_learning_rate_that_is_no_number(value: object) -> None:
    updater = make_updater(make_model(), dynamic_learning_rate=lambda **_kwargs: value)
    with pytest.raises(OptionError, match=r'option "dynamic_learning_rate" .*\'global_train_step\': 4.*, got '):
        updater.set_train_position(epoch=1, epoch_continuous=0.5, global_train_step=4)


@pytest.mark.parametrize("name", ["dynamic_learning_rate", "accum_grad_multiple_step"])
def test_engines_that_give_no_position_are_told(name: str) -> None:
    model = make_model()
    config: dict[str, Any] = {name: lambda **_kwargs: 1}
    updater = make_updater(model, **config)
    with pytest.raises(ModelError, match=r"set_train_position\(epoch="):
        updater.step(make_loss(model, make_batches(1)[0]))


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"gradient_clip_norm": 0.5},
        {"gradient_clip": 0.1},
        {"gradient_clip": 0.1, "gradient_clip_norm": 0.5},
        {"torch_amp": {"dtype": "bfloat16", "grad_scaler": {}}},
        {"torch_amp": "float16", "gradient_clip_norm": 0.5},
    ],
    ids=lambda config: "+".join(config) or "plain",
)
@pytest.mark.parametrize("order", [True, 1, 3.5])
def test_reported_norm_is_that_before_clipping(config: dict[str, Any], order: float) -> None:
    model, reference = make_model(), make_model()
    batch = make_batches(1)[0]
    updater = make_updater(model, log_grad_norm=order, optimizer={"class": "sgd"}, **config)
    if "torch_amp" in config:
        updater.create_grad_scaler()
    make_loss(reference, batch).backward()
    p = 2.0 if order is True else float(order)
    norm = torch.stack([param.grad.abs().pow(p).sum() for param in reference.parameters() if param.grad is not None])
    updater.step(make_loss(model, batch))
    reported = updater.take_losses()
    assert list(reported) == [f"grad_norm:p{p:g}"]
    (loss,) = reported.values()
    assert loss.loss.item() == pytest.approx(norm.sum().item() ** (1 / p), rel=1e-5)
    assert (loss.inv_norm_factor, loss.scale, loss.as_error) == (1.0, 0.0, True)
    assert not updater.take_losses()  # only once


def test_logging_the_norm_changes_no_number() -> None:
    ours, plain = make_model(), make_model()
    updater = make_updater(ours, log_grad_norm=True, optimizer={"class": "sgd"})
    num_reported = 0
    for batch in make_batches(5):
        updater.step(make_loss(ours, batch))
        num_reported += len(updater.take_losses())
    plain_loop(plain, torch.optim.SGD(plain.parameters(), lr=0.01), make_batches(5))
    assert num_reported == 5
    assert all(torch.equal(a, b) for a, b in zip(params_of(ours).values(), params_of(plain).values(), strict=True))


def test_norm_once_per_accumulation_group() -> None:
    model = make_model()
    updater = make_updater(model, log_grad_norm=True, accum_grad_multiple_step=3)
    counts = []
    for step_idx, batch in enumerate(make_batches(7)):
        updater.step(make_loss(model, batch), step_idx)
        counts.append(len(updater.take_losses()))
    assert counts == [0, 0, 1, 0, 0, 1, 0]


@pytest.mark.parametrize("config", [{}, {"gradient_clip_norm": 1.0}, {"torch_amp": "float16"}])
def test_norm_of_a_skipped_update_is_not_reported(config: dict[str, Any]) -> None:
    model = make_model()
    updater = make_updater(model, log_grad_norm=True, **config)
    if "torch_amp" in config:
        updater.create_grad_scaler()
    updater.step(make_loss(model, make_batches(1)[0]) * float("nan"))
    assert not updater.take_losses()


def test_norm_of_an_update_that_only_the_device_knows_to_be_skipped() -> None:
    losses = LossAccumulator()
    for step, value in enumerate((3.0, float("inf"), float("nan"), 5.0)):
        loss = Loss(*_without_nonfinite(torch.tensor(value), "grad_norm:p2"), as_error=True)
        losses.add({"grad_norm:p2": loss}, step)
    assert losses.means() == {"grad_norm:p2": 4.0}
    assert not losses.nonfinite_steps


def test_hooks_learn_of_updates_and_skipped_ones() -> None:
    model = make_model()
    updater = make_updater(model, accum_grad_multiple_step=2, accum_grad_leftover="flush")
    heard: list[object] = []
    updater.add_update_hook(heard.append)
    for step_idx, batch in enumerate(make_batches(5)):
        updater.step(make_loss(model, batch) * (float("inf") if step_idx == 3 else 1.0), step_idx)
    assert heard == [False, True]
    updater.finish_epoch()
    assert heard == [False, True, False]


def test_hooks_with_a_scaler() -> None:
    model = make_model()
    updater = make_updater(model, torch_amp="float16")
    updater.create_grad_scaler()
    heard: list[object] = []
    updater.add_update_hook(heard.append)
    for factor in (1.0, float("inf"), 1.0):
        updater.step(make_loss(model, make_batches(1)[0]) * factor)
    assert heard == [False, True, False]
