"""Options of what watches training and evaluation: more numbers in the step lines, tensorboard, the profiler."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import OptionError
from returnn.options.registry import Option, closest_names, declare, read
from returnn.options.values import read_bool

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["ObserverOptions", "ProfileOptions", "TensorboardOptions"]

declare(
    Option(
        "log_batch_size",
        "bool",
        False,
        "Step lines (v5) also show the number of sequences, and per dynamic dimension (mainline dialect) or data key the "
        "maximal and the summed length: num_seqs N, max_size:<dim> N, sum_size:<dim> N.",
        tasks=("train", "eval", "forward"),
    ),
    Option(
        "torch_log_memory_usage",
        "bool",
        False,
        "Step lines (v5) also show the peak of the memory that tensors had on the device so far (on the CPU: that of the "
        "process): mem_usage:<device> X.",
        tasks=("train", "eval", "forward"),
    ),
    Option(
        "calculate_exp_loss",
        "bool",
        False,
        "Also report exp(value) of each loss that is not marked as error, as <name>:exp, per step and in the scores.",
        tasks=("train", "eval"),
    ),
    Option(
        "use_tensorboard",
        "bool",
        False,
        "Write losses for tensorboard: train/<loss> and train/learning_rate over training steps, <dataset>/<score> after each "
        "evaluation. Needs the package tensorboard.",
        tasks=("train",),
    ),
    Option(
        "tensorboard_opts",
        "dict(log_every_n_train_steps, log_dir)",
        {},
        "log_every_n_train_steps: default 100, each waits for the device. log_dir: folder; default: tensorboard, in the folder "
        "of the checkpoints (option model), or the current one.",
        tasks=("train",),
    ),
    Option(
        "torch_profile",
        "bool | dict",
        False,
        "Profile training steps by torch.profiler: writes a chrome trace, prints the most expensive operations, and ends the "
        "program; no checkpoints and scores are written. Entries of the dict are arguments of torch.profiler.profile; schedule: dict "
        "with skip_first 10, wait 5, warmup 3, active 3, repeat 1 as defaults; filename: of the trace, default "
        "torch_profile.json.",
        tasks=("train",),
    ),
)

#: Arguments of torch.profiler.profile that may be given, and what they are if not.
_PROFILE_DEFAULTS: dict[str, Any] = {
    "profile_memory": True,
    "record_shapes": True,
    "with_stack": True,
    "with_flops": True,
}
_PROFILE_OTHERS = ("activities", "with_modules", "acc_events")
_SCHEDULE_DEFAULTS = {"skip_first": 10, "wait": 5, "warmup": 3, "active": 3, "repeat": 1}
_ACTIVITIES = ("cpu", "cuda", "xpu")


@dataclasses.dataclass(frozen=True)
class TensorboardOptions:
    """
    :param log_every_n_train_steps: at global steps that are multiples of it
    :param log_dir: None: beside the checkpoints
    """

    log_every_n_train_steps: int = 100
    log_dir: str | None = None

    @classmethod
    def parse(cls, value: Any) -> TensorboardOptions:  # Any: of the user
        """
        :param value: of option tensorboard_opts
        :raises OptionError: invalid
        """
        name = "tensorboard_opts"
        opts = _dict_with_keys(name, value, [f.name for f in dataclasses.fields(cls)])
        steps = opts.get("log_every_n_train_steps", 100)
        if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
            raise OptionError(name, expected="int >= 1 for log_every_n_train_steps", got=steps)
        log_dir = opts.get("log_dir")
        if not isinstance(log_dir, (str, os.PathLike, type(None))):
            raise OptionError(name, expected="path of a folder for log_dir", got=log_dir)
        return cls(steps, os.fspath(log_dir) if log_dir is not None else None)


@dataclasses.dataclass(frozen=True)
class ProfileOptions:
    """
    :param arguments: of torch.profiler.profile, without schedule and activities. Any: several types
    :param activities: names; None: all that there are
    :param schedule: arguments of torch.profiler.schedule
    :param filename: of the trace
    """

    arguments: Mapping[str, Any]
    activities: tuple[str, ...] | None
    schedule: Mapping[str, int]
    filename: str = "torch_profile.json"

    @classmethod
    def parse(cls, value: Any) -> ProfileOptions | None:  # Any: of the user
        """
        :param value: of option torch_profile
        :return: None: off
        :raises OptionError: invalid
        """
        name = "torch_profile"
        if value is None or value is False:
            return None
        known = [*_PROFILE_DEFAULTS, *_PROFILE_OTHERS, "schedule", "filename"]
        opts = _dict_with_keys(name, {} if value is True else value, known)
        schedule = {**_SCHEDULE_DEFAULTS, **_dict_with_keys(name, opts.get("schedule") or {}, list(_SCHEDULE_DEFAULTS))}
        for key, number in schedule.items():
            if isinstance(number, bool) or not isinstance(number, int) or number < (key in ("active", "repeat")):
                raise OptionError(name, expected=f"int >= {int(key in ('active', 'repeat'))} for {key}", got=number)
        activities = opts.get("activities")
        if activities is not None:
            activities = (activities,) if isinstance(activities, str) else tuple(activities)
            for activity in activities:
                if activity not in _ACTIVITIES:
                    raise OptionError(name, expected=f"activities of {', '.join(_ACTIVITIES)}", got=activity)
        filename = opts.get("filename", cls.filename)
        if not isinstance(filename, (str, os.PathLike)) or not os.fspath(filename):
            raise OptionError(name, expected="path for filename", got=filename)
        apart = ("schedule", "filename", "activities")
        arguments = {**_PROFILE_DEFAULTS, **{key: v for key, v in opts.items() if key not in apart}}
        return cls(arguments, activities, schedule, os.fspath(filename))


def _dict_with_keys(name: str, value: Any, known: list[str]) -> Mapping[str, Any]:  # Any: of the user
    if not isinstance(value, Mapping):
        raise OptionError(name, expected=f"dict with keys of {', '.join(known)}", got=value)
    for key in value:
        if key not in known:
            near = closest_names(str(key), known)
            todo = f"Did you mean {near[0]!r}?" if near else ""
            raise OptionError(name, expected=f"keys of {', '.join(known)}", got=key, todo=todo)
    return value


@dataclasses.dataclass(frozen=True)
class ObserverOptions:
    """
    :param log_batch_size: sizes of the batch in the step lines
    :param log_memory_usage: memory in the step lines
    :param exp_loss: also report exp of losses
    :param tensorboard: None: off
    :param profile: None: off
    """

    log_batch_size: bool = False
    log_memory_usage: bool = False
    exp_loss: bool = False
    tensorboard: TensorboardOptions | None = None
    profile: ProfileOptions | None = None

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any], *, train: bool = True) -> ObserverOptions:
        """
        :param config: Config or plain dict. Any: options
        :param train: whether the run trains; else only what is shown in step lines
        :raises OptionError: invalid values
        """
        tensorboard = None
        if train and read_bool(config, "use_tensorboard"):
            tensorboard = TensorboardOptions.parse(read(config, "tensorboard_opts") or {})
        return cls(
            log_batch_size=read_bool(config, "log_batch_size"),
            log_memory_usage=read_bool(config, "torch_log_memory_usage"),
            exp_loss=read_bool(config, "calculate_exp_loss"),
            tensorboard=tensorboard,
            profile=ProfileOptions.parse(read(config, "torch_profile")) if train else None,
        )
