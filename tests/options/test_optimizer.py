"""Tests of the options of the optimizer, gradients and mixed precision."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy
import pytest

from returnn.config import Config
from returnn.errors import ConfigError, NotSupportedError, OptionError
from returnn.options.optimizer import AmpOptions, OptimizerOptions, read_optimizer


def test_defaults() -> None:
    assert OptimizerOptions.from_config({}) == OptimizerOptions()
    assert OptimizerOptions.from_config(Config({})) == OptimizerOptions()
    assert AmpOptions.from_config({}) is None


def test_norm_of_gradients() -> None:
    values = [OptimizerOptions.from_config({"log_grad_norm": v}).log_grad_norm for v in (True, False, None, 1, 2.5)]
    assert values == [2.0, None, None, 1.0, 2.5]


def test_learning_rate_function() -> None:
    def func(*, learning_rate: float, **_kwargs: object) -> float:
        return learning_rate

    assert OptimizerOptions.from_config({"dynamic_learning_rate": func}).dynamic_learning_rate is func
    with pytest.raises(OptionError, match=r"a function with \*\*kwargs, .* Add \*\*_kwargs to its arguments"):
        OptimizerOptions.from_config({"dynamic_learning_rate": lambda *, learning_rate: learning_rate})


def test_zero_is_off() -> None:
    opts = OptimizerOptions.from_config({"gradient_clip": 0.0, "gradient_clip_global_norm": 0, "gradient_noise": None})
    assert (opts.gradient_clip, opts.gradient_clip_norm, opts.gradient_noise) == (None, None, 0.0)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("gradient_clip", -1),
        ("gradient_clip", "one"),
        ("gradient_clip_norm", True),
        ("gradient_clip_norm", float("nan")),
        ("gradient_clip_norm", float("inf")),
        ("gradient_noise", [1]),
        ("accum_grad_multiple_step", 0),
        ("accum_grad_multiple_step", 1.5),
        ("accum_grad_multiple_step", True),
        ("accum_grad_leftover", "keep"),
        ("gradient_clip_norm_invalid_gradient_threshold", 0),
        ("num_allowed_consec_invalid_gradient_steps", -1),
        ("decouple_constraints", False),
        ("log_grad_norm", 0),
        ("log_grad_norm", -1),
        ("log_grad_norm", "all"),
        ("dynamic_learning_rate", 0.1),
        ("dynamic_learning_rate", lambda learning_rate: learning_rate),
        ("accum_grad_multiple_step", lambda epoch: 1),
    ],
)
def test_wrong_values(name: str, value: object) -> None:
    with pytest.raises(OptionError, match=f'option "{name}" is invalid: expected .*, got '):
        OptimizerOptions.from_config({name: value})


@pytest.mark.parametrize(
    "name",
    [
        "gradient_clip_avg_norm",
        "global_norm_tag",
        "gradient_clip_global_norm_tag",
        "grad_norm_to_clip_to_zero",
        "maximize_grad_norm",
        "debug_grad_summaries",
        "gradient_nan_inf_filter",
        "grad_clip",
    ],
)
def test_refused(name: str) -> None:
    OptimizerOptions.from_config({name: 0.0})  # the default of the peer
    error = ConfigError if name == "grad_clip" else NotSupportedError
    with pytest.raises(error, match=f'option "{name}" is not supported. Instead: '):
        OptimizerOptions.from_config({name: 1.0})


def test_limits_for_invalid_gradients() -> None:
    opts = OptimizerOptions.from_config({"num_allowed_consec_invalid_gradient_steps": 4})
    assert (opts.invalid_gradient_threshold, opts.invalid_gradients_per_epoch) == (5, True)
    both = {"num_allowed_consec_invalid_gradient_steps": 4, "gradient_clip_norm_invalid_gradient_threshold": 5}
    assert OptimizerOptions.from_config(both).invalid_gradient_threshold == 5


def test_values_of_other_types() -> None:
    """As the getters of the config convert them."""
    config = Config({"gradient_clip_norm": "0.5", "accum_grad_multiple_step": numpy.int64(3)})
    config.add_line("gradient_clip", "2")
    opts = OptimizerOptions.from_config(config)
    assert (opts.gradient_clip_norm, opts.accum_grad_multiple_step, opts.gradient_clip) == (0.5, 3, 2.0)
    assert type(opts.accum_grad_multiple_step) is int


def test_optimizer_is_required() -> None:
    with pytest.raises(
        ValueError, match='option "optimizer" is not set, but needed for training. Set e.g. optimizer = {"class"'
    ):
        read_optimizer({})


@pytest.mark.parametrize(
    ("config", "expected"),
    [
        ({"torch_amp_options": {"dtype": "bfloat16"}}, AmpOptions("bfloat16", None)),
        ({"torch_amp": "bfloat16"}, AmpOptions("bfloat16", None)),
        ({"torch_amp": "float16"}, AmpOptions("float16", {})),
        ({"torch_amp": {"dtype": "float16", "grad_scaler": None}}, AmpOptions("float16", None)),
        ({"torch_amp": "float16", "grad_scaler": None}, AmpOptions("float16", None)),
        ({"torch_amp": "bfloat16", "grad_scaler": {"init_scale": 2.0}}, AmpOptions("bfloat16", {"init_scale": 2.0})),
        ({"torch_amp_options": None}, None),
    ],
)
def test_mixed_precision(config: dict[str, Any], expected: AmpOptions | None) -> None:
    assert AmpOptions.from_config(config) == expected


@pytest.mark.parametrize(
    "value", ["float32", {"dtype": "half"}, {}, {"dtype": "float16", "scaler": None}, 3, {"grad_scaler": {}}]
)
def test_wrong_mixed_precision(value: object) -> None:
    with pytest.raises(AssertionError, match="torch_amp_options"):
        AmpOptions.from_config({"torch_amp": value})


def test_wrong_scaler() -> None:
    with pytest.raises(OptionError, match="grad_scaler"):
        AmpOptions.from_config({"torch_amp": "float16", "grad_scaler": 3})


def test_contradicting_names() -> None:
    with pytest.raises(ConfigError, match="torch_amp_options.*torch_amp.*differ"):
        AmpOptions.from_config({"torch_amp": "float16", "torch_amp_options": {"dtype": "bfloat16"}})


def test_no_torch_needed() -> None:
    code = "import sys, returnn.options.optimizer, returnn.options.loading; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=60, check=False).returncode == 0
