"""The tasks: name, one sentence, whether an engine is needed, and what to do."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from returnn.errors import ConfigError, MissingOptionError, ModelError, NotSupportedError, UserError
from returnn.log import log
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.task import TaskOptions
from returnn.util.run_lock import RunLock

if TYPE_CHECKING:
    from returnn.config import Config
    from returnn.engine.base import EngineBase

__all__ = ["Task", "TASKS", "REFUSED_TASKS", "find_task", "run_task"]


@dataclasses.dataclass(frozen=True)
class Run:
    """What a task works with."""

    task: str  # as given, e.g. "config:my_function"
    config: Config
    engine: EngineBase | None
    after_init: Callable[[], None]  # to be called when the engine has read all its options, before the work starts

    def need_engine(self) -> Any:  # Any: custom engines may have any further methods
        """:return: the engine, which exists for each task that declares to need it"""
        assert self.engine is not None, f"task {self.task!r} was started without engine"
        return self.engine


@dataclasses.dataclass(frozen=True)
class Task:
    """One row of the table."""

    run: Callable[[Run], None]
    doc: str
    needs_engine: bool = True


def _train(run: Run) -> None:
    engine = run.need_engine()
    with _lock_model(run.config):
        engine.init_train()
        run.after_init()
        engine.train()


def _lock_model(config: Config) -> contextlib.AbstractContextManager[object]:
    """
    :return: in which no other run trains this model; without effect in a run that writes no checkpoints
    :raises ModelInUseError: (when entered) another run does
    """
    try:
        options = CheckpointOptions.from_config(config)
    except UserError:  # the engine says so, or a custom engine means something else
        return contextlib.nullcontext()
    if not options.model or not options.write_to_disk:
        return contextlib.nullcontext()
    return RunLock(options.model, on_line=lambda line: print(line, file=log.v2))


def _eval(run: Run) -> None:
    engine = run.need_engine()
    if not callable(getattr(engine, "eval_task", None)):
        raise NotSupportedError(
            f"the task eval is not supported by the engine {type(engine).__qualname__}, which has no method eval_task. "
            "Derive it from returnn.torch.engine.Engine, or remove CustomEngine from the config."
        )
    _select_epoch(run.config)
    engine.eval_task()


def _forward(run: Run) -> None:
    engine = run.need_engine()
    _select_epoch(run.config)
    engine.init_forward()
    run.after_init()
    engine.forward()


def _select_epoch(config: Config) -> None:
    epoch = TaskOptions.from_config(config).epoch
    if epoch is not None:
        config.set("load_epoch", epoch)


def _initialize_model(run: Run) -> None:
    engine = run.need_engine()
    engine.init_train()
    engine.save_model()


def _init_only(run: Run) -> None:
    run.need_engine().init_train()
    run.after_init()


def _cleanup(run: Run) -> None:
    run.need_engine().cleanup_old_models(ask_for_confirmation=True)


def _nop(run: Run) -> None:
    print("Task: No-operation", file=log.v1)


def _config_function(run: Run) -> None:
    name = run.task.split(":", 1)[1]
    if name not in run.config.typed_dict:
        if run.task.startswith("optional-config:"):
            print(f"No task found for {run.task!r}, so just quitting.", file=log.v1)
            return
        raise MissingOptionError(
            name,
            needed_for=f"the task {run.task}",
            todo=f"Define a function {name}() in the config, or use ++task optional-config:{name}",
        )
    function = run.config.typed_dict[name]
    print("Task:", repr(function), file=log.v1)
    if not callable(function):
        raise ModelError(
            f"the task {run.task} needs a function, but {name!r} in the config is {function!r} ({type(function).__name__})."
        )
    function()


#: Name, or pattern of the name, of each task.
TASKS: dict[str, Task] = {
    "train": Task(
        _train, "train the model, evaluate after each epoch, write checkpoints; continues where the last run ended"
    ),
    "eval": Task(_eval, "evaluate a checkpoint (option load or epoch; else the newest) on all evaluation data sets"),
    "forward": Task(_forward, "run forward_step over the data set of the option forward"),
    "initialize_model": Task(_initialize_model, "build the model and write its checkpoint, without training"),
    "nop_init_net_train": Task(_init_only, "initialise everything for training, then end"),
    "cleanup_old_models": Task(_cleanup, "delete old checkpoints as the option cleanup_old_models says, after asking"),
    "nop": Task(_nop, "load the config, do nothing", needs_engine=False),
    "config:NAME": Task(_config_function, "call the function NAME of the config", needs_engine=False),
    "optional-config:NAME": Task(_config_function, "the same, if the config has it", needs_engine=False),
}

#: Tasks of the peers that do not exist here, and what to use.
REFUSED_TASKS: dict[str, str] = {
    "search": 'Instead use the task forward (task = "forward"), and do the search in forward_step, with forward_init_hook and forward_finish_hook around it',
    "compute_priors": 'Instead use the task forward (task = "forward"): sum the outputs in forward_step; write them in forward_finish_hook',
    "analyze_data": "Use tools/dump-dataset.py --stats",
}


def find_task(name: str) -> Task:
    """
    :param name: value of the option ``task``
    :return: the task
    :raises NotSupportedError: a task of the peers that does not exist here
    :raises ConfigError: unknown
    """
    if name in TASKS:
        return TASKS[name]
    if ":" in name:
        kind, function_name = name.split(":", 1)
        pattern = f"{kind}:NAME"
        if pattern in TASKS and function_name:
            return TASKS[pattern]
    if name in REFUSED_TASKS:
        raise NotSupportedError(f"the task {name!r} is not supported. {REFUSED_TASKS[name]}.")
    raise ConfigError(f"unknown task: {name!r}. Known are: {', '.join(TASKS)}.")


def run_task(
    name: str, config: Config, engine: EngineBase | None, *, after_init: Callable[[], None] = lambda: None
) -> None:
    """
    :param name: value of the option ``task``
    :param config:
    :param engine: None for a task that needs none
    :param after_init: called when the engine has been initialised, before the work starts
    """
    find_task(name).run(Run(task=name, config=config, engine=engine, after_init=after_init))
