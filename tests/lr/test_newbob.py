"""The newbob strategies: cases beyond the golden schedules of tests/test_learning_rate_control.py."""

from __future__ import annotations

import math

from returnn.lr.epoch_data import EpochData
from returnn.lr.newbob import NewbobAbs, NewbobMultiEpoch, NewbobRelative


def test_no_scores_keep_the_rate() -> None:
    control = NewbobRelative(default_learning_rate=0.1, learning_rate_decay=0.5)
    assert [control.get_learning_rate_for_epoch(ep) for ep in (1, 2, 3, 4)] == [0.1] * 4


def test_rate_none_of_last_epoch_gives_default() -> None:
    control = NewbobAbs(default_learning_rate=0.1)
    control.epoch_data[1] = EpochData(None, {"dev_a": 1.0})
    assert control.get_learning_rate_for_epoch(2) == 0.1


def test_different_keys_are_not_compared() -> None:
    control = NewbobAbs(default_learning_rate=0.1, learning_rate_decay=0.5)
    control.epoch_data.update({1: EpochData(0.1, {"dev_a": 1.0}), 2: EpochData(0.1, {"dev_b": 9.0})})
    assert control.get_learning_rate_for_epoch(3) == 0.1


def test_nan_does_not_decay() -> None:
    control = NewbobAbs(default_learning_rate=0.1, learning_rate_decay=0.5)
    control.epoch_data.update({1: EpochData(0.1, {"dev_a": 1.0}), 2: EpochData(0.1, {"dev_a": math.nan})})
    assert control.get_learning_rate_for_epoch(3) == 0.1


def test_threshold_is_exclusive() -> None:
    control = NewbobAbs(error_threshold=-0.5, default_learning_rate=1.0, learning_rate_decay=0.5)
    control.epoch_data.update({1: EpochData(1.0, {"dev_a": 1.0}), 2: EpochData(1.0, {"dev_a": 0.5})})
    assert control.get_learning_rate_for_epoch(3) == 1.0


def test_multi_epoch_defaults() -> None:
    control = NewbobMultiEpoch(default_learning_rate=1.0)
    assert (control.num_epochs, control.update_interval) == (5, 5)
    assert control.relative_error_grow_threshold == control.relative_error_threshold == -0.01
    assert NewbobMultiEpoch(num_epochs=3, update_interval=1, default_learning_rate=1.0).update_interval == 1


def test_multi_epoch_needs_all_scores() -> None:
    control = NewbobMultiEpoch(num_epochs=2, update_interval=1, default_learning_rate=1.0, learning_rate_decay=0.5)
    control.epoch_data.update({1: EpochData(1.0, {"dev_a": 1.0}), 2: EpochData(1.0), 3: EpochData(1.0, {"dev_a": 9.0})})
    assert control.get_learning_rate_for_epoch(4) == 1.0


def test_multi_epoch_only_at_the_interval() -> None:
    control = NewbobMultiEpoch(num_epochs=2, update_interval=3, default_learning_rate=1.0, learning_rate_decay=0.5)
    rates = []
    for epoch in range(1, 9):
        rates.append(control.get_learning_rate_for_epoch(epoch))
        control.epoch_data[epoch].error["dev_a"] = 1.0
    assert rates == [1.0, 1.0, 1.0, 0.5, 0.5, 0.5, 0.25, 0.25]
