"""returnn.torch.engine: training, evaluation, restart, forwarding, custom engines; in-process, on tiny data."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import torch

from returnn._state import process_state_ctx
from returnn.config import Config
from returnn.datasets import init_dataset
from returnn.engine.base import EngineBase
from returnn.errors import CheckpointError, ConfigError, DatasetError, ModelError, NonFiniteLossError, UserError
from returnn.frontend.run_ctx import Loss, RunCtx
from returnn.learning_rate_control import LearningRateControl
from returnn.log import log
from returnn.torch.context import get_run_ctx
from returnn.torch.engine import Engine


@pytest.fixture(autouse=True)
def _in_tmp_dir(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PT_DEVICE", raising=False)
    log.initialize(verbosity=[5])
    with process_state_ctx(global_config=None, run_ctx=None):
        yield


def _data(num: int, start: int = 0) -> list[dict[str, numpy.ndarray]]:
    res = []
    for i in range(start, start + num):
        n = 2 + (i * 5) % 6
        x = numpy.sin(numpy.arange(n * 2, dtype="float32") + i).reshape(n, 2)
        res.append({"data": x, "classes": (numpy.arange(n) + i).astype("int32") % 3})
    return res


def _dataset(num: int, start: int = 0, **opts: Any) -> dict[str, Any]:
    return {
        "class": "StaticDataset",
        "data": _data(num, start),
        "output_dim": {"data": (2, 2), "classes": (3, 1)},
        **opts,
    }


def get_model(**_kwargs: object) -> torch.nn.Module:
    return torch.nn.Sequential(torch.nn.Linear(2, 4), torch.nn.Tanh(), torch.nn.Dropout(0.1), torch.nn.Linear(4, 3))


def train_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    logits = model(data["data"])
    lens = data["data:size1"]
    ce = torch.nn.functional.cross_entropy(logits.transpose(1, 2), data["classes"].long(), reduction="none")
    run_ctx.mark_as_loss(ce, "ce", dims=[len(lens), lens], use_normalized_loss=True)


def _config(**opts: Any) -> Config:
    return Config(
        {
            "task": "train",
            "device": "cpu",
            "train": _dataset(12, seq_ordering="random"),
            "dev": _dataset(4, 100),
            "get_model": get_model,
            "train_step": train_step,
            "batch_size": 20,
            "num_workers_per_gpu": 0,
            "optimizer": {"class": "adam"},
            "learning_rate": 0.01,
            "num_epochs": 3,
            "model": "models/epoch",
            "learning_rate_file": "learning_rates",
            **opts,
        }
    )


def _train(config: Config, engine_class: type[Engine] = Engine) -> Engine:
    engine = engine_class(config=config)
    engine.init_train()
    engine.train()
    return engine


def _params(engine: Engine) -> dict[str, torch.Tensor]:
    assert engine._model is not None
    return {k: v.clone() for k, v in engine._model.state_dict().items()}


def _scores(epoch: int) -> dict[str, float]:
    return LearningRateControl(default_learning_rate=1.0, filename="learning_rates").get_epoch_error_dict(epoch)


def test_training_writes_checkpoints_scores_and_log_lines(capsys: pytest.CaptureFixture[str]) -> None:
    engine = _train(_config())
    assert engine.epoch == 4
    assert sorted(os.listdir("models")) == [
        "epoch.001.pt",
        "epoch.002.opt.pt",
        "epoch.002.pt",
        "epoch.003.opt.pt",
        "epoch.003.pt",
    ]
    checkpoint = torch.load("models/epoch.003.pt", weights_only=True)
    assert (checkpoint["epoch"], checkpoint["step"]) == (3, engine._train_step)
    assert set(_scores(3)) == {"ce", "dev_loss_ce"}
    out = capsys.readouterr().out
    for line in (
        "Starting training at epoch 1.",
        "start epoch 1 with learning rate 0.01 ...",
        "train epoch 1, step:0, step time: ",
        "Save model under models/epoch.001.pt",
        "Save optimizer under models/epoch.001.opt.pt",
        "Evaluating dataset 'dev''",
        "eval dev epoch 1, step:0, step time: ",
        "Finished evaluating dev in ",
        "Finished training at epoch 4.",
        "Using fresh model",
        "Total number of parameters: 27",
    ):
        assert line in out, line


@pytest.mark.parametrize("num_workers", [0, pytest.param(1, marks=pytest.mark.slow)])
@pytest.mark.parametrize(
    "opts",
    [
        {},
        {"accum_grad_multiple_step": 4},
        {"learning_rate_control": "newbob", "learning_rate_file": None, "newbob_relative_error_threshold": -0.5},
        {"torch_amp_options": {"dtype": "bfloat16"}, "save_interval": 2},
    ],
    ids=["plain", "accum", "newbob-without-file", "amp"],
)
def test_restart_equals_no_interruption(opts: dict[str, Any], num_workers: int) -> None:
    opts = {"learning_rate_file": "learning_rates", **opts, "num_workers_per_gpu": num_workers}
    lr_file = opts.pop("learning_rate_file")

    def config(name: str, num_epochs: int) -> Config:
        file = f"{name}/{lr_file}" if lr_file else None
        return _config(**opts, num_epochs=num_epochs, model=f"{name}/epoch", learning_rate_file=file)

    whole = _train(config("whole", 4))
    for num_epochs in (2, 4):
        parts = _train(config("parts", num_epochs))
    assert parts._start_epoch == 3
    for name, param in _params(whole).items():
        assert torch.equal(param, _params(parts)[name]), name
    a, b = (torch.load(f"{d}/epoch.004.pt", weights_only=True) for d in ("whole", "parts"))
    assert a["step"] == b["step"] and torch.equal(a["rng_state"]["torch"], b["rng_state"]["torch"])
    assert a["learning_rate_control"] == b["learning_rate_control"]
    if opts.get("accum_grad_multiple_step"):
        opt = torch.load("whole/epoch.003.opt.pt", weights_only=True)
        assert opt["returnn"].get("accumulated"), "the case is to have gradients that are carried over"


def test_second_run_has_nothing_to_do(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(num_epochs=1))
    before = os.stat("models/epoch.001.pt").st_mtime_ns
    capsys.readouterr()
    _train(_config(num_epochs=1))
    out = capsys.readouterr().out
    assert "resume after epoch 1" in out and "Nothing to train" in out and "raise num_epochs" in out
    assert os.stat("models/epoch.001.pt").st_mtime_ns == before


def test_missing_evaluation_is_caught_up(capsys: pytest.CaptureFixture[str]) -> None:
    whole = _train(_config(num_epochs=3))
    expected = _scores(2)
    for name in os.listdir("models"):
        os.remove(os.path.join("models", name))
    os.remove("learning_rates")

    class Interrupted(Engine):
        def eval_model(self, **kwargs: Any) -> None:
            if self.epoch == 2:
                raise KeyboardInterrupt
            super().eval_model(**kwargs)

    with pytest.raises(KeyboardInterrupt):
        _train(_config(num_epochs=3), Interrupted)
    assert set(_scores(2)) == {"ce"}
    capsys.readouterr()
    engine = _train(_config(num_epochs=3))
    assert "Last epoch model not yet evaluated on dev. Doing that now." in capsys.readouterr().out
    assert _scores(2) == expected
    for name, param in _params(whole).items():
        assert torch.equal(param, _params(engine)[name]), name


@pytest.mark.parametrize("broken", ["epoch.002.pt", "epoch.002.opt.pt"])
def test_half_written_newest_checkpoint_is_named_and_the_one_before_used(
    broken: str, capsys: pytest.CaptureFixture[str]
) -> None:
    whole = _train(_config(num_epochs=3))
    reference = _params(whole)
    for name in ("epoch.003.pt", "epoch.003.opt.pt"):
        os.remove(f"models/{name}")
    _train(_config(num_epochs=2, model="m2/epoch", learning_rate_file="lr2"))
    os.truncate(f"m2/{broken}", os.path.getsize(f"m2/{broken}") // 2)
    capsys.readouterr()
    engine = _train(_config(num_epochs=3, model="m2/epoch", learning_rate_file="lr2"))
    out = capsys.readouterr().out
    assert broken in out and "half written" in out and "resume after epoch 1" in out
    for name, param in reference.items():
        assert torch.equal(param, _params(engine)[name]), name


def _nan_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    train_step(model=model, data=data, run_ctx=run_ctx)
    if run_ctx.train_flag and run_ctx.global_step == 1:
        run_ctx.losses["ce"].loss = run_ctx.losses["ce"].loss * math.nan


def test_nan_loss_stops_before_the_weights_change(capsys: pytest.CaptureFixture[str]) -> None:
    engine = Engine(config=_config(train_step=_nan_step))
    engine.init_train()
    with pytest.raises(NonFiniteLossError, match=r"^Inf/nan loss in epoch 1, step 1\..*ce nan.*seq-") as info:
        engine.train()
    assert "stop_on_nonfinite_train_score" in str(info.value)
    assert all(torch.isfinite(p).all() for p in _params(engine).values())
    assert not os.path.exists("models")


def test_nan_loss_is_skipped_and_counted_on_request(capsys: pytest.CaptureFixture[str]) -> None:
    engine = _train(_config(train_step=_nan_step, stop_on_nonfinite_train_score=False, num_epochs=1))
    assert all(torch.isfinite(p).all() for p in _params(engine).values())
    assert "1 updates skipped because of inf/nan" in capsys.readouterr().out


def test_nan_in_a_loss_that_is_only_reported_stops_too() -> None:
    def step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        train_step(model=model, data=data, run_ctx=run_ctx)
        run_ctx.mark_as_loss(torch.tensor(math.inf), "watched", scale=0)

    with pytest.raises(NonFiniteLossError, match="watched inf"):
        _train(_config(train_step=step))


def test_nan_in_a_loss_that_is_only_reported_changes_nothing_if_training_goes_on() -> None:
    def step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        train_step(model=model, data=data, run_ctx=run_ctx)
        run_ctx.mark_as_loss(name="monitor", loss=torch.tensor(math.nan), scale=0.0)

    reference = _params(_train(_config(model=None, learning_rate_file=None)))
    config = _config(model=None, learning_rate_file=None, train_step=step, stop_on_nonfinite_train_score=False)
    for name, value in _params(_train(config)).items():
        assert torch.equal(value, reference[name]), name


def test_epoch_without_any_batch_is_an_error_before_saving() -> None:
    with pytest.raises(DatasetError, match="No data in dataset 'train'.*dropped.*max_seq_length"):
        _train(_config(max_seq_length=1))
    assert not os.path.exists("models")


@pytest.mark.parametrize(
    ("opts", "text"),
    [
        ({"train_step": None}, "train_step"),
        ({"get_model": lambda **_: 3}, "must return a torch.nn.Module, got int"),
        ({"optimizer": {"class": "adam", "foo": 1}}, "foo"),
        ({"device": "cuda:99"}, "No GPU device found"),
        ({"device": "abacus"}, "is no device"),
        ({"random_seed": "x"}, "random_seed"),
        ({"load": "nowhere.pt"}, "nowhere"),
        ({"train": {"class": "StaticDatset", "data": _data(1)}}, "StaticDataset"),
    ],
)
def test_user_mistakes_are_worded(opts: dict[str, Any], text: str) -> None:
    with pytest.raises(UserError) as info:
        _train(_config(**opts))
    assert text in str(info.value)


def test_dev_set_that_drop_last_empties_is_worded() -> None:
    with pytest.raises(DatasetError, match="No data in dataset 'dev'.*Set batch_drop_last = \"incomplete\""):
        _train(_config(batch_drop_last=True, max_seqs=5, batch_size=1000))


def test_step_that_marks_nothing() -> None:
    with pytest.raises(ModelError, match=r"call RunCtx.mark_as_loss\(...\)"):
        _train(_config(train_step=lambda **_: None))


def test_functions_without_kwargs_get_what_they_declare() -> None:
    def step(model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx) -> None:
        train_step(model=model, data=data, run_ctx=run_ctx)

    _train(_config(train_step=step, get_model=lambda: get_model(), num_epochs=1))


def test_unknown_parameters_in_checkpoint_and_missing_ones() -> None:
    _train(_config(num_epochs=1))
    with pytest.raises(CheckpointError, match="No parameter of models/epoch.001 fits"):
        _train(_config(get_model=lambda **_: torch.nn.ModuleDict({"x": get_model()}), num_epochs=2))


def test_import_model_train_epoch1() -> None:
    first = _train(_config(num_epochs=2))
    second = Engine(config=_config(model="other/epoch", import_model_train_epoch1="models/epoch.002.pt"))
    second.init_train()
    assert second._start_epoch == 1 and second._train_step == 0
    for name, param in _params(first).items():
        assert torch.equal(param, _params(second)[name])


# ---- eval task ------------------------------------------------------------------------------------------------------


def test_eval_task_uses_the_newest_checkpoint_and_stores_scores(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(num_epochs=2))
    expected = _scores(2)
    config = _config(task="eval", eval_datasets={"other": _dataset(3, 7)})
    del config.typed_dict["train"]
    Engine(config=config).eval_task()
    scores = _scores(2)
    assert scores["dev_loss_ce"] == expected["dev_loss_ce"] and "other_loss_ce" in scores
    out = capsys.readouterr().out
    assert "Epoch 2 evaluation: other: ce: " in out and "Scores stored in learning_rates" in out


def test_eval_task_of_a_given_checkpoint_stores_nothing_if_it_is_foreign(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(num_epochs=1))
    os.rename("models", "elsewhere")
    before = Path("learning_rates").read_text()
    Engine(config=_config(task="eval", load="elsewhere/epoch.001.pt")).eval_task()
    assert "Scores not stored" in capsys.readouterr().out
    assert Path("learning_rates").read_text() == before


# ---- forward --------------------------------------------------------------------------------------------------------


def _forward(**opts: Any) -> Engine:
    config = _config(task="forward", forward=_dataset(5, 40), load="models/epoch.002.pt", **opts)
    engine = Engine(config=config)
    engine.init_forward()
    engine.forward()
    return engine


def _forward_step(*, model: torch.nn.Module, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
    logits = model(data["data"])
    run_ctx.mark_as_default_output(logits, shape=[len(logits), data["data:size1"], 3])
    run_ctx.mark_as_output(logits.argmax(-1).int(), "labels", dims=[len(logits), data["data:size1"]])
    run_ctx.mark_as_output(logits.mean(dim=(1, 2)), "score", dims=[len(logits)])


def test_marked_outputs_are_written_without_padding(capsys: pytest.CaptureFixture[str]) -> None:
    engine = _train(_config(num_epochs=2))
    _forward(forward_step=_forward_step, batch_size=100)
    dataset = init_dataset({"class": "HDFDataset", "files": ["output.hdf"]})
    dataset.init_seq_order(epoch=1)
    assert dataset.get_all_tags() == [f"seq-{i}" for i in range(5)]
    assert engine._model is not None
    engine._model.eval()
    for i, seq in enumerate(_data(5, 40)):
        dataset.load_seqs(i, i + 1)
        with torch.no_grad():
            expected = engine._model(torch.tensor(seq["data"])).numpy()
        numpy.testing.assert_allclose(dataset.get_data(i, "data"), expected, rtol=1e-5)
        numpy.testing.assert_array_equal(dataset.get_data(i, "labels"), expected.argmax(-1))
        assert dataset.get_data(i, "score").shape == (1,)
    with pytest.raises(UserError, match=r"'output.hdf' \(option \"output_file\"\) exists already"):
        _forward(forward_step=_forward_step)
    _forward(forward_step=_forward_step, forward_override_hdf_output=True)
    _forward(forward_step=_forward_step, output_file="second.hdf")
    assert os.path.exists("second.hdf")


@pytest.mark.parametrize(
    ("lens", "steps", "text"),
    [
        (lambda lens: lens[:1], (0, 1), r"there are 1 lengths for axis 1, but 2 sequences"),
        (
            lambda lens: lens * 4,
            (0, 1),
            r"the lengths go up to \d+, but axis 1 has size \d+. Are they those of another",
        ),
        (lambda lens: lens, (0,), r"marked the outputs \[\], but \['output'\] in the first step"),
        (lambda lens: lens, (1,), r"marked the outputs \['output'\], but none in the first steps \(2 sequences\)"),
    ],
)
def test_outputs_that_would_lose_data_are_refused(lens: Any, steps: tuple[int, ...], text: str) -> None:
    num = 0

    def step(*, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        nonlocal num
        if num in steps:
            x = data["data"]
            run_ctx.mark_as_output(x, "output", dims=[len(x), lens(data["data:size1"]), 2])
        num += 1

    _train(_config(num_epochs=2))
    with pytest.raises(ModelError, match=text):
        _forward(forward_step=step, max_seqs=2, batch_size=1000)
    assert not os.path.exists("output.hdf")


def test_failed_forward_leaves_no_output_file() -> None:
    _train(_config(num_epochs=2))

    def step(*, run_ctx: RunCtx, **kwargs: Any) -> None:
        _forward_step(run_ctx=run_ctx, **kwargs)
        run_ctx.seen = getattr(run_ctx, "seen", 0) + 1  # type: ignore[attr-defined]
        if run_ctx.seen == 2:  # type: ignore[attr-defined]
            raise ValueError("step failed")

    with pytest.raises(ValueError, match="step failed"):
        _forward(forward_step=step, max_seqs=2)
    assert [name for name in os.listdir(".") if "hdf" in name] == []


def test_hooks_share_the_context_with_the_steps_and_know_epoch_and_step() -> None:
    trained = _train(_config(num_epochs=2))
    seen: list[Any] = []

    def init_hook(run_ctx: RunCtx) -> None:  # hooks of clients exist that take no **kwargs
        run_ctx.tags = []  # type: ignore[attr-defined]
        assert run_ctx is get_run_ctx()

    def step(*, data: dict[str, Any], run_ctx: RunCtx, **_kwargs: object) -> None:
        run_ctx.tags += data["seq_tag"]  # type: ignore[attr-defined]
        assert run_ctx.stage == "forward_step" and not torch.is_grad_enabled()

    def finish_hook(run_ctx: RunCtx, **_kwargs: object) -> None:
        seen.append((run_ctx.epoch, run_ctx.global_step, run_ctx.tags))  # type: ignore[attr-defined]

    engine = _forward(forward_step=step, forward_init_hook=init_hook, forward_finish_hook=finish_hook, max_seqs=2)
    assert seen == [(2, trained._train_step, [f"seq-{i}" for i in range(5)])]
    assert engine._model is not None and not engine._model.training
    assert not os.path.exists("output.hdf")


def test_outputs_that_are_left_to_the_finish_hook_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    _train(_config(num_epochs=2))
    _forward(forward_step=_forward_step, forward_finish_hook=lambda run_ctx, **_kwargs: None, max_seqs=2)
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("Outputs ")]
    assert len(lines) == 1 and lines[0].endswith(": no output file is written, since there is a forward_finish_hook.")
    assert not os.path.exists("output.hdf")


def test_folder_of_the_output_file_is_missing() -> None:
    _train(_config(num_epochs=2))
    with pytest.raises(ConfigError, match=r"'no' does not exist\. Create it, or choose another output_file\.$"):
        _forward(forward_step=_forward_step, output_file="no/x.hdf")


def test_forward_without_checkpoint_only_on_request() -> None:
    opts = {"task": "forward", "forward": _dataset(2), "forward_step": _forward_step, "model": None}
    engine = Engine(config=_config(**opts))
    with pytest.raises(UserError, match="No model given but task is not training!"):
        engine.init_forward()
    engine = Engine(config=_config(**opts, allow_random_model_init=True))
    engine.init_forward()
    engine.forward()
    assert os.path.exists("output.hdf")
    assert engine.epoch == 1, "user code compares the epoch with numbers"


def test_forward_with_a_bare_state_dict_has_the_epoch_of_its_name() -> None:
    _train(_config(num_epochs=1))
    torch.save(torch.load("models/epoch.001.pt", weights_only=True)["model"], "average.007.pt")
    config = _config(task="forward", forward=_dataset(2), forward_step=_forward_step, load="average.007.pt")
    engine = Engine(config=config)
    engine.init_forward()
    engine.forward()
    assert engine.epoch == 7


# ---- custom engines -------------------------------------------------------------------------------------------------


class OldEngine(Engine):
    """As written for the oldest versions: no step_idx, a dict of updaters, EngineBase.init_train called directly."""

    def init_train(self, train_data: Any = None, dev_data: Any = None) -> None:
        super(Engine, self).init_train(train_data, dev_data)
        assert self.train_dataset is not None
        self._train_dataloader = self._create_data_loader(self.train_dataset)
        for name, dataset in self.eval_datasets.items():
            self._eval_dataloaders[name] = self._create_data_loader(dataset)
        epoch, filename = self.get_epoch_model(self.config)
        self._start_epoch = (epoch or 0) + 1
        self._final_epoch = self.config_get_final_epoch(self.config)
        self._load_model(epoch=self._start_epoch, filename=filename)
        assert self._model is not None
        self._updater = {"main": torch.optim.SGD(self._model.parameters(), lr=0.1)}
        self._train_step_func = self.config.typed_value("train_step")

    def run_train_step(self, data: Any, run_ctx: Any) -> tuple[torch.Tensor, dict[str, Loss]]:  # type: ignore[override]
        self._train_step_func(model=self._model, data=self.move_data_to_device(data), run_ctx=run_ctx)  # type: ignore[misc]
        loss = run_ctx.total_loss()
        optimizer = self._updater["main"]
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        return loss, run_ctx.losses

    def run_eval_step(self, data: Any, run_ctx: Any) -> tuple[torch.Tensor, dict[str, Loss]]:
        self._train_step_func(model=self._model, data=self.move_data_to_device(data), run_ctx=run_ctx)  # type: ignore[misc]
        return run_ctx.total_loss(), run_ctx.losses

    def _save_optimizer(self) -> None:
        torch.save({k: v.state_dict() for k, v in self._updater.items()}, self.get_epoch_model_filename() + ".opt.pt")


def test_custom_engine_of_old_style() -> None:
    engine = _train(_config(num_epochs=2), OldEngine)
    assert isinstance(engine, EngineBase)
    assert set(_scores(2)) == {"ce", "dev_loss_ce"}
    assert _scores(2)["ce"] < _scores(1)["ce"]
    assert os.path.exists("models/epoch.002.opt.pt")


def test_data_loader_of_an_engine_from_a_bare_config() -> None:
    engine = Engine(config=Config({"batch_size": 10, "num_workers_per_gpu": 0, "device": "cpu"}))
    batches = list(engine._create_data_loader(init_dataset(_dataset(4))))
    assert [tag for batch in batches for tag in batch["seq_tag"]] == [f"seq-{i}" for i in range(4)]
    assert list(batches[0])[:3] == ["data:size1", "data:size2", "data"]


def test_dry_run_writes_nothing() -> None:
    _train(_config(dry_run=True, num_epochs=1))
    assert os.listdir(".") == []


def test_initialize_model() -> None:
    engine = Engine(config=_config(task="initialize_model"))
    engine.init_train()
    engine.save_model()
    assert os.listdir("models") == ["epoch.000.pt"]


def test_wrong_key_of_the_batch_is_answered_with_the_right_ones() -> None:
    def step(*, data: dict[str, Any], **_kwargs: object) -> None:
        assert isinstance(data, dict) and "features" not in data and data.get("features") is None
        data["clases"]

    with pytest.raises(KeyError) as info:
        _train(_config(train_step=step))
    text = str(info.value)
    assert isinstance(info.value, UserError)
    assert "no key 'clases'. Did you mean 'classes'? It has 'data', 'classes', 'seq_idx', 'seq_tag'" in text


def test_error_in_a_step_says_which_sequences() -> None:
    def step(*, data: dict[str, Any], **_kwargs: object) -> None:
        raise ZeroDivisionError("in the user's code")

    with pytest.raises(ZeroDivisionError) as info:
        _train(_config(train_step=step, max_seqs=1))
    if hasattr(info.value, "__notes__"):
        assert "in epoch 1, sequences seq-" in info.value.__notes__[0]
