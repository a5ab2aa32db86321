"""Options of checkpoints: which to load, when to save, what to delete."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from returnn._state import state
from returnn.errors import OptionError
from returnn.options.dialect import is_mainline
from returnn.options.registry import Option, closest_names, declare, read
from returnn.options.task import TaskOptions
from returnn.options.values import read_bool, read_int, read_path

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["CheckpointOptions", "CleanupOptions", "should_write_to_disk"]

declare(
    Option("model", "str | None", None, "Path prefix of checkpoints: <model>.001.pt, <model>.001.opt.pt, ..."),
    Option(
        "num_epochs", "int", 5, "Last epoch of the training.", tasks=("train", "initialize_model", "cleanup_old_models")
    ),
    Option(
        "start_epoch",
        '"auto" | int',
        "auto",
        "First epoch to train; a number ignores the newest checkpoint and goes on after the epoch before it.",
        tasks=("train",),
    ),
    Option(
        "start_batch",
        '"auto"',
        "auto",
        "Only the default exists: the checkpoints decide where in an epoch a training goes on.",
        tasks=("train",),
    ),
    Option(
        "save_interval",
        "int",
        1,
        "Save a checkpoint each so many epochs, and after the last one.",
        tasks=("train",),
    ),
    Option(
        "load",
        "str | None",
        None,
        "Checkpoint to load, with or without .pt; in a training only as start of the first epoch.",
    ),
    Option(
        "load_epoch",
        "int | None",
        None,
        "Outside of a training: use the checkpoint of that epoch under model. In a training: num_epochs is at least this.",
    ),
    Option(
        "import_model_train_epoch1",
        "str | None",
        None,
        "Checkpoint whose weights start epoch 1.",
        tasks=("train", "initialize_model"),
    ),
    Option(
        "preload_from_files",
        "dict[str, dict]",
        None,
        "Parts of the model to load from other checkpoints: name -> dict with filename, prefix, init_for_train, ...",
    ),
    Option(
        "load_ignore_missing_vars",
        "bool",
        False,
        "Parameters that are missing in the checkpoint keep their initial values, instead of an error.",
    ),
    Option(
        "allow_missing_optimizer_checkpoint",
        "bool",
        False,
        "Go on with a fresh optimizer if the optimizer file of the checkpoint is missing.",
        aliases=("allow_missing_optimizer", "use_fresh_optimizer_for_missing_checkpoint"),
        tasks=("train",),
    ),
    Option(
        "allow_random_model_init",
        "bool",
        False,
        "Allow tasks other than train without a checkpoint: the model is then initialised randomly.",
        tasks=("forward", "eval"),
    ),
    Option(
        "cleanup_old_models",
        "bool | dict",
        None,
        "Delete old checkpoints after each epoch; dict with keep_last_n (2), keep_best_n (4), keep (epochs), "
        "score_keys (only these scores decide what is best).",
        tasks=("train", "cleanup_old_models"),
    ),
    Option(
        "apply_cleanup_old_models_to_optim_states",
        "bool",
        False,
        "Keep and delete optimizer files together with the checkpoints, instead of keeping the newest two.",
        tasks=("train", "cleanup_old_models"),
    ),
    Option(
        "save_ignore_params",
        "list[str]",
        None,
        "Read by custom engines only: parameters to leave out of checkpoints.",
        status="ignored",
    ),
    Option(
        "save_ignore_params_prefixes",
        "list[str]",
        None,
        "Read by custom engines only: parameters to leave out of checkpoints.",
        status="ignored",
    ),
)

_PRELOAD_KEYS = (
    "filename",
    "init_for_train",
    "ignore_missing",
    "ignore_params",
    "ignore_params_prefixes",
    "var_name_mapping",
    "prefix",
    "checkpoint_key",
    "pattern",
    "custom_missing_load_func",
)
_CLEANUP_KEYS = ("keep_last_n", "keep_best_n", "keep", "score_keys")


def should_write_to_disk(config: Config | Mapping[str, Any]) -> bool:
    """
    :param config:
    :return: whether this process writes checkpoints and the learning-rate file: no dry run, and the first of all ranks
    """
    return not TaskOptions.from_config(config).dry_run and state.rank == 0


@dataclasses.dataclass(frozen=True)
class CleanupOptions:
    """Which checkpoints stay."""

    keep_last_n: int = 2
    keep_best_n: int = 4
    keep: frozenset[int] | None = None  # None: not given, the dialect decides
    score_keys: tuple[str, ...] | None = None  # None: all scores count

    @classmethod
    def from_value(cls, value: Any) -> CleanupOptions | None:  # Any: raw option value
        """
        :param value: of the option cleanup_old_models
        :return: None: no cleanup
        :raises OptionError: unknown keys, or wrong values
        """
        if isinstance(value, str) and value.lower() in ("true", "false", "none", ""):
            value = value.lower() == "true"
        if value is None or value is False or (isinstance(value, int) and value == 0):
            return None
        if value is True or (isinstance(value, int) and value == 1):
            return cls()
        if not isinstance(value, Mapping):
            raise _cleanup_error("True, False or a dict", value)
        if not value:
            return None
        unknown = [key for key in value if key not in _CLEANUP_KEYS]
        if unknown:
            similar = closest_names(str(unknown[0]), _CLEANUP_KEYS)
            hint = f" (did you mean {similar[0]!r}?)" if similar else ""
            raise _cleanup_error(
                f"only the keys {', '.join(_CLEANUP_KEYS)}; {unknown[0]!r} is not known{hint}", dict(value)
            )
        last_n, best_n = value.get("keep_last_n", cls.keep_last_n), value.get("keep_best_n", cls.keep_best_n)
        if not _is_int(last_n) or last_n < 1:
            raise _cleanup_error('"keep_last_n" >= 1', last_n)
        if not _is_int(best_n) or best_n < 0:
            raise _cleanup_error('"keep_best_n" >= 0', best_n)
        return cls(int(last_n), int(best_n), _keep_set(value.get("keep")), _score_keys(value.get("score_keys")))


def _keep_set(value: Any) -> frozenset[int] | None:
    if value is None:
        return None
    if isinstance(value, (str, bytes, Mapping)) or not hasattr(value, "__iter__"):
        raise _cleanup_error('"keep" to be a list of epochs', value)
    epochs = list(value)
    if not all(_is_int(epoch) for epoch in epochs):
        raise _cleanup_error('"keep" to be a list of epochs', epochs)
    return frozenset(int(epoch) for epoch in epochs)


def _score_keys(value: Any) -> tuple[str, ...] | None:
    if value is None:
        return None
    if isinstance(value, str):
        value = [value]
    if not isinstance(value, (list, tuple, set, frozenset)) or not all(isinstance(key, str) for key in value):
        raise _cleanup_error('"score_keys" to be a list of score names', value)
    return tuple(sorted(value))


def _cleanup_error(expected: str, got: Any) -> OptionError:
    return OptionError(
        "cleanup_old_models",
        expected=expected,
        got=got,
        todo='Set e.g. {"keep_last_n": 2, "keep_best_n": 4, "keep": [10, 20]}',
    )


def _is_int(value: Any) -> bool:
    return not isinstance(value, bool) and hasattr(value, "__index__")


@dataclasses.dataclass(frozen=True)
class CheckpointOptions:
    """All options that decide about loading, saving and deleting checkpoints."""

    task: str
    mainline_dialect: bool
    model: str | None
    num_epochs: int
    start_epoch: int | None  # None: auto
    save_interval: int
    load: str | None
    load_epoch: int | None
    import_model_train_epoch1: str | None
    preload_from_files: Mapping[str, Mapping[str, Any]]  # Any: per key, see the option
    load_ignore_missing_vars: bool
    allow_missing_optimizer: bool
    allow_random_model_init: bool
    cleanup: CleanupOptions | None
    cleanup_optimizer_files: bool
    write_to_disk: bool
    load_epoch_option: str = "load_epoch"  # the option that load_epoch comes from; for messages

    @property
    def is_training_task(self) -> bool:
        """Whether the task goes on with, or starts, a training."""
        return self.task in ("train", "nop_init_net_train", "initialize_model")

    @property
    def final_epoch(self) -> int:
        """The last epoch of the training."""
        return max(self.num_epochs, self.load_epoch or 0)

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> CheckpointOptions:
        """
        :param config:
        :raises OptionError: a value is invalid
        """
        if read(config, "start_batch") not in ("auto", None):
            raise OptionError("start_batch", expected='"auto"', got=read(config, "start_batch"), todo="Remove it")
        task_options = TaskOptions.from_config(config)
        load_epoch = read_int(config, "load_epoch", minimum=-1, if_none=-1)
        load_epoch_option = "load_epoch"
        if load_epoch <= 0 and task_options.task != "train" and task_options.epoch:
            load_epoch = task_options.epoch
            load_epoch_option = "epoch"
        return cls(
            task=task_options.task,
            mainline_dialect=is_mainline(config),
            model=read_path(config, "model", example="models/epoch"),
            num_epochs=read_int(config, "num_epochs", minimum=0),
            start_epoch=_start_epoch(read(config, "start_epoch")),
            save_interval=read_int(config, "save_interval", minimum=1),
            load=read_path(config, "load", example="models/epoch.010.pt"),
            load_epoch=load_epoch if load_epoch > 0 else None,
            load_epoch_option=load_epoch_option,
            import_model_train_epoch1=read_path(
                config, "import_model_train_epoch1", example="/path/of/other/models/epoch.010.pt"
            ),
            preload_from_files=_preload(read(config, "preload_from_files")),
            load_ignore_missing_vars=read_bool(config, "load_ignore_missing_vars"),
            allow_missing_optimizer=read_bool(config, "allow_missing_optimizer_checkpoint"),
            allow_random_model_init=read_bool(config, "allow_random_model_init"),
            cleanup=CleanupOptions.from_value(read(config, "cleanup_old_models")),
            cleanup_optimizer_files=read_bool(config, "apply_cleanup_old_models_to_optim_states"),
            write_to_disk=should_write_to_disk(config),
        )


def _start_epoch(value: Any) -> int | None:
    if value is None or value == "auto":
        return None
    if isinstance(value, str) and value.isdigit():
        value = int(value)
    if _is_int(value) and value >= 1:
        return int(value)
    raise OptionError("start_epoch", expected='"auto" or int >= 1', got=value, todo='Set e.g. start_epoch = "auto"')


def _preload(value: Any) -> Mapping[str, Mapping[str, Any]]:
    if value is None:
        return {}
    example = '{"encoder": {"filename": "models/epoch.010.pt", "prefix": "encoder.", "init_for_train": True}}'
    if not isinstance(value, Mapping) or not all(isinstance(opts, Mapping) for opts in value.values()):
        raise OptionError("preload_from_files", expected="dict of name -> dict", got=value, todo=f"Set e.g. {example}")
    for name, opts in value.items():
        where = f"entry {name!r}"
        unknown = [key for key in opts if key not in _PRELOAD_KEYS]
        if unknown:
            similar = closest_names(str(unknown[0]), _PRELOAD_KEYS)
            raise OptionError(
                "preload_from_files",
                where=where,
                expected=f"only the keys {', '.join(_PRELOAD_KEYS)}",
                got=unknown[0],
                todo=f"Did you mean {similar[0]!r}? Rename the key" if similar else None,
            )
        if "filename" not in opts:
            raise OptionError(
                "preload_from_files", where=where, expected='the key "filename"', got=dict(opts), todo=f"E.g. {example}"
            )
        if opts["filename"] is None and "pattern" not in opts and "prefix" not in opts:
            raise OptionError(
                "preload_from_files", where=where, expected='"prefix" or "pattern" with filename None', got=dict(opts)
            )
        init_for_train = opts.get("init_for_train", False)
        if init_for_train not in (True, False, "always"):
            raise OptionError(
                "preload_from_files",
                where=where,
                expected='"init_for_train" True, False or "always"',
                got=init_for_train,
            )
    return value
