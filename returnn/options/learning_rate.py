"""Options of the learning rate and its control."""

from __future__ import annotations

import ast
import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.checkpoint import should_write_to_disk
from returnn.options.registry import Option, declare, read
from returnn.options.values import read_bool, read_float, read_int, read_path, to_float

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["LearningRateOptions"]

declare(
    Option(
        "learning_rate",
        "float",
        1.0,
        "Base learning rate.",
        tasks=("train",),
    ),
    Option(
        "min_learning_rate",
        "float",
        0.0,
        "The learning-rate control does not lower the rate below this.",
        tasks=("train",),
    ),
    Option(
        "learning_rates",
        "list[float] | dict[int, float] | None",
        None,
        "Rates by epoch; a list starts at epoch 1. Rates stored in learning_rate_file win.",
        tasks=("train",),
    ),
    Option(
        "learning_rate_file",
        "str | None",
        None,
        "File that keeps learning rates and scores of all epochs; without it, a restart forgets them.",
        tasks=("train", "eval", "cleanup_old_models"),
    ),
    Option(
        "learning_rate_control",
        "str",
        "constant",
        'Strategy: "constant", "newbob_rel" (= "newbob", "newbob_relative"), "newbob_abs" or "newbob_multi_epoch".',
        tasks=("train",),
    ),
    Option(
        "learning_rate_control_error_measure",
        "str | list[str] | None",
        None,
        "Key of the score that the control looks at, e.g. dev_loss_ce; default: the first dev_* key.",
        tasks=("train",),
    ),
    Option(
        "learning_rate_control_relative_error_relative_lr",
        "bool",
        False,
        "Divide relative errors by (current rate / learning_rate): a smaller rate is expected to improve less.",
        tasks=("train",),
    ),
    Option(
        "learning_rate_control_min_num_epochs_per_new_lr",
        "int",
        0,
        "Keep a new learning rate for at least that many epochs.",
        tasks=("train",),
    ),
    Option(
        "learning_rate_decay",
        "float | callable(learning_rate) -> float",
        0.5,
        "Factor when the control lowers the rate.",
        aliases=("newbob_learning_rate_decay",),
        tasks=("train",),
    ),
    Option(
        "learning_rate_growth",
        "float | callable(learning_rate) -> float",
        1.0,
        "Factor when the control does not lower the rate.",
        aliases=("newbob_learning_rate_growth",),
        tasks=("train",),
    ),
    Option(
        "newbob_relative_error_threshold",
        "float",
        -0.01,
        "newbob_rel, newbob_multi_epoch: lower the rate if the relative change of the error is above this.",
        tasks=("train",),
    ),
    Option(
        "newbob_relative_error_grow_threshold",
        "float | None",
        None,
        "newbob_multi_epoch: grow the rate if the relative change is below this; default: newbob_relative_error_threshold.",
        tasks=("train",),
    ),
    Option(
        "newbob_error_threshold",
        "float",
        -0.01,
        "newbob_abs: lower the rate if the change of the error is above this.",
        tasks=("train",),
    ),
    Option(
        "newbob_multi_num_epochs",
        "int",
        5,
        "newbob_multi_epoch: number of epochs to average over.",
        tasks=("train",),
    ),
    Option(
        "newbob_multi_update_interval",
        "int | None",
        None,
        "newbob_multi_epoch: change the rate only each so many epochs; default: newbob_multi_num_epochs.",
        tasks=("train",),
    ),
    Option(
        "newbob_relative_error_div_by_old",
        "bool",
        False,
        "Relative to the old instead of the new error.",
        aliases=("relative_error_div_by_old",),
        tasks=("train",),
    ),
    Option(
        "use_learning_rate_control_always",
        "bool",
        None,
        "Without meaning here (TensorFlow pretraining).",
        status="ignored",
    ),
    Option("check_learning_rates", "bool", None, "Without meaning here (a demo program of a peer).", status="ignored"),
    Option(
        "pretrain_learning_rate", "float", None, "Without meaning here (a demo program of a peer).", status="ignored"
    ),
)


@dataclasses.dataclass(frozen=True)
class LearningRateOptions:
    """All options of the learning-rate control, checked."""

    control: Any  # checked by learning_rate_control_type
    learning_rate: float
    min_learning_rate: float
    learning_rates: list[float] | dict[int, float] | None
    filename: str | None
    error_measure: str | list[str] | None
    relative_error_relative_lr: bool
    min_num_epochs_per_new_lr: int
    decay: float | Callable[[float], float]
    growth: float | Callable[[float], float]
    newbob_relative_error_threshold: float
    newbob_relative_error_grow_threshold: float
    newbob_error_threshold: float
    newbob_multi_num_epochs: int
    newbob_multi_update_interval: int
    relative_error_div_by_old: bool
    write_to_disk: bool

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> LearningRateOptions:
        """
        :param config:
        :raises OptionError: a value is invalid
        """
        threshold = read_float(config, "newbob_relative_error_threshold")
        num_epochs = read_int(config, "newbob_multi_num_epochs", minimum=1)
        return cls(
            control=read(config, "learning_rate_control"),
            learning_rate=read_float(config, "learning_rate"),
            min_learning_rate=read_float(config, "min_learning_rate"),
            learning_rates=_learning_rates(read(config, "learning_rates")),
            filename=read_path(config, "learning_rate_file", example="learning_rates"),
            error_measure=_error_measure(read(config, "learning_rate_control_error_measure")),
            relative_error_relative_lr=read_bool(config, "learning_rate_control_relative_error_relative_lr"),
            min_num_epochs_per_new_lr=read_int(config, "learning_rate_control_min_num_epochs_per_new_lr", minimum=0),
            decay=_factor(config, "learning_rate_decay"),
            growth=_factor(config, "learning_rate_growth"),
            newbob_relative_error_threshold=threshold,
            newbob_relative_error_grow_threshold=read_float(
                config, "newbob_relative_error_grow_threshold", if_none=threshold
            ),
            newbob_error_threshold=read_float(config, "newbob_error_threshold"),
            newbob_multi_num_epochs=num_epochs,
            newbob_multi_update_interval=read_int(
                config, "newbob_multi_update_interval", minimum=0, if_none=num_epochs
            ),
            relative_error_div_by_old=read_bool(config, "newbob_relative_error_div_by_old"),
            write_to_disk=should_write_to_disk(config),
        )


# Any below: raw option values of any type.


def _factor(config: Config | Mapping[str, Any], name: str) -> float | Callable[[float], float]:
    value = read(config, name)
    if callable(value):
        return value  # type: ignore[no-any-return]
    res = to_float(value)
    if res is None or math.isnan(res):
        raise OptionError(
            name, expected="a number or a function of the learning rate", got=value, todo=f"Set e.g. {name} = 0.9"
        )
    return res


def _error_measure(value: Any) -> str | list[str] | None:
    if value is None or isinstance(value, str):
        return value or None
    if isinstance(value, (list, tuple)) and all(isinstance(v, str) for v in value):
        return list(value) or None
    raise OptionError(
        "learning_rate_control_error_measure", expected="str or list of str", got=value, todo='Set e.g. "dev_loss_ce"'
    )


def _learning_rates(value: Any) -> list[float] | dict[int, float] | None:
    expected = "list of numbers, or dict epoch -> number"
    todo = "Set e.g. learning_rates = [0.001] * 10 + [0.0005]"
    original = value
    if isinstance(value, str):
        try:
            value = ast.literal_eval(value.strip() or "None")
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            raise OptionError(
                "learning_rates", expected=f"{expected}, written as a literal", got=original, todo=todo
            ) from None
    if value is None:
        return None
    if isinstance(value, Mapping):
        rates = {epoch: to_float(rate) for epoch, rate in value.items()}
        good = all(hasattr(ep, "__index__") and not isinstance(ep, bool) and int(ep) >= 1 for ep in rates)
        if good and _all_rates(rates.values()):
            return {int(epoch): float(rate) for epoch, rate in rates.items() if rate is not None}
    elif not isinstance(value, (str, bytes)) and hasattr(value, "__iter__"):
        values = [to_float(rate) for rate in value]
        if _all_rates(values):
            return [rate for rate in values if rate is not None]
    raise OptionError("learning_rates", expected=expected, got=original, todo=todo)


def _all_rates(values: Any) -> bool:
    return all(value is not None and math.isfinite(value) for value in values)
