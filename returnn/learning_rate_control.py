"""
Learning-rate control, under its public name: all classes, and their choice by config.

The strategies are in :mod:`returnn.lr`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError, describe
from returnn.lr.constant import ConstantLearningRate
from returnn.lr.control import LearningRateControl
from returnn.lr.epoch_data import EpochData
from returnn.lr.newbob import NewbobAbs, NewbobMultiEpoch, NewbobRelative
from returnn.options.learning_rate import LearningRateOptions
from returnn.options.registry import closest_names

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = [
    "LearningRateControl",
    "EpochData",
    "ConstantLearningRate",
    "NewbobRelative",
    "NewbobAbs",
    "NewbobMultiEpoch",
    "learning_rate_control_type",
    "load_learning_rate_control_from_config",
    "os",  # client code gets it from here
]

_TYPES: Mapping[str, type[LearningRateControl]] = {
    "constant": ConstantLearningRate,
    "newbob": NewbobRelative,
    "newbob_rel": NewbobRelative,
    "newbob_relative": NewbobRelative,
    "newbob_abs": NewbobAbs,
    "newbob_multi_epoch": NewbobMultiEpoch,
}


def learning_rate_control_type(type_name: str) -> type[LearningRateControl]:
    """
    :param type_name: value of the option learning_rate_control
    :return: class
    :raises ConfigError: unknown (it is also an AssertionError)
    """
    if not isinstance(type_name, str) or type_name not in _TYPES:
        similar = closest_names(str(type_name), _TYPES)
        raise ConfigError(
            describe(
                f"unknown learning-rate-control type {type_name!r}",
                where='option "learning_rate_control"',
                todo=f"{f'Did you mean {similar[0]!r}? ' if similar else ''}Known types are {', '.join(_TYPES)}",
            )
        )
    return _TYPES[type_name]


def load_learning_rate_control_from_config(config: Config | Mapping[str, Any]) -> LearningRateControl:
    """
    :param config:
    :return: control of the configured type; its file is read if it exists
    :raises OptionError: an option is invalid
    :raises DataFileError: the learning-rate file is broken
    """
    return learning_rate_control_type(LearningRateOptions.from_config(config).control).load_initial_from_config(config)
