"""EpochData: both constructor forms, old format, meta entries."""

from __future__ import annotations

import numpy
import pytest

from returnn.lr.epoch_data import EpochData


def test_both_forms_give_the_same() -> None:
    error = {"dev_loss_ce": 1.5}
    forms = [
        EpochData(0.1, error),
        EpochData(learningRate=0.1, error=error),
        EpochData(learning_rate=0.1, error=error),
        EpochData(learning_rate=0.1, error=error, meta={}),
    ]
    for form in forms:
        assert form == forms[0]
        assert form.learning_rate == form.learningRate == 0.1
        assert form.error == error and form.error is not error
        assert form.meta == {}


def test_exactly_one_learning_rate() -> None:
    with pytest.raises(TypeError, match="exactly one"):
        EpochData()
    with pytest.raises(TypeError, match="exactly one"):
        EpochData(0.1, learning_rate=0.2)


def test_unknown_rate_is_none() -> None:
    assert EpochData(None).learning_rate is None
    assert EpochData(learningRate=None, error=None).error == {}


def test_alias_can_be_set() -> None:
    data = EpochData(0.1)
    data.learningRate = 0.5
    assert data.learning_rate == 0.5


def test_number_is_old_format() -> None:
    assert EpochData(0.1, 3).error == {"old_format_score": 3.0}


def test_meta_entries_are_split_off() -> None:
    data = EpochData(0.1, {":meta:device": "cpu", ":meta:distributed": None, "a": 1})
    assert data.error == {"a": 1.0}
    assert data.meta == {"device": "cpu", "distributed": None}
    assert data.error_with_meta() == {":meta:device": "cpu", ":meta:distributed": None, "a": 1.0}


def test_numpy_scalars_become_plain_floats() -> None:
    data = EpochData(numpy.float64(0.1), {"a": numpy.float32(0.5), "b": numpy.int64(2)})
    assert [type(v) for v in (data.learning_rate, *data.error.values())] == [float] * 3


def test_score_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="score 'a': expected a number, got 'x'"):
        EpochData(0.1, {"a": "x"})
