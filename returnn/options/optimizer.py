"""Options of the optimizer, of gradient handling and of mixed precision."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal, cast

from returnn.errors import ConfigError, MissingOptionError, NotSupportedError, OptionError
from returnn.options.registry import Option, declare, is_given, read
from returnn.options.values import check_takes_any_keyword, read_int, to_float

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["AmpOptions", "OptimizerOptions", "LEFTOVER_MODES", "OPTIMIZER_EXAMPLE", "read_optimizer"]

#: What to do at the end of an epoch with gradients of an incomplete accumulation group.
LEFTOVER_MODES = ("carry", "drop", "flush")
OPTIMIZER_EXAMPLE = 'optimizer = {"class": "adamw", "weight_decay": 0.01}'
_TRAIN = ("train", "initialize_model")
#: Updates with invalid gradients in succession that end the training, if nothing is configured.
_DEFAULT_INVALID_THRESHOLD = 3

declare(
    Option(
        "optimizer",
        "dict | Optimizer | callable",
        None,
        'Optimizer: a dict with "class" (name in torch.optim, any case; dotted name; class) and the arguments of its constructor.',
        tasks=_TRAIN,
    ),
    Option("gradient_clip", "float | None", None, "Clip each gradient entry to this absolute value.", tasks=_TRAIN),
    Option(
        "gradient_clip_norm",
        "float | None",
        None,
        "Scale the gradients such that their total 2-norm is at most this.",
        aliases=("gradient_clip_global_norm",),
        tasks=_TRAIN,
    ),
    Option(
        "gradient_clip_norm_invalid_gradient_threshold",
        "int",
        _DEFAULT_INVALID_THRESHOLD,
        "Updates with inf/nan gradients are skipped; that many of them in succession end the training (also without gradient_clip_norm).",
        tasks=_TRAIN,
    ),
    Option(
        "num_allowed_consec_invalid_gradient_steps",
        "int | None",
        None,
        "That many updates in succession within an epoch may have inf/nan gradients; one more ends the training.",
        tasks=_TRAIN,
    ),
    Option(
        "gradient_noise",
        "float",
        0.0,
        "Standard deviation of the normal noise, cut off at two standard deviations, that is added to the gradients before clipping.",
        tasks=_TRAIN,
    ),
    Option(
        "accum_grad_multiple_step",
        "int | callable(epoch=, epoch_continuous=, global_train_step=, **kwargs) -> int",
        1,
        "Sum the gradients of that many batches for one update.",
        tasks=_TRAIN,
    ),
    Option(
        "accum_grad_leftover",
        '"carry" | "drop" | "flush"',
        None,
        "Gradients of an incomplete group at the end of an epoch: added to the first group of the next epoch (carry; default of "
        "Mini-RETURNN configs), thrown away (drop; default of configs with extern_data), or applied as they are (flush).",
        tasks=_TRAIN,
    ),
    Option(
        "decouple_constraints",
        "bool",
        True,
        "Only True is possible: weight decay belongs to the optimizer.",
        tasks=_TRAIN,
    ),
    Option(
        "torch_amp_options",
        '"float16" | "bfloat16" | dict(dtype, grad_scaler)',
        None,
        "Automatic mixed precision: the steps run under autocast with that dtype.",
        aliases=("torch_amp",),
        tasks=("train", "eval", "initialize_model"),
    ),
    Option(
        "grad_scaler",
        "dict | None",
        None,
        "Arguments of torch.amp.GradScaler; None: no scaler. Default with mixed precision: a scaler for float16, none for bfloat16.",
        tasks=_TRAIN,
    ),
    Option(
        "updater",
        "dict",
        None,
        "Not read here: custom engines keep the options of several optimizers in it.",
        status="ignored",
    ),
    Option(
        "log_grad_norm",
        "bool | float",
        False,
        "Report the norm of the gradients of each update, of that order (True: 2), before clipping, as the loss grad_norm:p2.",
        tasks=_TRAIN,
    ),
    Option(
        "dynamic_learning_rate",
        "callable(global_train_step=, epoch=, epoch_continuous=, learning_rate=, **kwargs) -> float",
        None,
        "Learning rate of each step; learning_rate is that of the epoch, epoch_continuous the number of epochs done (None: unknown).",
        tasks=_TRAIN,
    ),
)

#: Refused options and what to use instead.
_REFUSED = {
    "gradient_clip_avg_norm": "gradient_clip_norm limits the total norm of all gradients",
    "global_norm_tag": "gradient_clip_norm uses the norm over all parameters; use several optimizers in a CustomEngine for groups",
    "gradient_clip_global_norm_tag": "gradient_clip_norm uses the norm over all parameters",
    "grad_norm_to_clip_to_zero": "updates with inf/nan gradients are skipped anyway; use gradient_clip_norm for large ones",
    "maximize_grad_norm": "add the term to the loss in train_step",
    "debug_grad_summaries": "inspect the gradients in train_step, e.g. with torch.Tensor.register_hook",
    "gradient_nan_inf_filter": "updates with inf/nan gradients are skipped as a whole, see gradient_clip_norm_invalid_gradient_threshold",
    "grad_clip": "gradient_clip (by value) or gradient_clip_norm (by norm)",
}
declare(
    *(
        Option(name, "any", None, "Of other implementations; refused when set.", status="refused", instead=instead)
        for name, instead in _REFUSED.items()
    )
)


def read_optimizer(config: Config | Mapping[str, Any]) -> Any:
    """
    :param config:
    :return: the value of the option ``optimizer`` as given. Any: dict, Optimizer or callable, see :mod:`returnn.torch.optim.factory`
    :raises MissingOptionError: not set (also a ValueError)
    """
    value = read(config, "optimizer")
    if value is None:
        raise MissingOptionError("optimizer", needed_for="training", todo=f"Set e.g. {OPTIMIZER_EXAMPLE}")
    return value


@dataclasses.dataclass(frozen=True)
class OptimizerOptions:
    """How gradients become updates."""

    gradient_clip: float | None = None
    gradient_clip_norm: float | None = None
    gradient_noise: float = 0.0
    # That many invalid updates in succession end the training. None: never.
    invalid_gradient_threshold: int | None = _DEFAULT_INVALID_THRESHOLD
    # Whether "in succession" starts anew with each epoch.
    invalid_gradients_per_epoch: bool = False
    accum_grad_multiple_step: int | Callable[..., int] = 1
    # None: by dialect.
    accum_grad_leftover: Literal["carry", "drop", "flush"] | None = None
    # Order of the norm that is reported. None: none is.
    log_grad_norm: float | None = None
    dynamic_learning_rate: Callable[..., float] | None = None

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> OptimizerOptions:
        """
        :param config:
        :raises OptionError: a value of the wrong type or range
        :raises NotSupportedError: an option of other implementations is set
        :raises ConfigError: ``grad_clip`` is set, or two options contradict
        """
        _check_refused(config)
        threshold, per_epoch = _invalid_gradient_threshold(config)
        return cls(
            gradient_clip=_optional_positive(config, "gradient_clip"),
            gradient_clip_norm=_optional_positive(config, "gradient_clip_norm"),
            gradient_noise=_optional_positive(config, "gradient_noise") or 0.0,
            invalid_gradient_threshold=threshold,
            invalid_gradients_per_epoch=per_epoch,
            accum_grad_multiple_step=_accum_grad_multiple_step(config),
            accum_grad_leftover=_accum_grad_leftover(config),
            log_grad_norm=_log_grad_norm(config),
            dynamic_learning_rate=_dynamic_learning_rate(config),
        )


def _check_refused(config: Config | Mapping[str, Any]) -> None:
    for name, instead in _REFUSED.items():
        value = read(config, name)
        if not value:  # the peers' defaults are 0 or False: setting those is harmless
            continue
        text = f'option "{name}" is not supported. Instead: {instead}.'
        if name == "grad_clip":
            raise ConfigError(text)
        raise NotSupportedError(text)
    if not read(config, "decouple_constraints"):
        raise OptionError(
            "decouple_constraints",
            expected="True",
            got=read(config, "decouple_constraints"),
            todo='Remove it, and give "weight_decay" in the optimizer dict',
        )


def _optional_positive(config: Config | Mapping[str, Any], name: str) -> float | None:
    """:return: the value; None if it is None or 0, which both mean off"""
    value = read(config, name)
    if value is None:
        return None
    number = to_float(value)
    if number is None or not 0 <= number < math.inf:
        raise OptionError(name, expected="a number > 0, or None or 0 for off", got=value)
    return number or None


def _invalid_gradient_threshold(config: Config | Mapping[str, Any]) -> tuple[int | None, bool]:
    mini_name, main_name = "gradient_clip_norm_invalid_gradient_threshold", "num_allowed_consec_invalid_gradient_steps"
    mini = read_int(config, mini_name, minimum=1, if_none=_DEFAULT_INVALID_THRESHOLD)
    if read(config, main_name) is None:
        return mini, False
    allowed = read_int(config, main_name, minimum=0)
    threshold = allowed + 1
    if is_given(config, mini_name) and mini != threshold:
        raise ConfigError(
            f'options "{mini_name}" = {mini} (the {mini}th invalid update in succession ends the training) and '
            f'"{main_name}" = {allowed} (that many are allowed) contradict. Set only one of them.'
        )
    return threshold, True


def _accum_grad_multiple_step(config: Config | Mapping[str, Any]) -> int | Callable[..., int]:
    value = read(config, "accum_grad_multiple_step")
    if callable(value):
        check_takes_any_keyword("accum_grad_multiple_step", value)
        return cast("Callable[..., int]", value)  # a function of the user: its result is checked at each call
    return read_int(config, "accum_grad_multiple_step", minimum=1, if_none=1)


def _dynamic_learning_rate(config: Config | Mapping[str, Any]) -> Callable[..., float] | None:
    value = read(config, "dynamic_learning_rate")
    if value is None:
        return None
    if not callable(value):
        raise OptionError(
            "dynamic_learning_rate",
            expected="a function",
            got=value,
            todo="Learning rates per epoch are the option learning_rates",
        )
    check_takes_any_keyword("dynamic_learning_rate", value)
    return cast("Callable[..., float]", value)  # a function of the user: its result is checked at each call


def _log_grad_norm(config: Config | Mapping[str, Any]) -> float | None:
    value = read(config, "log_grad_norm")
    if value is None or value is False or value is True:
        return 2.0 if value else None
    number = to_float(value)
    if number is None or not number > 0:
        raise OptionError("log_grad_norm", expected="True, False, or the order of the norm, a number > 0", got=value)
    return number


def _accum_grad_leftover(config: Config | Mapping[str, Any]) -> Literal["carry", "drop", "flush"] | None:
    value = read(config, "accum_grad_leftover")
    if value is not None and value not in LEFTOVER_MODES:
        raise OptionError("accum_grad_leftover", expected='"carry", "drop" or "flush"', got=value)
    return cast('Literal["carry", "drop", "flush"] | None', value)  # checked above


@dataclasses.dataclass(frozen=True)
class AmpOptions:
    """Automatic mixed precision."""

    dtype: Literal["float16", "bfloat16"]
    # Arguments of torch.amp.GradScaler, or None: no scaler. Any: each argument has its own type.
    grad_scaler: Mapping[str, Any] | None

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> AmpOptions | None:
        """
        :param config:
        :return: None if mixed precision is off
        :raises OptionError: unknown dtype, unknown keys, or a scaler option that is not a dict
        """
        value = read(config, "torch_amp_options")
        if value is None:
            return None
        opts = {"dtype": value} if isinstance(value, str) else value
        if not isinstance(opts, Mapping) or set(opts) - {"dtype", "grad_scaler"}:
            raise OptionError(
                "torch_amp_options",
                expected='a dict with "dtype" and optionally "grad_scaler", or the dtype as str',
                got=value,
            )
        dtype = opts.get("dtype")
        if dtype not in ("float16", "bfloat16"):
            raise OptionError(
                "torch_amp_options",
                expected='dtype "float16" or "bfloat16"',
                got=dtype,
                todo='Set e.g. torch_amp_options = {"dtype": "bfloat16"}',
            )
        if "grad_scaler" in opts:
            scaler = opts["grad_scaler"]
        elif is_given(config, "grad_scaler"):
            scaler = read(config, "grad_scaler")
        else:
            # A scaler avoids underflow of float16 gradients. bfloat16 has the exponent range of float32.
            scaler = {} if dtype == "float16" else None
        if scaler is not None and not isinstance(scaler, Mapping):
            raise OptionError(
                "grad_scaler", expected="a dict with arguments of torch.amp.GradScaler, or None", got=scaler
            )
        return cls(dtype=cast('Literal["float16", "bfloat16"]', dtype), grad_scaler=scaler)  # checked above
