"""Tests of optimizer files: restart equals no interruption; forms of the peers; errors."""

from __future__ import annotations

import pathlib
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch

from returnn._state import process_state_ctx
from returnn.errors import CheckpointError
from returnn.torch.checkpoint import load_file
from returnn.torch.updater import Updater

Params = dict[str, torch.Tensor]
ADAM: dict[str, Any] = {"class": "adam"}


def make_model() -> torch.nn.Sequential:
    torch.manual_seed(3)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def make_updater(model: torch.nn.Module, **config: Any) -> Updater:
    config.setdefault("optimizer", ADAM)
    updater = Updater(config=config, network=model, device="cpu", initial_learning_rate=0.01)
    updater.create_optimizer()
    updater.create_grad_scaler()
    return updater


def train_epoch(updater: Updater, epoch: int, num_steps: int = 5) -> None:
    generator = torch.Generator().manual_seed(epoch)
    for step_idx in range(num_steps):
        updater.step((updater.network(torch.randn(6, 4, generator=generator)) ** 2).sum(), step_idx)
    updater.finish_epoch()


def copy_model(model: torch.nn.Module) -> torch.nn.Module:
    other = make_model()
    other.load_state_dict(model.state_dict())
    return other


def assert_same(a: torch.nn.Module, b: torch.nn.Module) -> None:
    for (name, x), y in zip(a.named_parameters(), b.parameters(), strict=True):
        assert torch.equal(x, y), name


@pytest.mark.parametrize(
    "config",
    [
        {},
        {"accum_grad_multiple_step": 3},
        {"accum_grad_multiple_step": 7},  # no update at all in the first epoch
        {"accum_grad_multiple_step": 3, "accum_grad_leftover": "flush"},
        {"accum_grad_multiple_step": 3, "accum_grad_leftover": "drop"},
        {"optimizer": {"class": "sgd", "momentum": 0.9}, "gradient_clip_norm": 0.5, "accum_grad_multiple_step": 2},
        {"torch_amp": "float16", "accum_grad_multiple_step": 2},
    ],
)
def test_restart_equals_no_interruption(tmp_path: pathlib.Path, config: dict[str, Any]) -> None:
    whole = make_updater(make_model(), **config)
    for epoch in (1, 2, 3):
        train_epoch(whole, epoch)
    first = make_updater(make_model(), **config)
    train_epoch(first, 1)
    for epoch in (2, 3):
        first.save_optimizer(str(tmp_path / "o.pt"))
        second = make_updater(copy_model(first.network), **config)
        second.load_optimizer(str(tmp_path / "o.pt"))
        train_epoch(second, epoch)
        first = second
    assert_same(whole.network, first.network)
    assert whole.num_accumulated_steps == first.num_accumulated_steps


def test_our_file_is_a_bare_state_dict_for_the_peers(tmp_path: pathlib.Path) -> None:
    updater = make_updater(make_model())
    train_epoch(updater, 1)
    path = tmp_path / "new" / "o.pt"
    updater.save_optimizer(str(path))
    plain = torch.optim.Adam(copy_model(updater.network).parameters())
    plain.load_state_dict(torch.load(path, weights_only=True))
    assert updater.optimizer is not None
    assert str(plain.state_dict()) == str(updater.optimizer.state_dict())
    assert load_file(path)["returnn"]["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]


def test_only_the_first_rank_writes(tmp_path: pathlib.Path) -> None:
    """Engines of users save their optimizers themselves, on all ranks."""
    updater = make_updater(make_model())
    with process_state_ctx(rank=1, world_size=2):
        updater.save_optimizer(str(tmp_path / "o.pt"))
    assert not (tmp_path / "o.pt").exists()
    with process_state_ctx(rank=0, world_size=2):
        updater.save_optimizer(str(tmp_path / "o.pt"))
    assert (tmp_path / "o.pt").exists()


def reference(tmp_path: pathlib.Path) -> tuple[Updater, dict[str, Any]]:
    updater = make_updater(make_model())
    train_epoch(updater, 1)
    assert updater.optimizer is not None
    return updater, updater.optimizer.state_dict()


def test_load_bare_form_of_mini(tmp_path: pathlib.Path) -> None:
    updater, state = reference(tmp_path)
    # numpy learning rates come from learning_rates = list(numpy.linspace(...))
    state["param_groups"][0]["lr"] = numpy.float64(0.01)
    torch.save(state, tmp_path / "o.pt")
    other = make_updater(copy_model(updater.network))
    other.load_optimizer(str(tmp_path / "o.pt"))
    train_epoch(updater, 2)
    train_epoch(other, 2)
    assert_same(updater.network, other.network)


def test_load_wrapped_form_in_other_order(tmp_path: pathlib.Path) -> None:
    """As RETURNN writes it: with names; here in another order, with one parameter that the model does not have any more."""
    updater, state = reference(tmp_path)
    order = [2, 0, 3, 1]
    names = ["0.weight", "0.bias", "2.weight", "2.bias"]
    wrapped = {
        "optimizer": {
            "state": {**{new: state["state"][old] for new, old in enumerate(order)}, 4: state["state"][0]},
            "param_groups": [{**state["param_groups"][0], "params": [0, 1, 2, 3, 4]}],
        },
        "optimizer_class_name": "Adam",
        "optimizer_opts": {"class": "adam"},
        "param_names": [names[old] for old in order] + ["gone.weight"],
        "epoch": 1,
        "step": 5,
        "effective_learning_rate": 0.01,
        "returnn_version": "1.0",
    }
    torch.save(wrapped, tmp_path / "o.pt")
    other = make_updater(copy_model(updater.network))
    other.load_optimizer(str(tmp_path / "o.pt"))
    train_epoch(updater, 2)
    train_epoch(other, 2)
    assert_same(updater.network, other.network)


def save_changed(tmp_path: pathlib.Path, change: Callable[[dict[str, Any]], object]) -> str:
    updater, _ = reference(tmp_path)
    state = updater.optimizer_state_dict()
    change(state)
    path = tmp_path / "changed.opt.pt"
    torch.save(state, path)
    return str(path)


def test_missing_parameters(tmp_path: pathlib.Path) -> None:
    path = save_changed(tmp_path, lambda s: s["returnn"].update(param_names=["a", "b", "c", "d"]))
    with pytest.raises(ValueError, match=r"changed.opt.pt has no state for 4 of 4 parameters: 0.weight, 0.bias"):
        make_updater(make_model()).load_optimizer(path)
    model = make_model().requires_grad_(False)
    make_updater(model).load_optimizer(path)  # those that are not trained need no state


def test_other_number_of_groups(tmp_path: pathlib.Path) -> None:
    path = save_changed(tmp_path, lambda s: s["param_groups"].append({**s["param_groups"][0], "params": []}))
    with pytest.raises(CheckpointError, match="has 2 parameter groups, but the optimizer of this config has 1"):
        make_updater(make_model()).load_optimizer(path)


def test_other_optimizer(tmp_path: pathlib.Path) -> None:
    path = save_changed(tmp_path, lambda s: None)
    with pytest.raises(CheckpointError, match="is the state of Adam, but the config asks for SGD"):
        make_updater(make_model(), optimizer={"class": "sgd"}).load_optimizer(path)
    bare = save_changed(tmp_path, lambda s: s.pop("returnn"))
    with pytest.raises(
        CheckpointError, match="is the state of an optimizer with .*betas.*, but the config asks for SGD"
    ):
        make_updater(make_model(), optimizer={"class": "sgd"}).load_optimizer(bare)


def test_other_shapes_and_counts(tmp_path: pathlib.Path) -> None:
    bare = save_changed(tmp_path, lambda s: s.pop("returnn"))
    wide = torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.Linear(6, 3))
    with pytest.raises(
        CheckpointError, match=r'"exp_avg" of parameter 0.weight has shape \[5, 4\], but the parameter has \[6, 4\]'
    ):
        make_updater(wide).load_optimizer(bare)
    with pytest.raises(CheckpointError, match="has 4 parameters without names, but the model has 2"):
        make_updater(torch.nn.Linear(4, 5)).load_optimizer(bare)


def test_not_an_optimizer_file(tmp_path: pathlib.Path) -> None:
    torch.save({"model": {}, "epoch": 1}, tmp_path / "m.pt")
    with pytest.raises(CheckpointError, match=r"m.pt is not an optimizer state: .* got a dict with model, epoch"):
        make_updater(make_model()).load_optimizer(str(tmp_path / "m.pt"))
    with pytest.raises(CheckpointError, match="not found"):
        make_updater(make_model()).load_optimizer(str(tmp_path / "none.pt"))


def test_options_of_the_file_win_and_are_named(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = save_changed(tmp_path, lambda s: None)
    updater = make_updater(
        make_model(), optimizer={"class": "adam", "weight_decay": 0.5, "learning_rate_multiplier": 0.5}
    )
    updater.load_optimizer(path)
    assert "weight_decay = 0 of the file is used, not 0.5 of the config" in capsys.readouterr().out
    assert updater.optimizer is not None
    assert updater.optimizer.param_groups[0]["weight_decay"] == 0
    updater.set_learning_rate(1.0)
    assert updater.optimizer.param_groups[0]["lr"] == 0.5  # how the rate is applied belongs to the config


def test_leftover_of_another_mode_is_dropped(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    updater = make_updater(make_model(), accum_grad_multiple_step=3)
    train_epoch(updater, 1)
    updater.save_optimizer(str(tmp_path / "o.pt"))
    other = make_updater(make_model(), accum_grad_multiple_step=3, accum_grad_leftover="drop")
    other.load_optimizer(str(tmp_path / "o.pt"))
    assert other.num_accumulated_steps == 0
    assert "gradients of 2 steps" in capsys.readouterr().out


def test_log_lines(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    updater = make_updater(make_model())
    updater.save_optimizer(str(tmp_path / "o.pt"))
    updater.load_optimizer(str(tmp_path / "o.pt"))
    out = capsys.readouterr().out
    assert f"Save optimizer under {tmp_path}/o.pt\nLoad optimizer {tmp_path}/o.pt\n" in out


def test_unsafe_file_needs_the_option(tmp_path: pathlib.Path) -> None:
    path = save_changed(tmp_path, lambda s: s.update(where=pathlib.PurePosixPath("x")))
    with pytest.raises(CheckpointError, match="unsafe_load = True"):
        make_updater(make_model()).load_optimizer(path)
    make_updater(make_model(), load_unsafe_checkpoints=True).load_optimizer(path)
