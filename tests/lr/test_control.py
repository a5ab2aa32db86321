"""LearningRateControl: what all strategies share."""

from __future__ import annotations

import math
from pathlib import Path

import numpy
import pytest

from returnn._state import process_state_ctx
from returnn.errors import ConfigError, DataFileError
from returnn.log import log
from returnn.lr.constant import ConstantLearningRate
from returnn.lr.control import LearningRateControl
from returnn.lr.epoch_data import EpochData
from returnn.lr.newbob import NewbobAbs, NewbobRelative


@pytest.fixture(autouse=True)
def _log() -> None:
    log.initialize(verbosity=[5])  # whatever other tests did


def test_base_class_reads_a_file_and_has_no_rule(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    path.write_text("{1: EpochData(learningRate=0.5, error={'dev_loss_a': 2.0})}\n")
    control = LearningRateControl(default_learning_rate=1.0, filename=str(path))
    assert control.epoch_data[1].error == {"dev_loss_a": 2.0}
    assert control.get_error_key(1) == "dev_loss_a"
    assert control.get_learning_rate_for_epoch(1) == 0.5
    with pytest.raises(NotImplementedError):
        control.get_learning_rate_for_epoch(2)


def test_nested_class_name() -> None:
    assert LearningRateControl.EpochData is EpochData


def test_broken_file_is_named(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    path.write_text("{1: EpochData(")
    with pytest.raises(DataFileError, match=str(path)):
        ConstantLearningRate(default_learning_rate=1.0, filename=str(path))


def test_load_without_file_name() -> None:
    with pytest.raises(ConfigError, match="learning_rate_file"):
        ConstantLearningRate(default_learning_rate=1.0).load()


def test_given_rates_are_in_the_file_from_the_start(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    control = ConstantLearningRate(default_learning_rate=1.0, default_learning_rates=[0.1, 0.2], filename=str(path))
    control.save()
    assert path.read_text() == (
        "{\n1: EpochData(learningRate=0.1, error={}),\n2: EpochData(learningRate=0.2, error={}),\n}\n"
    )


def test_file_wins_over_changed_list_with_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rates"
    path.write_text("{1: EpochData(0.5, {'a': 1.0}), 2: EpochData(None, {'a': 1.0}), 3: EpochData(0, {})}")
    control = ConstantLearningRate(
        default_learning_rate=1.0, default_learning_rates=[0.1, 0.2, 0.3, 0.4], filename=str(path)
    )
    assert [control.get_learning_rate_for_epoch(ep) for ep in (1, 2, 3, 4)] == [0.5, 0.2, 0.3, 0.4]
    assert control.epoch_data[2].error == {"a": 1.0}
    out = capsys.readouterr().out
    assert "other learning rates" in out and "first in epoch 1: 0.5 in the file, 0.1 in the config" in out


def test_no_warning_if_equal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "rates"
    for _ in range(2):
        ConstantLearningRate(default_learning_rate=1.0, default_learning_rates=[0.1, 1 / 3], filename=str(path)).save()
    assert capsys.readouterr().out == ""


def test_warning_for_a_list_that_is_too_short(capsys: pytest.CaptureFixture[str]) -> None:
    control = ConstantLearningRate(default_learning_rate=1.0, default_learning_rates=[0.1, 0.2])
    assert not control.warn_if_learning_rates_end_early(2)
    assert capsys.readouterr().out == ""
    assert control.warn_if_learning_rates_end_early(3)
    assert "learning_rates has 2 entries, but num_epochs is 3" in capsys.readouterr().out
    # A dict is meant as steps, and newbob goes on by its own rule.
    assert not ConstantLearningRate(1.0, default_learning_rates={1: 0.1}).warn_if_learning_rates_end_early(3)
    assert not NewbobAbs(default_learning_rate=1.0, default_learning_rates=[0.1]).warn_if_learning_rates_end_early(3)


def test_stored_rate_none_is_computed() -> None:
    control = ConstantLearningRate(default_learning_rate=0.3)
    control.epoch_data[1] = EpochData(None, {"a": 1.0})
    assert control.get_learning_rate_for_epoch(1) == 0.3
    assert control.epoch_data[1] == EpochData(0.3, {"a": 1.0})


def test_set_epoch_error_forms() -> None:
    control = ConstantLearningRate(default_learning_rate=0.3)
    control.set_epoch_error(2, {"a": numpy.float32(0.5), "b": 3, ":meta:device": "cpu", ":meta:x": {"y": 1}})
    control.set_epoch_error(2, {"dev_score": {"cost:output": 1.0}})
    control.set_epoch_error(2, {"dev_error": {"error:out1": 1.0, "error:out2": 2}})
    data = control.epoch_data[2]
    assert data.learning_rate == 0.3
    assert data.error == {"a": 0.5, "b": 3.0, "dev_score": 1.0, "dev_error_out1": 1.0, "dev_error_out2": 2.0}
    assert all(type(v) is float for v in data.error.values())
    assert data.meta == {"device": "cpu", "x": {"y": 1}}
    with pytest.raises(TypeError, match="score 'a'"):
        control.set_epoch_error(2, {"a": None})


def test_error_key_is_logged_in_epoch_1_only(capsys: pytest.CaptureFixture[str]) -> None:
    control = ConstantLearningRate(default_learning_rate=0.3)
    control.set_epoch_error(1, {"CE": 1.0})
    assert capsys.readouterr().out == "Learning-rate-control: error key 'CE' from {'CE': 1.0}\n"
    control.set_epoch_error(1, {"CE": 1.0, ":meta:device": "cpu"})
    assert capsys.readouterr().out == "Learning-rate-control: error key 'CE' from {'CE': 1.0}\n"
    control.set_epoch_error(2, {"CE": 1.0})
    assert capsys.readouterr().out == ""


def test_get_error_key_without_data() -> None:
    control = LearningRateControl(default_learning_rate=1.0, error_measure_key=["x", "y"])
    assert control.get_error_key(1) == "x"
    control.epoch_data[1] = EpochData(0.1)
    assert control.get_error_key(1) is None
    assert LearningRateControl(default_learning_rate=1.0).get_error_key(1) is None


def test_meta_is_never_a_score() -> None:
    control = LearningRateControl(default_learning_rate=1.0)
    control.epoch_data[1] = EpochData(0.1, {":meta:device": "cpu"})
    assert control.get_error_key(1) is None
    assert control.get_epoch_error_dict(1) == {}


def test_epoch_error_getters() -> None:
    control = LearningRateControl(default_learning_rate=1.0)
    control.epoch_data[1] = EpochData(0.1, {"a": 1.0, "dev_loss_b": 2.0})
    assert control.get_epoch_error_key_value(1) == ("dev_loss_b", 2.0)
    assert control.get_epoch_error_value(1) == 2.0
    assert control.get_epoch_error_dict(7) == {}
    assert control.get_epoch_error_value(7) is None
    assert control.get_epoch_error_key_value(7) == (None, None)


def test_most_recent_learning_rate_and_last_epoch() -> None:
    control = ConstantLearningRate(default_learning_rate=1.0)
    control.epoch_data.update({2: EpochData(0.2), 4: EpochData(None), 6: EpochData(0.6)})
    assert [control.get_most_recent_learning_rate(ep) for ep in (2, 3, 5, 6, 7)] == [1.0, 0.2, 0.2, 0.2, 0.6]
    assert control.get_most_recent_learning_rate(6, exclude_current=False) == 0.6
    assert [control.get_last_epoch(ep) for ep in (1, 2, 3, 6, 9)] == [None, None, 2, 4, 6]


def test_last_best_epoch() -> None:
    control = LearningRateControl(default_learning_rate=1.0)
    for epoch, value in enumerate([3.0, 1.0, 2.0, 1.0, 2.5], 1):
        control.epoch_data[epoch] = EpochData(0.1, {"dev_loss_a": value})
    control.epoch_data[6] = EpochData(0.1)
    assert control.get_last_best_epoch(6) == 2
    assert control.get_last_best_epoch(5, first_epoch=3) == 4
    assert control.get_last_best_epoch(5, only_last_epochs=2) == 4
    assert control.get_last_best_epoch(5, only_last_n=3) == 4
    assert control.get_last_best_epoch(5, filter_score=0.5) is None
    assert control.get_last_best_epoch(5, min_score_dist=2.0) is None
    assert control.get_last_best_epoch(2) is None
    assert control.get_last_best_epoch(0) is None


def test_decay_and_growth_as_int_and_function() -> None:
    control = NewbobAbs(
        default_learning_rate=1,
        min_learning_rate=0.3,
        learning_rate_decay=lambda rate: rate / 2,
        learning_rate_growth=2,
    )
    assert control.calc_learning_rate_decay_or_grow(1.0, decay=True) == 0.5
    assert control.calc_learning_rate_decay_or_grow(0.5, decay=True) == 0.3
    assert control.calc_learning_rate_decay_or_grow(1.0, decay=False) == 2.0
    assert control.calc_learning_rate_decay_or_grow(1.0, decay=False, grow=False) == 1.0
    with pytest.raises(AssertionError):
        control.calc_learning_rate_decay_or_grow(1.0, decay=True, grow=True)


def test_relative_error() -> None:
    control = NewbobRelative(default_learning_rate=1.0)
    control.epoch_data.update(
        {
            1: EpochData(1.0, {"dev_a": 2.0}),
            2: EpochData(0.5, {"dev_a": 1.0}),
            3: EpochData(0.5, {"dev_b": 1.0}),
            4: EpochData(0.5, {"dev_b": 0.0}),
            5: EpochData(0.5, {"dev_b": 0.0}),
        }
    )
    assert control.calc_relative_error(1, 2) == -1.0
    assert control.calc_relative_error(2, 3) is None
    assert control.calc_relative_error(5, 6) is None
    assert control.calc_relative_error(3, 4) == -math.inf
    assert control.calc_relative_error(4, 5) == 0.0
    control.relative_error_div_by_old = True
    assert control.calc_relative_error(1, 2) == -0.5
    control.relative_error_also_relative_to_learning_rate = True
    assert control.calc_relative_error(1, 2) == -1.0


def test_missing_error_measure_warns_once(capsys: pytest.CaptureFixture[str]) -> None:
    control = NewbobAbs(default_learning_rate=1.0, error_measure_key="dev_loss_typo")
    for epoch in (1, 2, 3):
        control.get_learning_rate_for_epoch(epoch)
        control.set_epoch_error(epoch, {"dev_loss_ce": 1.0})
    out = capsys.readouterr().out
    assert out.count("learning_rate_control_error_measure = 'dev_loss_typo'") == 1
    assert "Using 'dev_loss_ce'" in out


def test_save_only_by_the_writer(tmp_path: Path) -> None:
    path = tmp_path / "rates"
    control = ConstantLearningRate(default_learning_rate=1.0, filename=str(path), read_only=True)
    control.save()
    assert not path.exists()
    control.read_only = False
    with process_state_ctx(rank=1):
        control.save()
    assert not path.exists()
    control.save()
    assert path.exists()


def test_text_and_taking_it_over() -> None:
    source = ConstantLearningRate(default_learning_rate=1.0)
    source.epoch_data = {1: EpochData(0.5, {"a": 1.0}), 2: EpochData(0.4, {"a": 2.0, "b": 3.0})}
    control = ConstantLearningRate(default_learning_rate=1.0, default_learning_rates=[0.1])
    control.epoch_data[2] = EpochData(0.7, {"a": 9.0})
    control.update_from_text(source.to_text(), source="x.pt")
    assert control.epoch_data == {1: EpochData(0.5, {"a": 1.0}), 2: EpochData(0.7, {"a": 9.0, "b": 3.0})}
    with pytest.raises(DataFileError, match="x.pt"):
        control.update_from_text("{", source="x.pt")


def test_describe() -> None:
    control = NewbobAbs(default_learning_rate=0.1, filename="rates", error_measure_key="dev_loss_ce")
    assert control.describe() == "NewbobAbs, learning rate 0.1, error key dev_loss_ce, file rates"
    rates = ConstantLearningRate(default_learning_rate=0.1, default_learning_rates=[0.1, 0.2, 0.3, 0.4])
    assert rates.describe() == (
        "ConstantLearningRate, learning rates 0.1 (epoch 1), 0.2 (epoch 2), 0.3 (epoch 3), ..., "
        "no learning_rate_file (scores are only in the log and in the checkpoints)"
    )
