"""EngineBase: datasets and learning-rate control from a config, start epoch, scores, cleanup."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from returnn.config import Config, global_config_ctx
from returnn.engine.base import EngineBase
from returnn.errors import CheckpointError, ConfigError, DataFileError, MissingOptionError
from returnn.lr.epoch_data import EpochData
from tests.engine.checkpoint_files import WHOLE, write_epochs


class Engine(EngineBase):
    """With the suffix of the real one."""

    FILE_POSTFIX = ".pt"


@pytest.fixture(autouse=True)
def _in_tmp_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def _config(**options: Any) -> Config:
    config = Config()
    config.update(options)
    return config


def _data(num_seqs: int = 2) -> dict[str, Any]:
    return {"class": "Task12AXDataset", "num_seqs": num_seqs}


def _models() -> list[str]:
    return sorted(os.listdir("m"))


def test_attributes() -> None:
    engine = EngineBase(_config())
    assert (engine.epoch, engine.model_filename, engine.train_dataset, engine.forward_dataset) == (0, None, None, None)
    assert (engine.eval_datasets, engine.learning_rate, engine.learning_rate_control) == ({}, 0.0, None)
    assert engine.get_epoch_str() == "epoch 0"
    assert EngineBase.FILE_POSTFIX is None
    for method in (engine.train, engine.forward, engine.save_model, EngineBase.get_file_postfix):
        with pytest.raises(NotImplementedError):
            method()
    assert Engine.get_file_postfix() == ".pt"


def test_global_config_is_the_default() -> None:
    config = _config(model="x/y")
    with global_config_ctx(config):
        assert EngineBase().config is config
    with global_config_ctx(None):
        assert isinstance(EngineBase().config, Config)


def test_init_train() -> None:
    config = _config(
        train=_data(5), dev=_data(), eval_datasets={"b": _data(), "a": _data()}, eval=_data(), learning_rate=0.25
    )
    engine = EngineBase(config)
    engine.eval_datasets["old"] = engine.eval_datasets.get("old")  # type: ignore[assignment]
    engine.init_train()
    assert engine.train_dataset is not None and engine.train_dataset.name == "train"
    assert list(engine.eval_datasets) == ["dev", "b", "a", "eval"]
    assert [dataset.name for dataset in engine.eval_datasets.values()] == ["dev", "b", "a", "eval"]
    assert engine.learning_rate_control is not None
    assert engine.learning_rate == 0.25


def test_given_datasets() -> None:
    source = EngineBase(_config(train=_data(), dev=_data(), forward=_data()))
    source.init_train()
    source.init_forward()
    engine = EngineBase(_config())
    engine.init_train(train_data=source.train_dataset, dev_data=source.eval_datasets["dev"])
    engine.init_forward(source.forward_dataset)
    assert engine.train_dataset is source.train_dataset
    assert engine.eval_datasets == {"dev": source.eval_datasets["dev"]}
    assert engine.forward_dataset is source.forward_dataset


def test_missing_datasets() -> None:
    with pytest.raises(MissingOptionError, match='option "train" is not set'):
        EngineBase(_config(dev=_data())).init_train()
    with pytest.raises(AssertionError, match='option "dev" is not set'):
        EngineBase(_config(train=_data())).init_train()
    with pytest.raises(MissingOptionError, match='option "forward" is not set'):
        EngineBase(_config()).init_forward()
    with pytest.raises(MissingOptionError, match='option "dev" is not set'):
        EngineBase(_config()).init_eval()


def test_dev_is_optional_in_the_mainline_dialect() -> None:
    engine = EngineBase(_config(train=_data(), extern_data={}))
    engine.init_train()
    assert engine.eval_datasets == {}


def test_init_eval_needs_no_training_data() -> None:
    engine = EngineBase(_config(eval_datasets={"x": _data()}))
    engine.init_eval()
    assert list(engine.eval_datasets) == ["x"] and engine.train_dataset is None
    assert engine.learning_rate_control is not None


def test_init_forward() -> None:
    engine = EngineBase(_config(forward=_data()))
    engine.init_forward()
    assert engine.forward_dataset is not None and engine.forward_dataset.name == "forward"
    engine = EngineBase(_config(forward_data="dev", dev=_data(7)))
    engine.init_forward()
    assert engine.forward_dataset is not None


def test_broken_learning_rate_file_is_reported_first() -> None:
    Path("rates").write_text("{")
    config = _config(train={"class": "NoSuchDataset"}, dev=_data(), learning_rate_file="rates")
    with pytest.raises(DataFileError, match="'rates'"):
        EngineBase(config).init_train()


def test_short_list_of_rates_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    EngineBase(_config(train=_data(), dev=_data(), learning_rates=[0.1], num_epochs=3)).init_train()
    assert "learning_rates has 1 entries, but num_epochs is 3" in capsys.readouterr().out


def test_epochs_and_names() -> None:
    assert EngineBase.config_get_final_epoch(_config()) == 5
    assert EngineBase.config_get_final_epoch(_config(num_epochs=3, load_epoch=8)) == 8
    assert EngineBase.epoch_model_filename("m/ep", 12) == "m/ep.012"
    engine = EngineBase(_config(model="m/ep"))
    engine.epoch = 3
    assert engine.get_epoch_model_filename() == "m/ep.003"
    assert engine.get_epoch_model_filename(epoch=4) == "m/ep.004"
    assert engine.get_epoch_str() == "epoch 3"
    with pytest.raises(CheckpointError, match='"model" is not set'):
        EngineBase(_config()).get_epoch_model_filename()


def test_get_epoch_model_logs(capsys: pytest.CaptureFixture[str]) -> None:
    config = _config(model="m/ep")
    assert EngineBase.get_existing_models(config) == {}
    assert EngineBase.get_epoch_model(config) == (None, None)
    assert EngineBase.get_train_start_epoch(config) == 1
    assert capsys.readouterr().out == "Using fresh model\n"
    write_epochs(1, 2, 3)
    Path("m/ep.003.pt").write_bytes(WHOLE[:-1])
    assert EngineBase.get_existing_models(config) == {ep: f"m/ep.{ep:03d}" for ep in (1, 2, 3)}
    assert EngineBase.get_epoch_model(config) == (2, "m/ep.002")
    assert EngineBase.get_train_start_epoch(config) == 3
    assert capsys.readouterr().out == (
        "Checkpoint: warning: m/ep.003.pt is broken or only half written; that checkpoint is not used.\n"
        "Using existing model m/ep.002\n"
    )


def test_killed_while_saving_the_first_checkpoint_starts_anew() -> None:
    os.mkdir("m")
    Path("m/ep.001.pt").write_bytes(WHOLE)
    Path("rates").write_text("{1: EpochData(0.1, {'CE': 1.0}), 2: EpochData(0.1, {})}")
    assert EngineBase.get_epoch_model(_config(model="m/ep", learning_rate_file="rates")) == (None, None)
    with pytest.raises(CheckpointError, match="Optimizer file m/ep.001.opt.pt not found"):
        EngineBase.get_epoch_model(_config(model="m/ep"))


def test_other_task_without_model() -> None:
    with pytest.raises(ConfigError, match="No model given but task is not training!"):
        EngineBase.get_epoch_model(_config(task="forward"))


def test_is_dataset_evaluated() -> None:
    engine = EngineBase(_config(train=_data(), dev=_data(), learning_rate_file="rates"))
    assert not engine._is_dataset_evaluated("dev")
    engine.init_train()
    engine.epoch = 1
    control = engine.learning_rate_control
    assert control is not None
    for key in ("dev2_loss_x", "dev_x", "devel", "x"):
        control.epoch_data[1] = EpochData(0.1, {key: 1.0})
        assert not engine._is_dataset_evaluated("dev"), key
        assert engine._is_trained(1)
    for key in ("dev_loss_x", "dev_loss", "dev_score", "dev_score_output/x"):
        control.epoch_data[1] = EpochData(0.1, {key: 1.0})
        assert engine._is_dataset_evaluated("dev"), key
        assert not engine._is_trained(1)
    assert not engine._is_dataset_evaluated("dev", epoch=2)
    assert not engine._is_trained(2)
    control.filename = None
    assert not engine._is_dataset_evaluated("dev")


def test_delete_model() -> None:
    write_epochs(1)
    assert EngineBase.delete_model("m/ep.001") == len(WHOLE)
    assert _models() == ["ep.001.opt.pt"]


def _cleanup_config(**options: Any) -> Config:
    rates = {ep: f"EpochData(0.1, {{'a': {abs(ep - 3)}.0, ':meta:device': 'cpu'}})" for ep in range(1, 7)}
    Path("rates").write_text("{" + ",".join(f"{ep}: {text}" for ep, text in rates.items()) + "}")
    return _config(
        model="m/ep",
        learning_rate_file="rates",
        cleanup_old_models={"keep_last_n": 1, "keep_best_n": 1},
        **{"num_epochs": 6, **options},
    )


def test_cleanup(capsys: pytest.CaptureFixture[str]) -> None:
    write_epochs(1, 2, 3, 4, 5, 6)
    EngineBase(_cleanup_config()).cleanup_old_models()
    assert [name for name in _models() if "opt" not in name] == ["ep.003.pt", "ep.006.pt"]
    assert len([name for name in _models() if "opt" in name]) == 6  # these have their own turn
    out = capsys.readouterr().out
    assert "We will delete the models of epochs [1, 2, 4, 5]." in out
    assert out.splitlines()[-1].startswith("Deleted ") and out.splitlines()[-1].endswith("B.")


@pytest.mark.parametrize("option", [{"extern_data": {}}, {"apply_cleanup_old_models_to_optim_states": True}])
def test_cleanup_with_optimizer_files(option: dict[str, Any]) -> None:
    write_epochs(1, 2, 3, 4, 5, 6)
    os.remove("m/ep.001.opt.pt")
    config = _cleanup_config(**option)
    config.typed_dict["cleanup_old_models"]["keep"] = []
    EngineBase(config).cleanup_old_models()
    assert _models() == ["ep.003.opt.pt", "ep.003.pt", "ep.006.opt.pt", "ep.006.pt"]


def test_cleanup_only_later_epochs(capsys: pytest.CaptureFixture[str]) -> None:
    write_epochs(5, 6)
    EngineBase(_cleanup_config(num_epochs=4)).cleanup_old_models()
    assert len(_models()) == 4
    assert capsys.readouterr().out.splitlines() == [
        "Cannot find any stored models to clean up.",
        "There are checkpoints of later epochs, up to 6; num_epochs is 4. Raise num_epochs to include them.",
    ]


def test_cleanup_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    write_epochs(1, 2, 3, 4, 5, 6)
    EngineBase(_cleanup_config(dry_run=True)).cleanup_old_models()
    assert len(_models()) == 12
    assert "Dry-run, will not delete models." in capsys.readouterr().out


@pytest.mark.parametrize(("answer", "num_left"), [("no", 6), ("yes", 2)])
def test_cleanup_with_question(answer: str, num_left: int, monkeypatch: pytest.MonkeyPatch) -> None:
    write_epochs(1, 2, 3, 4, 5, 6)
    monkeypatch.setattr("builtins.input", lambda *_args: answer)
    engine = EngineBase(_cleanup_config(task="cleanup_old_models"))
    if answer == "no":
        with pytest.raises(SystemExit):
            engine.cleanup_old_models(ask_for_confirmation=True)
    else:
        engine.cleanup_old_models(ask_for_confirmation=True)
    assert len([name for name in _models() if "opt" not in name]) == num_left


def test_prune_optimizer_files() -> None:
    write_epochs(1, 2, 3, 4)
    engine = EngineBase(_config(model="m/ep", apply_cleanup_old_models_to_optim_states=True))
    engine.epoch = 4
    engine.prune_optimizer_files()
    assert len(_models()) == 8
    engine = EngineBase(_config(model="m/ep", dry_run=True))
    engine.epoch = 4
    engine.prune_optimizer_files()
    assert len(_models()) == 8
    engine = EngineBase(_config(model="m/ep"))
    engine.epoch = 4
    engine.prune_optimizer_files()
    assert [name for name in _models() if "opt" in name] == ["ep.003.opt.pt", "ep.004.opt.pt"]


def test_pattern_of_custom_engines() -> None:
    class CustomEngine(Engine):
        def init_train(self, train_data: Any = None, dev_data: Any = None) -> None:
            super(Engine, self).init_train(train_data=train_data, dev_data=dev_data)

    engine = CustomEngine(config=_config(train=_data(), dev=_data()))
    engine.init_train()
    assert list(engine.eval_datasets) == ["dev"]


def test_custom_engine_with_own_optimizer_files() -> None:
    class TwoOptimizers(Engine):
        def _save_optimizer(self) -> None:
            raise NotImplementedError

    os.mkdir("m")
    for name in ("ep.001.pt", "ep.001.gen.opt.pt", "ep.001.disc.opt.pt"):
        Path("m", name).write_bytes(WHOLE)
    config = _config(model="m/ep")
    assert TwoOptimizers.get_epoch_model(config) == (1, "m/ep.001")
    with pytest.raises(CheckpointError):
        Engine.get_epoch_model(config)
