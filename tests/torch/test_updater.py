"""Tests of the updater: equal to plain PyTorch loops; accumulation; clipping; inf and nan never reach the weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from returnn.config import Config
from returnn.errors import ConfigError, ModelError, NonFiniteGradientError, NotSupportedError, OptionError
from returnn.torch.updater import (
    EpochUpdates,
    Updater,
    get_optimizer_class,
    gradient_noise_,
    wrap_user_blacklist_wd_modules,
)

Params = dict[str, torch.Tensor]


def make_model(seed: int = 1) -> torch.nn.Sequential:
    torch.manual_seed(seed)
    return torch.nn.Sequential(torch.nn.Linear(4, 5), torch.nn.Tanh(), torch.nn.Linear(5, 3))


def make_batches(num: int, seed: int = 2) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(6, 4, generator=generator) for _ in range(num)]


def make_loss(model: torch.nn.Module, batch: torch.Tensor) -> torch.Tensor:
    return (model(batch) ** 2).sum()


def make_updater(model: torch.nn.Module, lr: float = 0.01, **config: Any) -> Updater:
    config.setdefault("optimizer", {"class": "adam"})
    updater = Updater(config=config, network=model, device="cpu", initial_learning_rate=lr)
    updater.create_optimizer()
    return updater


def params_of(model: torch.nn.Module) -> Params:
    return {name: p.detach().clone() for name, p in model.named_parameters()}


def assert_equal(a: Params, b: Params) -> None:
    assert list(a) == list(b)
    for name in a:
        assert torch.equal(a[name], b[name]), name


def run(updater: Updater, batches: list[torch.Tensor], *, epochs: int = 1) -> list[EpochUpdates]:
    reports = []
    per_epoch = len(batches) // epochs
    for epoch in range(epochs):
        for step_idx, batch in enumerate(batches[epoch * per_epoch : (epoch + 1) * per_epoch]):
            updater.step(make_loss(updater.network, batch), step_idx)
        reports.append(updater.finish_epoch())
    return reports


def plain_loop(
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    batches: list[torch.Tensor],
    *,
    accum: int = 1,
    change: Callable[[list[torch.nn.Parameter]], object] = lambda params: None,
) -> None:
    for step_idx, batch in enumerate(batches):
        make_loss(model, batch).backward()
        if (step_idx + 1) % accum == 0:
            change(list(model.parameters()))
            optimizer.step()
            optimizer.zero_grad()


@pytest.mark.parametrize(
    ("opts", "make"),
    [
        ({"class": "adam"}, lambda p: torch.optim.Adam(p, lr=0.01)),
        (
            {"class": "AdamW", "epsilon": 1e-5, "weight_decay": 0.1},
            lambda p: torch.optim.AdamW(p, lr=0.01, eps=1e-5, weight_decay=0.1),
        ),
        (
            {"class": "sgd", "momentum": 0.9, "weight_decay": 1e-3},
            lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9, weight_decay=1e-3),
        ),
        (
            {"class": "radam", "weight_decay": 1e-2, "decoupled_weight_decay": True},
            lambda p: torch.optim.RAdam(p, lr=0.01, weight_decay=1e-2, decoupled_weight_decay=True),
        ),
    ],
)
def test_equals_plain_loop(opts: dict[str, Any], make: Callable[..., torch.optim.Optimizer]) -> None:
    ours, plain = make_model(), make_model()
    run(make_updater(ours, optimizer=opts), make_batches(7))
    plain_loop(plain, make(plain.parameters()), make_batches(7))
    assert_equal(params_of(ours), params_of(plain))


def test_clipping_equals_plain_loop() -> None:
    ours, plain = make_model(), make_model()

    def change(params: list[torch.nn.Parameter]) -> None:
        torch.nn.utils.clip_grad_value_(params, 0.7)
        torch.nn.utils.clip_grad_norm_(params, 0.5)

    run(make_updater(ours, gradient_clip=0.7, gradient_clip_norm=0.5), make_batches(5))
    plain_loop(plain, torch.optim.Adam(plain.parameters(), lr=0.01), make_batches(5), change=change)
    assert_equal(params_of(ours), params_of(plain))


def test_clip_norm_alias() -> None:
    model = make_model()
    assert make_updater(model, gradient_clip_global_norm=2)._grad_clip_norm == 2.0
    with pytest.raises(ConfigError, match="gradient_clip_norm.*gradient_clip_global_norm"):
        make_updater(model, gradient_clip_norm=1.0, gradient_clip_global_norm=2.0)


def test_gradient_noise_comes_before_clipping() -> None:
    ours, plain = make_model(), make_model()

    def change(params: list[torch.nn.Parameter]) -> None:
        gradient_noise_(params, 0.3)
        torch.nn.utils.clip_grad_norm_(params, 0.5)

    torch.manual_seed(5)
    run(make_updater(ours, gradient_noise=0.3, gradient_clip_norm=0.5), make_batches(3))
    torch.manual_seed(5)
    plain_loop(plain, torch.optim.Adam(plain.parameters(), lr=0.01), make_batches(3), change=change)
    assert_equal(params_of(ours), params_of(plain))


def test_gradient_noise_is_cut_at_two_standard_deviations() -> None:
    param = torch.nn.Parameter(torch.zeros(20_000))
    without = torch.nn.Parameter(torch.zeros(3))
    param.grad = torch.zeros(20_000)
    torch.manual_seed(1)
    gradient_noise_([param, without], 0.5)
    assert without.grad is None
    assert param.grad.abs().max() <= 1.0
    assert 0.4 < float(param.grad.std()) < 0.47  # 0.88 * 0.5: the tails are missing


# --- accumulation


def test_accumulation_carries_the_leftover_into_the_next_epoch() -> None:
    """9 steps, groups of 4, as Mini-RETURNN: step 9 of epoch 1 is added to the first group of epoch 2."""
    batches = make_batches(18)
    ours, plain = make_model(), make_model()
    reports = run(make_updater(ours, accum_grad_multiple_step=4), batches, epochs=2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for group in (batches[:4], batches[4:8], batches[8:13], batches[13:17]):
        plain_loop(plain, optimizer, group, accum=len(group))
    assert_equal(params_of(ours), params_of(plain))
    assert reports == [EpochUpdates(2, 0, 1, "carry")] * 2


@pytest.mark.parametrize("mode", ["drop", "flush"])
def test_accumulation_leftover_modes(mode: str) -> None:
    batches = make_batches(10)
    ours, plain = make_model(), make_model()
    reports = run(make_updater(ours, accum_grad_multiple_step=3, accum_grad_leftover=mode), batches, epochs=2)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    groups = [batches[:3], batches[5:8]] if mode == "drop" else [batches[:3], batches[3:5], batches[5:8], batches[8:]]
    for group in groups:
        plain_loop(plain, optimizer, group, accum=len(group))
    assert_equal(params_of(ours), params_of(plain))
    assert [r.num_leftover_steps for r in reports] == [2, 2]
    assert all(p.grad is None for p in ours.parameters())


def test_mainline_dialect_drops_the_leftover() -> None:
    updater = Updater(config={}, network=make_model(), device="cpu", dialect="mainline")
    assert updater._accum_grad_leftover == "drop"


def test_leftover_is_logged_once(capsys: pytest.CaptureFixture[str]) -> None:
    run(make_updater(make_model(), accum_grad_multiple_step=3), make_batches(8), epochs=2)
    out = capsys.readouterr().out
    assert out.count("Gradient accumulation: the last 1 steps") == 1
    assert 'accum_grad_leftover = "carry"' in out


def test_step_without_index_counts_itself() -> None:
    ours, plain = make_model(), make_model()
    updater = make_updater(ours, accum_grad_multiple_step=2)
    for batch in make_batches(4):
        updater.step(make_loss(ours, batch))
    plain_loop(plain, torch.optim.Adam(plain.parameters(), lr=0.01), make_batches(4), accum=2)
    assert_equal(params_of(ours), params_of(plain))


def test_accumulation_by_function() -> None:
    def group_size(*, epoch: int, global_train_step: int, epoch_continuous: float | None, **_other: Any) -> int:
        return 1 if global_train_step < 2 else 3

    batches = make_batches(8)
    ours, plain = make_model(), make_model()
    updater = make_updater(ours, accum_grad_multiple_step=group_size)
    assert updater.needs_train_position
    for step, batch in enumerate(batches):
        updater.set_train_position(epoch=1, epoch_continuous=None, global_train_step=step)
        updater.step(make_loss(ours, batch), step)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for group in (batches[:1], batches[1:2], batches[2:5], batches[5:8]):
        plain_loop(plain, optimizer, group, accum=len(group))
    assert_equal(params_of(ours), params_of(plain))


@settings(max_examples=25, deadline=None)
@given(accum=st.integers(1, 5), lens=st.lists(st.integers(1, 7), min_size=1, max_size=3))
def test_carried_gradients_are_never_lost(accum: int, lens: list[int]) -> None:
    """With plain SGD and a linear loss, the weights move by the sum of all applied steps."""
    param = torch.nn.Parameter(torch.zeros(()))
    network = torch.nn.Module()
    network.w = param
    updater = make_updater(network, lr=1.0, optimizer={"class": "sgd"}, accum_grad_multiple_step=accum)
    total = 0
    for num_steps in lens:
        for step_idx in range(num_steps):
            total += 1
            updater.step(network.w * 1.0, step_idx)
        updater.finish_epoch()
    assert param.item() == -(total - updater.num_accumulated_steps)
    assert updater.num_accumulated_steps == (0 if param.grad is None else float(param.grad))


# --- inf and nan


def bad_loss(model: torch.nn.Module, value: float) -> torch.Tensor:
    """Finite loss, but a gradient that is not."""
    loss = make_loss(model, make_batches(1)[0])
    loss.register_hook(lambda grad: grad * value)
    return loss


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("config", [{}, {"gradient_clip_norm": 1.0}, {"accum_grad_multiple_step": 2}])
def test_nonfinite_gradients_leave_weights_and_optimizer_state(value: float, config: dict[str, Any]) -> None:
    model = make_model()
    updater = make_updater(model, **config)
    run(updater, make_batches(2))
    before, state = params_of(model), copy.deepcopy(updater.get_optimizer().state_dict())  # type: ignore[union-attr]
    updater.step(bad_loss(model, value), 0)
    updater.step(make_loss(model, make_batches(1)[0]), 1) if config.get("accum_grad_multiple_step") else None
    assert_equal(params_of(model), before)
    assert str(updater.get_optimizer().state_dict()) == str(state)  # type: ignore[union-attr]
    assert all(p.grad is None for p in model.parameters())
    assert updater.num_skipped_updates == 1
    updater.step(make_loss(model, make_batches(1)[0]), 1)
    assert not torch.equal(params_of(model)["0.weight"], before["0.weight"])
    assert updater.finish_epoch().num_skipped == 1
    assert updater.num_skipped_updates == 0


@pytest.mark.parametrize(
    ("config", "num_until_error"),
    [
        ({}, 3),
        ({"gradient_clip_norm": 1.0}, 3),
        ({"gradient_clip_norm_invalid_gradient_threshold": 1}, 1),
        ({"num_allowed_consec_invalid_gradient_steps": 1}, 2),
    ],
)
def test_too_many_nonfinite_gradients(config: dict[str, Any], num_until_error: int) -> None:
    model = make_model()
    updater = make_updater(model, **config)
    before = params_of(model)
    for _ in range(num_until_error - 1):
        updater.step(bad_loss(model, float("nan")), 0)
    with pytest.raises(RuntimeError, match=f"Got {num_until_error} invalid gradients in succession, abort training"):
        updater.step(bad_loss(model, float("nan")), 0)
    assert_equal(params_of(model), before)


def test_valid_update_resets_the_counter() -> None:
    model = make_model()
    updater = make_updater(model)
    for _ in range(4):
        updater.step(bad_loss(model, float("nan")), 0)
        updater.step(bad_loss(model, float("nan")), 1)
        updater.step(make_loss(model, make_batches(1)[0]), 2)
    assert updater.num_skipped_updates == 8


def test_counter_over_epochs() -> None:
    """The first option counts on in the next epoch, the other starts anew."""
    for config, fails in (({}, True), ({"num_allowed_consec_invalid_gradient_steps": 2}, False)):
        model = make_model()
        updater = make_updater(model, **config)
        updater.step(bad_loss(model, float("nan")), 0)
        updater.step(bad_loss(model, float("nan")), 1)
        updater.finish_epoch()
        if fails:
            with pytest.raises(NonFiniteGradientError):
                updater.step(bad_loss(model, float("nan")), 0)
        else:
            updater.step(bad_loss(model, float("nan")), 0)


def test_contradicting_limits() -> None:
    with pytest.raises(ConfigError, match="contradict"):
        make_updater(
            make_model(), gradient_clip_norm_invalid_gradient_threshold=3, num_allowed_consec_invalid_gradient_steps=5
        )


def test_skip_step_applies_the_rest_of_the_group() -> None:
    batches = make_batches(4)
    ours, plain = make_model(), make_model()
    updater = make_updater(ours, accum_grad_multiple_step=2)
    updater.step(make_loss(ours, batches[0]), 0)
    updater.skip_step(1)
    updater.skip_step(2)
    updater.skip_step(3)
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    plain_loop(plain, optimizer, batches[:1])
    assert_equal(params_of(ours), params_of(plain))
    assert updater.num_skipped_updates == 3
    with pytest.raises(NonFiniteGradientError):
        updater.skip_step(4)


@pytest.mark.parametrize("config", [{}, {"gradient_clip_norm": 1.0}, {"gradient_noise": 0.1}])
def test_inf_is_found_before_value_clipping_hides_it(config: dict[str, Any]) -> None:
    model = make_model()
    before = params_of(model)
    updater = make_updater(model, gradient_clip=0.1, **config)
    loss = make_loss(model, make_batches(1)[0])
    dict(model.named_parameters())["2.bias"].register_hook(lambda grad: torch.full_like(grad, float("inf")))
    updater.step(loss, 0)
    assert updater.num_skipped_updates == 1
    assert_equal(params_of(model), before)


def test_skipping_on_the_device_equals_skipping_on_the_host() -> None:
    """The path of fused optimizers on CUDA; the fused optimizer of the CPU has the same interface."""
    ours, plain = make_model(), make_model()
    updater = make_updater(ours, optimizer={"class": "adam", "fused": True})
    updater._can_skip_on_device = lambda optimizer, grad: True  # type: ignore[method-assign, assignment]
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01, fused=True)
    batches = make_batches(6)
    for step_idx, batch in enumerate(batches):
        updater.step(bad_loss(ours, float("nan")), step_idx)
        updater.step(make_loss(ours, batch), step_idx)
    plain_loop(plain, optimizer, batches)
    assert_equal(params_of(ours), params_of(plain))
    assert updater.num_skipped_updates == 6
    assert updater.finish_epoch().num_updates == 12
    updater.step(bad_loss(ours, float("inf")), 0)
    updater.step(bad_loss(ours, float("inf")), 1)
    assert updater.optimizer_state_dict()["returnn"]["num_invalid_in_succession"] == 2
    updater.step(bad_loss(ours, float("inf")), 2)
    with pytest.raises(NonFiniteGradientError, match="Got 3 invalid gradients in succession"):
        updater.finish_epoch()


def test_sparse_and_mixed_gradients_are_checked() -> None:
    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.emb = torch.nn.Embedding(5, 2, sparse=True)
            self.factor = torch.nn.Parameter(torch.ones((), dtype=torch.float64))

    model = Model()
    updater = make_updater(model, optimizer={"class": "sgd"})
    idxs = torch.tensor([1, 1, 3])
    updater.step(model.emb(idxs).sum() * model.factor, 0)
    before = params_of(model)
    updater.step(model.emb(idxs).sum() * model.factor * float("inf"), 0)
    assert updater.num_skipped_updates == 1
    assert_equal(params_of(model), before)


def test_loss_without_parameters() -> None:
    updater = make_updater(make_model())
    with pytest.raises(ModelError, match="depends on no trainable parameter"):
        updater.step(torch.tensor(1.0), 0)


# --- mixed precision


def test_bfloat16_has_no_scaler() -> None:
    updater = make_updater(make_model(), torch_amp_options={"dtype": "bfloat16"})
    updater.create_grad_scaler()
    assert updater._grad_scaler is None


def test_no_scaler_without_mixed_precision() -> None:
    config = Config({"optimizer": {"class": "adam"}})
    updater = Updater(config=config, network=make_model(), device="cpu")
    updater.create_grad_scaler()
    assert updater._grad_scaler is None


def test_bfloat16_equals_plain_loop() -> None:
    ours, plain = make_model(), make_model()
    updater = make_updater(ours, torch_amp="bfloat16")
    updater.create_grad_scaler()
    optimizer = torch.optim.Adam(plain.parameters(), lr=0.01)
    for step_idx, batch in enumerate(make_batches(4)):
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = make_loss(ours, batch)
            plain_loss = make_loss(plain, batch)
        updater.step(loss, step_idx)
        plain_loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert_equal(params_of(ours), params_of(plain))


def test_float16_scaler_skips_and_recovers() -> None:
    """inf because of the scale is normal: more of them than the limit for invalid gradients, and no error."""
    model = make_model()
    updater = make_updater(
        model, torch_amp_options={"dtype": "float16"}, grad_scaler={"init_scale": 2.0**126}, gradient_clip_norm=1.0
    )
    updater.create_grad_scaler()
    before = params_of(model)
    losses = 0
    while torch.equal(params_of(model)["0.weight"], before["0.weight"]):
        updater.step(make_loss(model, make_batches(1)[0]) * 1e4, 0)
        losses += 1
        assert losses < 60
    assert losses > 4
    assert updater.num_skipped_updates == losses - 1


def test_scaler_ends_hopeless_training() -> None:
    model = make_model()
    before = params_of(model)
    updater = make_updater(model, torch_amp="float16")
    updater.create_grad_scaler()
    with pytest.raises(NonFiniteGradientError, match="loss scale went down"):
        for _ in range(100):
            updater.step(bad_loss(model, float("nan")), 0)
    assert_equal(params_of(model), before)


def test_wrong_scaler_options() -> None:
    updater = make_updater(make_model(), torch_amp="float16", grad_scaler={"init_scal": 3.0})
    with pytest.raises(OptionError, match="grad_scaler.*init_scal"):
        updater.create_grad_scaler()


# --- creation and learning rate


def test_optimizer_dict_is_not_changed_and_logged(capsys: pytest.CaptureFixture[str]) -> None:
    opts = {
        "class": "AdamW",
        "epsilon": 1e-6,
        "learning_rate_multiplier": 0.5,
        "weight_decay_modules_blacklist": ["torch.nn.LayerNorm"],
    }
    given_opts = dict(opts)
    make_updater(make_model(), optimizer=opts)
    assert opts == given_opts
    assert "Optimizer: AdamW (\nParameter Group 0\n" in capsys.readouterr().out


def test_missing_optimizer() -> None:
    updater = Updater(config={}, network=make_model(), device="cpu")
    with pytest.raises(ValueError, match='option "optimizer" is not set'):
        updater.create_optimizer()


def test_mini_has_one_group_in_network_order() -> None:
    model = make_model()
    updater = make_updater(model, optimizer={"class": "adamw", "weight_decay": 0.1})
    (group,) = updater.optimizer.param_groups  # type: ignore[union-attr]
    assert [id(p) for p in group["params"]] == [id(p) for p in model.parameters()]
    assert group["weight_decay"] == 0.1


def wd_model() -> torch.nn.Sequential:
    return torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.LayerNorm(3), torch.nn.Embedding(4, 3))


def group_names(updater: Updater) -> list[tuple[list[str], float]]:
    names = {id(p): n for n, p in updater.network.named_parameters()}
    assert updater.optimizer is not None
    return [([names[id(p)] for p in g["params"]], g["weight_decay"]) for g in updater.optimizer.param_groups]


def test_mainline_weight_decay_groups() -> None:
    config = {"optimizer": {"class": "adamw", "weight_decay": 0.1}}
    updater = Updater(config=config, network=wd_model(), device="cpu", dialect="mainline")
    updater.create_optimizer()
    assert group_names(updater) == [(["0.weight"], 0.1), (["0.bias", "1.bias", "1.weight", "2.weight"], 0.0)]


def test_mainline_without_weight_decay_has_one_group() -> None:
    updater = Updater(config={"optimizer": {"class": "adamw"}}, network=wd_model(), device="cpu", dialect="mainline")
    updater.create_optimizer()
    assert group_names(updater)[0][1] == 0.01 and len(group_names(updater)) == 1


def test_weight_decay_options() -> None:
    seen: list[str] = []

    def check(
        *, module: torch.nn.Module, rf_module: object, full_param_name: str, param: torch.nn.Parameter
    ) -> bool | None:
        seen.append(full_param_name)
        return True if full_param_name == "1.bias" else None

    opts = {
        "class": "adamw",
        "weight_decay": 0.1,
        "weight_decay_modules_blacklist": ["torch.nn.Linear"],
        "weight_decay_custom_include_check": check,
    }
    updater = make_updater(wd_model(), optimizer=opts)
    assert group_names(updater) == [(["1.bias", "1.weight", "2.weight"], 0.1), (["0.bias", "0.weight"], 0.0)]
    assert sorted(seen) == ["0.bias", "0.weight", "1.bias", "1.weight", "2.weight"]


def test_shared_parameters_are_in_one_group() -> None:
    model = wd_model()
    model.append(torch.nn.Linear(3, 4))
    model[3].weight = model[2].weight
    updater = make_updater(
        model, optimizer={"class": "sgd", "weight_decay": 0.1, "weight_decay_modules_blacklist": [torch.nn.LayerNorm]}
    )
    assert group_names(updater)[0][0] == ["0.weight", "2.weight"]


def test_blacklist_names() -> None:
    assert wrap_user_blacklist_wd_modules(["torch.nn.LayerNorm", torch.nn.Embedding]) == (
        torch.nn.LayerNorm,
        torch.nn.Embedding,
    )
    with pytest.raises(ConfigError, match="unknown class 'torch.nn.LayerNom'"):
        wrap_user_blacklist_wd_modules(["torch.nn.LayerNom"])
    with pytest.raises(ConfigError, match="expected a list"):
        wrap_user_blacklist_wd_modules("torch.nn.LayerNorm")


def test_param_groups_custom_and_multipliers() -> None:
    def groups(*, model: torch.nn.Module, optimizer_opts: Mapping[str, Any], **_other: Any) -> list[dict[str, Any]]:
        assert optimizer_opts["momentum"] == 0.5
        params = list(model.parameters())
        return [{"params": params[:1], "learning_rate_multiplier": 0.1}, {"params": params[1:]}]

    opts = {"class": "sgd", "momentum": 0.5, "param_groups_custom": groups, "learning_rate_multiplier": 2.0}
    updater = make_updater(make_model(), lr=1.0, optimizer=opts)
    assert updater.optimizer is not None
    assert [g["lr"] for g in updater.optimizer.param_groups] == [0.1, 2.0]
    updater.set_learning_rate(0.5)
    assert [g["lr"] for g in updater.optimizer.param_groups] == [0.05, 1.0]
    assert updater.learning_rate == 0.5
    with pytest.raises(ConfigError, match="param_groups_custom"):
        make_updater(make_model(), optimizer={"class": "sgd", "param_groups_custom": lambda **_: 3})


def test_optimizer_instance_and_functions() -> None:
    model = make_model()
    instance = torch.optim.SGD(model.parameters(), lr=3.0)
    updater = make_updater(model, optimizer=instance)
    assert updater.get_optimizer() is instance
    updater.set_learning_rate(0.25)
    assert instance.param_groups[0]["lr"] == 0.25
    for form in (
        torch.optim.SGD,
        {"class": torch.optim.SGD},
        lambda params, lr: torch.optim.SGD(params, lr=lr),
        {"class": "torch.optim.SGD"},
    ):
        made = make_updater(model, optimizer=form).optimizer
        assert isinstance(made, torch.optim.SGD) and made.param_groups[0]["lr"] == 0.01
    no_lr = make_updater(model, optimizer=lambda params: torch.optim.SGD(params, lr=7.0)).optimizer
    assert no_lr is not None and no_lr.param_groups[0]["lr"] == 7.0
    with pytest.raises(ConfigError, match="must return a torch.optim.Optimizer"):
        make_updater(model, optimizer=lambda params: 3)


def test_get_optimizer_class() -> None:
    assert get_optimizer_class("aDaM") is torch.optim.Adam
    assert get_optimizer_class(torch.optim.SGD) is torch.optim.SGD


def test_options_are_refused_with_a_sentence() -> None:
    with pytest.raises(NotSupportedError, match="gradient_clip_norm limits the total norm"):
        make_updater(make_model(), gradient_clip_avg_norm=1.0)
    with pytest.raises(ValueError, match="grad_clip.*gradient_clip"):
        make_updater(make_model(), grad_clip=1.0)


class ClientUpdater(Updater):
    """As in the wild: own constructor, a plain dict, a custom key in the optimizer dict."""

    def __init__(self, config: dict[str, Any], network: torch.nn.Module) -> None:
        self.config = config
        self.learning_rate = 0.01
        self.network = network
        self.optimizer = None
        self._device = "cpu"
        self._grad_clip = self.config.get("gradient_clip", 0.0)
        self._grad_clip_norm = self.config.get("gradient_clip_norm", 0.0)
        self._accum_grad_multiple_step = self.config.get("accum_grad_multiple_step", 1)

    def _get_optimizer_param_groups(self, optim_class: Any, optimizer_opts: dict[str, Any]) -> list[dict[str, Any]]:
        slow = optimizer_opts.pop("slow_params")
        named = dict(self.network.named_parameters())
        return [
            {"params": [p for n, p in named.items() if n in slow], "weight_decay": 0.0},
            {"params": [p for n, p in named.items() if n not in slow]},
        ]


def test_client_subclass_without_our_constructor() -> None:
    model = make_model()
    config = {
        "optimizer": {"class": "sgd", "slow_params": ["0.bias"]},
        "gradient_clip_norm": 1.0,
        "accum_grad_multiple_step": 2,
    }
    updater = ClientUpdater(config, model)
    updater.create_optimizer()
    assert updater.optimizer is not None and len(updater.optimizer.param_groups) == 2
    before = params_of(model)
    run(updater, make_batches(3))
    assert not torch.equal(before["0.weight"], params_of(model)["0.weight"])
    assert updater.num_accumulated_steps == 1
    assert config["optimizer"] == {"class": "sgd", "slow_params": ["0.bias"]}


def test_scaler_counts_on_other_devices() -> None:
    model = make_model()
    updater = make_updater(model, torch_amp="float16")
    updater.create_grad_scaler()
    updater._device_type = lambda: "cuda"  # type: ignore[method-assign]
    for step_idx, value in enumerate([1.0, float("inf"), 1.0, float("inf"), float("inf"), float("inf"), float("inf")]):
        updater.step(bad_loss(model, value), step_idx)
    assert updater.num_skipped_updates == 5
    assert updater.finish_epoch() == EpochUpdates(7, 5, 0, "carry")
