"""returnn.learning_rate_control: golden schedules and error keys, choice by config, public names."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import returnn.learning_rate_control as lrc
from returnn.config import Config
from returnn.errors import ConfigError

GOLDEN = Path(__file__).parent / "golden" / "06-engine"
SCHEDULES = json.loads((GOLDEN / "lr_schedules.json").read_text())


def _config(options: dict[str, Any]) -> Config:
    config = Config()
    options = dict(options)
    if isinstance(options.get("learning_rates"), dict):
        options["learning_rates"] = {int(epoch): rate for epoch, rate in options["learning_rates"].items()}
    config.update(options)
    return config


def _run(control: lrc.LearningRateControl, errors: list[float]) -> list[float]:
    rates = []
    for epoch, error in enumerate(errors, 1):
        rates.append(control.get_learning_rate_for_epoch(epoch))
        control.set_epoch_error(epoch, {"CE": 0.9 * error})
        control.set_epoch_error(epoch, {"dev_loss_CE": error})
        control.save()
    rates.append(control.get_learning_rate_for_epoch(len(errors) + 1))
    return rates


@pytest.mark.parametrize("name", SCHEDULES["cases"])
def test_golden_schedules(name: str) -> None:
    case = SCHEDULES["cases"][name]
    for errors_key, rates_key in (("dev_errors_per_epoch", "lrs"), ("dev_errors_b_per_epoch", "lrs_b")):
        control = lrc.load_learning_rate_control_from_config(_config(case["config"]))
        assert type(control).__name__ == case["class"]
        assert _run(control, SCHEDULES[errors_key]) == case[rates_key]


@pytest.mark.parametrize("name", SCHEDULES["cases"])
def test_golden_schedules_with_a_restart_after_each_epoch(name: str, tmp_path: Path) -> None:
    case = SCHEDULES["cases"][name]
    config = _config({**case["config"], "learning_rate_file": str(tmp_path / "rates")})
    rates = []
    errors = SCHEDULES["dev_errors_per_epoch"]
    for epoch, error in enumerate(errors, 1):
        control = lrc.load_learning_rate_control_from_config(config)
        rates.append(control.get_learning_rate_for_epoch(epoch))
        control.set_epoch_error(epoch, {"CE": 0.9 * error, "dev_loss_CE": error})
        control.save()
    rates.append(lrc.load_learning_rate_control_from_config(config).get_learning_rate_for_epoch(len(errors) + 1))
    assert rates == case["lrs"]


@pytest.mark.parametrize("row", json.loads((GOLDEN / "lr_error_key.json").read_text()), ids=str)
def test_golden_error_keys(row: list[Any]) -> None:
    measure, keys, expected = row
    control = lrc.LearningRateControl(default_learning_rate=1.0, error_measure_key=measure)
    control.epoch_data[1] = lrc.LearningRateControl.EpochData(0.1, dict.fromkeys(keys, 1.0))
    assert control.get_error_key(1) == expected


@pytest.mark.parametrize(
    ("name", "cls"),
    [
        ("constant", lrc.ConstantLearningRate),
        ("newbob", lrc.NewbobRelative),
        ("newbob_rel", lrc.NewbobRelative),
        ("newbob_relative", lrc.NewbobRelative),
        ("newbob_abs", lrc.NewbobAbs),
        ("newbob_multi_epoch", lrc.NewbobMultiEpoch),
    ],
)
def test_types(name: str, cls: type[lrc.LearningRateControl]) -> None:
    assert lrc.learning_rate_control_type(name) is cls
    assert type(cls.load_initial_from_config(_config({"learning_rate_control": "whatever"}))) is cls


def test_unknown_type() -> None:
    with pytest.raises(AssertionError, match="unknown learning-rate-control type"):
        lrc.learning_rate_control_type("newbob_typo")
    with pytest.raises(ConfigError, match="Did you mean 'newbob_abs'\\? Known types are constant, newbob,"):
        lrc.learning_rate_control_type("newbob_asb")
    with pytest.raises(ConfigError, match="learning_rate_control"):
        lrc.load_learning_rate_control_from_config(_config({"learning_rate_control": 5}))


def test_names_for_star_import() -> None:
    names: dict[str, Any] = {}
    exec("from returnn.learning_rate_control import *", names)
    for name in (
        "LearningRateControl",
        "NewbobRelative",
        "NewbobMultiEpoch",
        "load_learning_rate_control_from_config",
        "os",
    ):
        assert name in names


def test_dry_run_reads_but_does_not_write(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    path.write_text("{1: EpochData(0.5, {})}")
    config = _config({"dry_run": True, "learning_rate_file": str(path)})
    control = lrc.load_learning_rate_control_from_config(config)
    assert control.get_learning_rate_for_epoch(1) == 0.5
    control.set_epoch_error(1, {"a": 1.0})
    control.save()
    assert path.read_text() == "{1: EpochData(0.5, {})}"


def test_plain_dict_as_config() -> None:
    assert lrc.load_learning_rate_control_from_config({"learning_rate": 0.25}).get_learning_rate_for_epoch(1) == 0.25


_errors = st.lists(
    st.dictionaries(st.sampled_from(["CE", "dev_loss_a", "dev_loss_b"]), st.floats(width=32), max_size=3),
    min_size=1,
    max_size=8,
)


@settings(max_examples=60, deadline=None)
@given(
    _errors,
    st.sampled_from(["constant", "newbob", "newbob_abs", "newbob_multi_epoch"]),
    st.lists(st.floats(1e-6, 1.0), max_size=3),
    st.integers(0, 3),
    st.booleans(),
    st.booleans(),
)
def test_restarts_never_change_the_rates(
    errors: list[dict[str, float]], kind: str, rates: list[float], min_epochs: int, relative_lr: bool, by_old: bool
) -> None:
    options: dict[str, Any] = {
        "learning_rate_control": kind,
        "learning_rate": 0.1,
        "learning_rates": rates,
        "learning_rate_control_min_num_epochs_per_new_lr": min_epochs,
        "learning_rate_control_relative_error_relative_lr": relative_lr,
        "newbob_relative_error_div_by_old": by_old,
        "newbob_multi_num_epochs": 2,
        "newbob_multi_update_interval": 1,
        "learning_rate_growth": 1.1,
        "min_learning_rate": 0.001,
    }
    with tempfile.TemporaryDirectory() as folder:
        restarted_options = {**options, "learning_rate_file": os.path.join(folder, "rates")}
        control = lrc.load_learning_rate_control_from_config(options)
        for epoch, error in enumerate(errors, 1):
            restarted = lrc.load_learning_rate_control_from_config(restarted_options)
            assert control.get_learning_rate_for_epoch(epoch) == restarted.get_learning_rate_for_epoch(epoch)
            for c in (control, restarted):
                c.set_epoch_error(epoch, error)
            restarted.save()
            assert control.to_text() == Path(restarted_options["learning_rate_file"]).read_text()
