"""Options of run control: the task, the engine class, start-up."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

from returnn.errors import NotSupportedError, OptionError
from returnn.options.registry import Option, declare, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["TaskOptions"]

declare(
    Option(
        "task",
        "str",
        "train",
        "What to run: train, eval, forward, initialize_model, cleanup_old_models, nop, config:NAME, optional-config:NAME.",
    ),
    Option(
        "dry_run",
        "bool",
        False,
        "Run as usual, but write no checkpoint, no learning-rate file and no output_file, and delete nothing.",
    ),
    Option("backend", '"torch" | None', None, 'The framework; only "torch" exists here, any other value is refused.'),
    Option(
        "strict_config",
        "bool",
        False,
        "Make likely typos, options that are not supported, and options that nothing reads errors instead of warnings.",
    ),
    Option(
        "CustomEngine",
        "callable(config=...) -> EngineBase",
        None,
        "Factory of the engine, usually a subclass of returnn.torch.engine.Engine.",
    ),
    Option("epoch", "int | None", None, "Epoch of the checkpoint to use in the tasks forward and eval."),
    Option(
        "startup_callback", "callable(config=...)", None, "Called once after the log is set up, before data and model."
    ),
    Option(
        "behavior_version",
        "int | None",
        None,
        "Version of default behaviours; stored for code that asks for it (returnn.util.basic.BehaviorVersion).",
    ),
    Option(
        "PYTORCH_CUDA_ALLOC_CONF",
        "str | None",
        None,
        "Copied to the environment variable of that name before torch is imported.",
    ),
    Option("ipython", "bool", False, "Start an IPython kernel in the background, to look into the running process."),
    Option(
        "patch_atfork",
        "bool",
        False,
        "Accepted; only prints a notice, since worker processes are not forked any more.",
    ),
    Option("include", "str", None, "On the command line only: load further config files (++include FILE[,FILE])."),
)


@dataclasses.dataclass(frozen=True)
class TaskOptions:
    """What to run and how to start."""

    task: str
    dry_run: bool
    strict_config: bool
    custom_engine: Callable[..., Any] | None  # Any: user code
    epoch: int | None
    startup_callback: Callable[..., Any] | None
    behavior_version: int | None
    cuda_alloc_conf: str | None
    ipython: bool
    patch_atfork: bool

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> TaskOptions:
        """
        :param config:
        :raises OptionError: a value of the wrong type
        :raises NotSupportedError: another backend than torch
        """
        backend = read(config, "backend")
        if backend not in (None, "torch"):
            raise NotSupportedError(
                f'backend = {backend!r} is not supported. Only "torch" is; remove the option or set it to "torch".'
            )
        task = read(config, "task")
        if not isinstance(task, str) or not task:
            raise OptionError("task", expected="the name of a task", got=task, todo='Set e.g. task = "train"')
        alloc_conf = read(config, "PYTORCH_CUDA_ALLOC_CONF")
        if alloc_conf is not None and not isinstance(alloc_conf, str):
            raise OptionError(
                "PYTORCH_CUDA_ALLOC_CONF", expected="str", got=alloc_conf, todo='E.g. "expandable_segments:True"'
            )
        custom_engine = read(config, "CustomEngine")
        return cls(
            task=task,
            dry_run=_bool(config, "dry_run"),
            strict_config=_bool(config, "strict_config"),
            # Not callable: ignored, as the peers do (configs disable it so).
            custom_engine=custom_engine if callable(custom_engine) else None,
            epoch=_optional_int(config, "epoch"),
            startup_callback=_optional_callable(config, "startup_callback"),
            behavior_version=_optional_int(config, "behavior_version"),
            cuda_alloc_conf=alloc_conf,
            ipython=_bool(config, "ipython"),
            patch_atfork=_bool(config, "patch_atfork"),
        )


def _bool(config: Config | Mapping[str, Any], name: str) -> bool:
    value = read(config, name)
    if value is None or isinstance(value, (bool, int)):
        return bool(value)
    if isinstance(value, str) and value.lower() in ("true", "yes", "on", "false", "no", "off", ""):
        return value.lower() in ("true", "yes", "on")
    raise OptionError(name, expected="bool", got=value, todo="Set it to True or False")


def _optional_int(config: Config | Mapping[str, Any], name: str) -> int | None:
    value = read(config, name)
    if value is None or (isinstance(value, int) and not isinstance(value, bool)):
        return value
    raise OptionError(name, expected="int", got=value)


def _optional_callable(config: Config | Mapping[str, Any], name: str) -> Callable[..., Any] | None:
    value = read(config, name)
    if value is None or callable(value):
        return value
    raise OptionError(name, expected="a function", got=value)
