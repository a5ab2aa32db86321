"""
Options of the data loader: worker processes and how batches travel.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, Literal

from returnn.errors import ConfigError, OptionError
from returnn.options.registry import Option, closest_names, declare, is_given, read

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["LoaderOptions", "WorkerBatching"]

WorkerBatching = Literal["sharded", "global"]

#: Tasks that load data.
_DATA_TASKS = ("train", "eval", "forward", "initialize_model")

declare(
    Option(
        "num_workers_per_gpu",
        "int",
        1,
        "Number of processes that load data, for each dataset. 0: data is loaded in the main process. "
        'torch_dataloader_opts["num_workers"] is another name of it.',
        aliases=("num_workers_for_gpu",),
        tasks=_DATA_TASKS,
    ),
    Option(
        "torch_dataloader_opts",
        "dict",
        {},
        "num_workers; prefetch_factor: number of blocks of batches that a worker prepares ahead (default 3); "
        "persistent_workers: False ends the processes after each pass; pin_memory: bool; "
        'multiprocessing_context: "forkserver" or "spawn" ("spawn_non_daemonic" is the same); worker_init_fn: function of the '
        "number of the worker, called at its start. The other arguments of torch's DataLoader have no effect here.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "worker_batching",
        '"sharded" | "global"',
        "sharded",
        "sharded: worker w of W takes sequences w, w+W, ... and makes its own batches, as the peers do, so the batches "
        "depend on the number of workers. global: identical batches for any number of workers; "
        "datasets that do not know their lengths in advance are then read whole by each worker.",
        tasks=_DATA_TASKS,
    ),
    Option(
        "workers_for_small_sets",
        "bool",
        False,
        "False: evaluation datasets of under 50 batches are read in the main process, with the batches that the workers "
        "would give, unless code of the config is involved or that takes long. True: by workers too.",
        tasks=("train", "eval"),
    ),
)

_USED_KEYS = (
    "num_workers",
    "prefetch_factor",
    "persistent_workers",
    "pin_memory",
    "multiprocessing_context",
    "worker_init_fn",
)
#: Other arguments of torch's DataLoader, and what is there instead.
_UNUSED_KEYS = {
    "batch_size": "batches are made by batch_size and max_seqs of the config, or torch_batching",
    "shuffle": "the order of the sequences is seq_ordering of the dataset",
    "sampler": "the order of the sequences is seq_ordering of the dataset",
    "batch_sampler": "batches are made by batch_size and max_seqs of the config, or torch_batching",
    "collate_fn": "batches are padded, see returnn.torch.data.pipeline.collate_batch",
    "drop_last": "the option for this is batch_drop_last",
    "timeout": "a worker that died is noticed within seconds, and one that works may take its time",
    "generator": "all draws depend on random_seed and the epoch",
    "pin_memory_device": "pinned memory is for the device of the model",
    "in_order": "batches always keep their order",
}
_START_METHODS = {"forkserver": "forkserver", "spawn": "spawn", "spawn_non_daemonic": "spawn", None: None}


@dataclasses.dataclass(frozen=True)
class LoaderOptions:
    """
    :param num_workers: 0: in-process
    :param worker_batching: see option worker_batching
    :param prefetch_blocks: how many blocks of batches each worker prepares ahead
    :param persistent: workers live from pass to pass
    :param pin_memory: None: the loader's user decides (by the device)
    :param start_method: "forkserver" or "spawn"; None: forkserver if the system has it
    :param worker_init_fn: called with the number of the worker at its start. Any: what it returns is not used
    :param small_sets_in_process: evaluation datasets of few batches need no workers
    :param unused_keys: keys of torch_dataloader_opts that have no effect
    """

    num_workers: int = 1
    worker_batching: WorkerBatching = "sharded"
    prefetch_blocks: int = 3
    persistent: bool = True
    pin_memory: bool | None = None
    start_method: str | None = None
    worker_init_fn: Callable[[int], Any] | None = None
    small_sets_in_process: bool = False
    unused_keys: tuple[str, ...] = ()

    @property
    def unused_text(self) -> str:
        """:return: what to tell the user about the keys without effect"""
        reasons = [
            f"{key} ({_UNUSED_KEYS.get(key, 'workers are started by forkserver or spawn')})" for key in self.unused_keys
        ]
        return f"torch_dataloader_opts: without effect here: {', '.join(reasons)}."

    def __post_init__(self) -> None:
        """:raises OptionError: an invalid value"""
        if isinstance(self.num_workers, bool) or not isinstance(self.num_workers, int) or self.num_workers < 0:
            raise OptionError(
                "num_workers_per_gpu",
                expected="int >= 0",
                got=self.num_workers,
                todo="Set e.g. num_workers_per_gpu = 1",
            )
        if self.worker_batching not in ("sharded", "global"):
            raise OptionError("worker_batching", expected='"sharded" or "global"', got=self.worker_batching)
        if not isinstance(self.prefetch_blocks, int) or self.prefetch_blocks < 1:
            raise OptionError(
                "torch_dataloader_opts", expected="int >= 1 for prefetch_factor", got=self.prefetch_blocks
            )

    @classmethod
    def from_config(cls, config: Config | Mapping[str, Any]) -> LoaderOptions:
        """
        :param config: Config or plain dict
        :raises ConfigError: invalid values, or contradicting ones
        """
        opts = read(config, "torch_dataloader_opts") or {}
        if not isinstance(opts, Mapping):
            raise OptionError("torch_dataloader_opts", expected="dict", got=opts)
        num_workers = read(config, "num_workers_per_gpu")
        if "num_workers" in opts:
            if is_given(config, "num_workers_per_gpu") and num_workers != opts["num_workers"]:
                raise ConfigError(
                    f'options "num_workers_per_gpu" ({num_workers!r}) and torch_dataloader_opts["num_workers"] '
                    f"({opts['num_workers']!r}) are two names of the same thing, but their values differ. Set only one of them."
                )
            num_workers = opts["num_workers"]
        for key in opts:
            if key not in _USED_KEYS and key not in _UNUSED_KEYS:
                near = closest_names(str(key), [*_USED_KEYS, *_UNUSED_KEYS])
                raise OptionError(
                    "torch_dataloader_opts",
                    expected=f"keys of {', '.join(_USED_KEYS)}",
                    got=key,
                    todo=f"Did you mean {near[0]!r}?" if near else "",
                )
        init = opts.get("worker_init_fn")
        if init is not None and not callable(init):
            raise OptionError("torch_dataloader_opts", expected="function(worker_id) for worker_init_fn", got=init)
        method = opts.get("multiprocessing_context")
        unused = [key for key in opts if key not in _USED_KEYS]
        if not isinstance(method, (str, type(None))) or method not in _START_METHODS:
            unused.append("multiprocessing_context")
            method = None
        pin_memory = opts.get("pin_memory")
        persistent = opts.get("persistent_workers")
        return cls(
            num_workers=num_workers,
            worker_batching=read(config, "worker_batching"),
            prefetch_blocks=opts.get("prefetch_factor") or 3,
            persistent=True if persistent is None else bool(persistent),
            pin_memory=None if pin_memory is None else bool(pin_memory),
            start_method=_START_METHODS[method],
            worker_init_fn=init,
            small_sets_in_process=not read(config, "workers_for_small_sets"),
            unused_keys=tuple(unused),
        )
