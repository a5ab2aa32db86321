"""Trainings in the mainline dialect, in-process, on tiny data; the golden one is in tests/contract/test_trajectories.py."""

from __future__ import annotations

import random
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

import returnn.frontend as rf
from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets import init_dataset
from returnn.errors import ConfigError, ModelError, OptionError
from returnn.frontend.run_ctx import RunCtx
from returnn.learning_rate_control import LearningRateControl
from returnn.log import log
from returnn.tensor import Dim, TensorDict, batch_dim
from returnn.torch.engine import Engine
from returnn.util.math import merge_random_seeds


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _dataset(num: int, start: int = 0, **opts: Any) -> dict[str, Any]:
    data = []
    for i in range(start, start + num):
        n = 2 + (i * 5) % 6
        x = numpy.sin(numpy.arange(n * 2, dtype="float32") + i).reshape(n, 2)
        data.append({"data": x, "classes": (numpy.arange(n) + i).astype("int32") % 3})
    return {"class": "StaticDataset", "data": data, "output_dim": {"data": (2, 2), "classes": (3, 1)}, **opts}


EXTERN_DATA = {"data": {"dim": 2}, "classes": {"dim": 3, "sparse": True}}


def get_model(**_kwargs: object) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Linear(4, 3))


def _cross_entropy(model: torch.nn.Module, data: torch.Tensor, classes: torch.Tensor) -> torch.Tensor:
    return torch.nn.functional.cross_entropy(model(data).transpose(1, 2), classes.long(), reduction="none")


def train_step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
    data, classes = extern_data["data"], extern_data["classes"]
    ce = _cross_entropy(model, data.raw_tensor, classes.raw_tensor)
    rf.get_run_ctx().mark_as_loss(ce, "ce", dims=classes.dims, use_normalized_loss=True)


def mini_train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    lens = data["data:size1"]
    ce = _cross_entropy(model, data["data"], data["classes"])
    mask = torch.arange(ce.shape[1])[None] < lens[:, None]
    run_ctx.mark_as_loss(torch.where(mask, ce, 0.0).sum(), "ce", inv_norm_factor=lens.sum())


def _config(**opts: Any) -> Config:
    options = {
        "task": "train",
        "device": "cpu",
        "extern_data": EXTERN_DATA,
        "train": _dataset(12, seq_ordering="random"),
        "dev": _dataset(4, 100),
        "get_model": get_model,
        "train_step": train_step,
        "batch_size": 20,
        "torch_dataloader_opts": {"num_workers": 0},
        "optimizer": {"class": "adam"},
        "learning_rate": 0.01,
        "num_epochs": 2,
        "model": "models/epoch",
        "learning_rate_file": "learning_rates",
        **opts,
    }
    return Config({name: value for name, value in options.items() if value is not None})


def _train(**opts: Any) -> Engine:
    engine = Engine(config=_config(**opts))
    engine.init_train()
    engine.train()
    return engine


def _params(engine: Engine) -> dict[str, torch.Tensor]:
    assert engine._model is not None
    return {name: tensor.clone() for name, tensor in engine._model.state_dict().items()}


def _assert_same(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> None:
    assert a.keys() == b.keys()
    for name, tensor in a.items():
        assert torch.equal(tensor, b[name]), name


# ---- both dialects


def test_a_config_has_the_same_parameters_in_both_dialects() -> None:
    mainline = _train(model="a/epoch", learning_rate_file="a/lr")
    mini = _train(model="b/epoch", learning_rate_file="b/lr", extern_data=None, train_step=mini_train_step)
    assert (mainline._dialect_is_mainline, mini._dialect_is_mainline) == (True, False)
    _assert_same(_params(mainline), _params(mini))
    scores = [engine.learning_rate_control.get_epoch_error_dict(2) for engine in (mainline, mini)]  # type: ignore[union-attr]
    assert set(scores[0]) == {"train_loss_ce", "dev_loss_ce"} and set(scores[1]) == {"ce", "dev_loss_ce"}
    assert scores[0]["train_loss_ce"] == pytest.approx(scores[1]["ce"], rel=1e-6)
    assert scores[0]["dev_loss_ce"] == pytest.approx(scores[1]["dev_loss_ce"], rel=1e-6)


def test_steps_get_what_they_name_in_either_dialect() -> None:
    seen: list[tuple[bool, set[str]]] = []

    def named(
        *, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, extern_data: TensorDict, **kwargs: object
    ) -> None:
        assert all(name.startswith(("__fwd_compat_random_arg_", "__fwd_compatible_random_arg_")) for name in kwargs)
        assert run_ctx is rf.get_run_ctx() and len(kwargs) == 1
        assert torch.equal(data["data"], extern_data["data"].raw_tensor)
        lens = extern_data["data"].dims[1].dyn_size_ext
        assert lens is not None and lens.raw_tensor.tolist() == data["data:size1"].tolist()
        assert list(extern_data["seq_tag"].raw_tensor) == list(data["seq_tag"])
        mini_train_step(model=model, data=data, run_ctx=run_ctx)

    def only_kwargs(**kwargs: Any) -> None:
        mainline = run_is_mainline
        seen.append((mainline, {name for name in kwargs if not name.startswith("__")}))
        if mainline:
            train_step(**kwargs)
        else:
            mini_train_step(**kwargs)

    for run_is_mainline in (True, False):
        opts: dict[str, Any] = {} if run_is_mainline else {"extern_data": None}
        _train(train_step=named, model=None, learning_rate_file=None, num_epochs=1, **opts)
        _train(train_step=only_kwargs, model=None, learning_rate_file=None, num_epochs=1, **opts)
    assert {(mainline, frozenset(names)) for mainline, names in seen} == {
        (True, frozenset({"model", "extern_data"})),
        (False, frozenset({"model", "data", "run_ctx"})),
    }


def test_names_of_the_random_argument() -> None:
    names: list[str] = []

    def model_with_any(**kwargs: object) -> torch.nn.Module:
        assert {"epoch", "step", "device"} < set(kwargs) and kwargs["device"] == "cpu"
        names.extend(name for name in kwargs if name.startswith("__"))
        return get_model()

    random_state = random.getstate()
    _train(get_model=model_with_any, num_epochs=1)
    assert len(names) == 1 and re.fullmatch(r"__fwd_compat_random_arg_\d{3}", names[0])
    assert random.getstate() == random_state  # what user code draws does not depend on ours


# ---- run contexts, seeds


def test_each_step_has_a_new_context() -> None:
    seen: list[RunCtx] = []

    def step(**kwargs: Any) -> None:
        seen.append(rf.get_run_ctx())
        train_step(**kwargs)

    engine = _train(train_step=step)
    assert len({id(ctx) for ctx in seen}) == len(seen)
    assert [ctx.stage for ctx in seen] == ["train_step"] * len(seen)
    assert all(ctx.engine is engine and ctx.device == "cpu" for ctx in seen)
    train = [ctx for ctx in seen if ctx.train_flag]
    assert [ctx.step for ctx in train] == list(range(len(train)))
    assert [ctx.epoch for ctx in seen] == sorted(ctx.epoch or 0 for ctx in seen)
    evals = {ctx.epoch: ctx.step for ctx in seen if not ctx.train_flag}
    assert evals == {1: len(train) // 2, 2: len(train)}  # steps done so far


def test_seed_of_each_epoch() -> None:
    drawn: list[tuple[int | None, int | None, float]] = []

    def step(**kwargs: Any) -> None:
        ctx = rf.get_run_ctx()
        if ctx.train_flag:
            drawn.append((ctx.epoch, ctx.step, torch.rand(()).item()))
        train_step(**kwargs)

    _train(train_step=step, random_seed=7)
    for epoch, first_step in ((1, 0), (2, len(drawn) // 2)):
        torch.manual_seed(merge_random_seeds([epoch, first_step, 7]))
        for _ in range(2):  # what a new iterator over the loader draws
            torch.empty((), dtype=torch.int64).random_()
        assert torch.rand(()).item() == next(x for e, s, x in drawn if (e, s) == (epoch, first_step))


def test_get_model_gets_epoch_and_step_of_the_checkpoint() -> None:
    calls: list[tuple[int, int]] = []

    def model(*, epoch: int, step: int, **_kwargs: object) -> torch.nn.Module:
        calls.append((epoch, step))
        return get_model()

    num_steps = _train(get_model=model).global_train_step
    assert num_steps == _train(get_model=model).global_train_step  # nothing left to train
    resumed = _train(get_model=model, num_epochs=3)
    assert calls == [(1, 0), (2, num_steps - 1), (2, num_steps - 1)]
    assert resumed.global_train_step > num_steps


# ---- files and lines


def test_files() -> None:
    engine = _train(eval=_dataset(3, 50), eval_datasets={"devtrain": _dataset(2)})
    num_steps = engine.global_train_step
    data = LearningRateControl(0.0, filename="learning_rates").epoch_data[2]
    names = ("dev", "devtrain", "eval")
    assert set(data.error) == {"train_loss_ce", *(f"{name}_loss_ce" for name in names)}
    assert data.meta["global_train_step_end"] == num_steps and data.meta["epoch_num_train_steps"] == num_steps // 2
    assert data.meta["device"] == "cpu" and data.meta["distributed"] is None
    assert all(isinstance(data.meta[name], str) for name in ("cpu", "hostname", "returnn", "time", "torch"))
    optimizer = torch.load("models/epoch.002.opt.pt", weights_only=True)
    assert (optimizer["epoch"], optimizer["step"]) == (2, num_steps)
    assert optimizer["optimizer_class_name"] == "Adam" and optimizer["optimizer_opts"] == {"class": "adam"}
    assert optimizer["param_names"] == ["0.weight", "0.bias", "2.weight", "2.bias"]
    assert set(optimizer["optimizer"]) == {"state", "param_groups"}
    checkpoint = torch.load("models/epoch.002.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["step"], checkpoint["effective_learning_rate"]) == (2, num_steps, 0.01)
    assert isinstance(checkpoint["returnn_version"], str)


def test_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    def step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
        train_step(model=model, extern_data=extern_data)
        ctx = rf.get_run_ctx()
        ctx.mark_as_loss(torch.tensor(4321.0), "big", scale=0.0)
        ctx.mark_as_loss(torch.tensor(0.00012), "aux", scale=0.0)

    _train(train_step=step, eval_datasets={"devtrain": _dataset(2)}, num_epochs=1, max_seqs=6)
    out = capsys.readouterr().out
    assert "Total number of parameters" not in out and "Evaluating dataset" not in out
    time, frac = r"\d:\d\d:\d\d", r"\d+\.\d\d%"
    progress = rf"elapsed {time}, exp\. remaining {time}, complete {frac}"
    number = r"\d\.\d{3}"
    losses = rf"ce {number}, big 4\.321e\+03, aux 1\.200e-04"
    for line in (
        r"Using device: cpu \(config\)",
        r"net params #: 27",
        r"Starting training at epoch 1, global train step 0",
        r"start epoch 1 global train step 0 with effective learning rate 0\.01 \.\.\.",
        r"ep 1 train num_seqs: 12",
        rf"ep 1 train, step 0, {losses}, {number} sec/step, {progress}",
        rf"ep 1 train, step 3, {losses}, {number} sec/step, {progress}",
        rf"Epoch 1: Trained \d steps, {time} elapsed \(\d+\.\d% computing time, data: \d+\.\d%, classes: \d+\.\d% padding\)",
        rf"Epoch 1: Total train loss: ce {number} big 4\.321e\+03 aux 1\.200e-04",
        rf"ep 1 dev eval, step 0, {losses}, {progress}",
        rf"Epoch 1 evaluation: dev: ce {number} big 4\.321e\+03 aux 1\.200e-04 devtrain: ce {number} big .*",
        r"Finished training at epoch 1, global train step \d",
    ):
        assert re.search(f"^{line}$", out, re.M), (line, out)


def test_one_score_is_shown_without_its_name(capsys: pytest.CaptureFixture[str]) -> None:
    _train(num_epochs=1, eval_datasets={"devtrain": _dataset(2)})
    out = capsys.readouterr().out
    assert re.search(r"^Epoch 1: Total train loss: \d\.\d{3}$", out, re.M)
    assert re.search(r"^Epoch 1 evaluation: dev: \d\.\d{3} devtrain: \d\.\d{3}$", out, re.M)


def test_missing_evaluation_is_made_up_for(capsys: pytest.CaptureFixture[str]) -> None:
    _train(num_epochs=1)
    capsys.readouterr()
    engine = _train(num_epochs=1, eval_datasets={"other": _dataset(2)})
    assert "Last epoch model not yet evaluated on other. Doing that now." in capsys.readouterr().out
    assert engine.learning_rate_control is not None
    assert {"train_loss_ce", "dev_loss_ce", "other_loss_ce"} == set(
        engine.learning_rate_control.get_epoch_error_dict(1)
    )


def test_eval_datasets_are_sorted_unless_they_say_otherwise() -> None:
    tags: dict[str, list[str]] = {}

    def step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
        train_step(model=model, extern_data=extern_data)
        if not rf.get_run_ctx().train_flag:
            tags.setdefault(current[0], []).extend(map(str, extern_data["seq_tag"].raw_tensor))

    current = [""]

    def epoch_start(*, dataset_name: str, **_kwargs: object) -> None:
        current[0] = dataset_name

    own = _dataset(4, 100, seq_ordering="default")
    _train(train_step=step, epoch_start=epoch_start, num_epochs=1, eval_datasets={"own": own})
    lens = {f"seq-{i}": 2 + ((100 + i) * 5) % 6 for i in range(4)}
    assert tags["dev"] == sorted(lens, key=lambda tag: lens[tag]) != tags["own"]
    assert tags["own"] == list(lens)


# ---- data


def test_dev_is_optional_and_batch_size_is_not() -> None:
    assert _train(dev=None, num_epochs=1).eval_datasets == {}
    with pytest.raises(ConfigError, match='"batch_size" is not set'):
        _train(batch_size=None)


def test_train_may_be_a_function() -> None:
    opts = {"class": "DummyDataset", "input_dim": 2, "output_dim": 3, "num_seqs": 4, "seq_len": 3}
    engine = _train(train=lambda **_kwargs: opts, dev=None, num_epochs=1)
    assert engine.train_dataset is not None and type(engine.train_dataset).__name__ == "DummyDataset"


def test_dummy_datasets() -> None:
    missing = {"class": "HDFDataset", "files": ["not-there.hdf"]}
    time = Dim(None, name="time")
    engine = _train(
        extern_data={
            "data": {"dims": [batch_dim, time, Dim(2, name="in")]},
            "classes": {"dims": [batch_dim, time], "sparse_dim": Dim(3, name="out"), "dtype": "int32"},
        },
        train=missing,
        dev=missing,
        eval_datasets={"devtrain": missing},
        use_dummy_datasets=True,
        train_dummy_dataset_num_seqs=60,
        num_epochs=1,
        batch_size=1000,
    )
    assert engine.train_dataset is not None and engine.train_dataset.num_seqs == 60
    assert {name: dataset.num_seqs for name, dataset in engine.eval_datasets.items()} == {"dev": 3, "devtrain": 3}


# ---- hooks


def test_hooks_around_passes() -> None:
    calls: list[tuple[str, int, int, str, bool]] = []

    def hook(kind: str) -> Any:
        def call(*, epoch: int, step: int, model: torch.nn.Module, dataset_name: str, **kwargs: object) -> None:
            assert isinstance(model, torch.nn.Sequential) and len(kwargs) == 1
            written = Path(f"models/epoch.{epoch:03d}.pt").exists()
            calls.append((kind, epoch, step, dataset_name, written))

        return call

    engine = _train(epoch_start=hook("start"), epoch_end=hook("end"), num_epochs=1, reset_dev_memory_caches=True)
    num_steps = engine.global_train_step
    assert calls == [
        ("start", 1, 0, "train", False),
        ("end", 1, num_steps, "train", False),
        ("start", 1, num_steps, "dev", True),
        ("end", 1, num_steps, "dev", True),
    ]


def test_hooks_of_the_wrong_form() -> None:
    with pytest.raises(ModelError, match="epoch_start .*requires argument 'name', which is never passed"):
        Engine(config=_config(epoch_start=lambda name: None))
    with pytest.raises(OptionError, match="load_model_post_hooks"):
        Engine(config=_config(load_model_post_hooks=lambda model: None))
    with pytest.raises(OptionError, match="default_float_dtype.*'float32'.*got 'int8'"):
        Engine(config=_config(default_float_dtype="int8"))


def test_hooks_after_loading() -> None:
    calls: list[str] = []

    def freeze(*, model: torch.nn.Module, **_kwargs: object) -> None:
        calls.append("freeze")
        model[0].requires_grad_(False)  # type: ignore[index]

    before = _params(_train(num_epochs=1))
    after = _params(_train(load_model_post_hooks=[freeze, lambda **_kwargs: calls.append("second")]))
    assert calls == ["freeze", "second"]
    assert torch.equal(before["0.weight"], after["0.weight"])  # loaded before, not trained after
    assert not torch.equal(before["2.weight"], after["2.weight"])


@pytest.mark.parametrize("mainline", [True, False])
def test_default_float_dtype(mainline: bool) -> None:
    seen: set[torch.dtype] = set()

    def model(**_kwargs: object) -> torch.nn.Module:
        seen.add(torch.get_default_dtype())
        return get_model()

    def step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        seen.update({torch.get_default_dtype(), data["data"].dtype, torch.zeros(1).dtype})
        seen.update(p.dtype for p in model.parameters())
        mini_train_step(model=model, data=data, run_ctx=run_ctx)

    def mainline_step(*, model: torch.nn.Module, extern_data: TensorDict, **_kwargs: object) -> None:
        seen.update({torch.get_default_dtype(), extern_data["data"].raw_tensor.dtype})
        assert extern_data["data"].dtype == "float64"
        train_step(model=model, extern_data=extern_data)

    opts: dict[str, Any] = {"train_step": mainline_step} if mainline else {"train_step": step, "extern_data": None}
    engine = _train(get_model=model, default_float_dtype="float64", num_epochs=1, **opts)
    assert seen == {torch.float64} and torch.get_default_dtype() == torch.float32
    assert {tensor.dtype for tensor in _params(engine).values()} == {torch.float64}


# ---- names of the mainline engine


def test_names_of_the_engine() -> None:
    config = _config(train=None, dev=None)
    engine = Engine(Config())
    engine.init_network_from_config(config)
    model = engine.get_pt_model()
    assert model is not None and model is engine._pt_model is engine._orig_model
    assert engine.get_pt_optimizer() is None and isinstance(engine.extern_data, TensorDict)
    train, dev, other = (init_dataset(_dataset(num)) for num in (6, 3, 2))
    engine.init_train_from_config(config, train, dev, other)
    assert engine.get_pt_model() is model, "it is not made twice"
    assert engine.train_dataset is train and engine.eval_datasets == {"dev": dev, "eval": other}
    assert isinstance(engine.get_pt_optimizer(), torch.optim.Adam)
    engine.train()
    assert engine.global_train_step > 0 and (engine.epoch, engine._epoch_mp_shared.value) == (3, 3)
    engine.set_epoch(2)
    engine.eval_model(skip_already_evaluated=True)
    assert engine.epoch == 2


def test_loaders_by_hand() -> None:
    engine = Engine(_config(max_seqs=2, batch_size=1000))
    dataset = init_dataset(_dataset(5))
    engine.set_epoch(1)
    assert [len(batch["seq_tag"]) for batch in engine._create_data_loader(dataset, train=True)] == [2, 2, 1]
    assert engine._create_data_loader(dataset, train=False).options.role == "eval"
    dataset.init_seq_order(epoch=3, seq_list=["seq-4", "seq-1"])
    batches = list(engine._create_data_loader(dataset, train=False, dataset_init_epoch=False))
    assert [list(map(str, batch["seq_tag"])) for batch in batches] == [["seq-4", "seq-1"]]
