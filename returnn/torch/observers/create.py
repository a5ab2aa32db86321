"""Makes the observers that the options ask for."""

from __future__ import annotations

from returnn.config import Config
from returnn.options.checkpoint import CheckpointOptions
from returnn.options.observers import ObserverOptions
from returnn.torch.observers.base import PassObserver
from returnn.torch.observers.batch_size import BatchSize
from returnn.torch.observers.exp_loss import ExpLoss
from returnn.torch.observers.memory import MemoryUsage
from returnn.torch.observers.profiler import Profiler
from returnn.torch.observers.tensorboard import Tensorboard

__all__ = ["create_observers"]


def create_observers(config: Config, *, train: bool = True) -> list[PassObserver]:
    """
    :param config: of the run
    :param train: whether the run trains
    :return: observers in the order in which their texts appear; empty without options
    :raises ConfigError: invalid options
    :raises MissingDependencyError: a package for them is not installed
    """
    options = ObserverOptions.from_config(config, train=train)
    observers: list[PassObserver] = []
    if options.exp_loss:
        observers.append(ExpLoss())
    if options.log_batch_size:
        observers.append(BatchSize())
    if options.log_memory_usage:
        observers.append(MemoryUsage())
    if options.tensorboard is not None:
        observers.append(Tensorboard(options.tensorboard, model=CheckpointOptions.from_config(config).model))
    if options.profile is not None:
        observers.append(Profiler(options.profile))
    return observers
