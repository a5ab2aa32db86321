"""
The one process-wide state of the package.

Nothing else keeps mutable module-level state. Public accessors (``get_global_config``, ``get_run_ctx``,
``BehaviorVersion.get``, ``Dataset.is_sharding_enabled``) read it; worker processes get the picklable part with their start.
"""

from __future__ import annotations

import contextlib
import dataclasses
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from returnn.config import Config

__all__ = ["ProcessState", "state", "process_state_ctx", "find_global_config"]


@dataclasses.dataclass
class ProcessState:
    """Who sets it, when, and who reads it."""

    # Set by returnn.config.set_global_config. Read through find_global_config.
    global_config: Config | None = None
    # Set by Config.load_file while it runs a config. Read by the module __returnn_config__ only.
    loading_config: Config | None = None
    # Set by the engine around each step through returnn.frontend.run_ctx.init_*_run_ctx. Read by get_run_ctx.
    # Any: the class lives in a higher layer.
    run_ctx: Any = None
    # Set by BehaviorVersion.set. None: not set.
    behavior_version: int | None = None
    min_behavior_version: int = 0
    # Rank of this process and number of ranks; set at start-up from the launcher's environment.
    rank: int = 0
    world_size: int = 1
    # Set by returnn.torch.distributed.context.init_distributed, read by its get_distributed. Any: a higher layer.
    distributed: Any = None
    # The connection to the other ranks that tells who failed first (returnn.torch.distributed.watchdog.RankWatch; Any: a
    # higher layer). None: one process, or not connected. Set by start_rank_watch; ended by shutdown_distributed, and by
    # returnn.cli.rank_end if this rank does not wait for the others.
    rank_watch: Any = None
    # Set in a loader worker process. Read by Dataset.is_sharding_enabled / apply_sharding.
    # in_worker is set before the dataset is unpickled: datasets do not repeat log lines there. num_workers stays 0
    # with worker_batching "global".
    in_worker: bool = False
    worker_id: int = 0
    num_workers: int = 0
    # Set at the start of a data process whose parent wants to know what it does (a status_page.Page of
    # returnn.datasets._loading; Any: a higher layer), written while data is read. None: nobody reads it.
    status_page: Any = None
    # In a loader worker: memory of its parent process with what is known of the corpus (Segments of
    # returnn.datasets._basic.shared_corpus; Any: a higher layer). Set at its start.
    shared_corpus: list[Any] = dataclasses.field(default_factory=list)
    # Likewise: Rooms of returnn.datasets._basic.shared_rooms, for what the workers read later, once for all of them.
    shared_rooms: Any = None
    # Set by returnn.__main__.finalize and the exception hook: threads that wait should stop.
    quitting: bool = False
    # How many users of returnn.util.stop_request.accept_stops there are, and why a stop was requested (None: it was not).
    # Written and read through that module.
    num_stop_acceptors: int = 0
    stop_reason: str | None = None
    # A warning that came before anybody could save (returnn.util.stop_request.remember); taken over by the first accept_stops.
    early_stop_reason: str | None = None
    # Texts of the warnings which are shown only once per process. Used by returnn.log and BehaviorVersion.
    shown_warnings: set[str] = dataclasses.field(default_factory=set)
    # Defaults of returnn.util.pprint.pretty_print: characters; arrays as exact expressions.
    pretty_print_limit: float = 300
    pretty_print_as_bytes: bool = False
    # Per prefix of returnn.util.terminal.progress_bar_with_time: time and completeness at its first call.
    progress_bar_starts: dict[str, tuple[float, float]] = dataclasses.field(default_factory=dict)
    # What the cache manager gave for each file name. Used by returnn.util.cache_manager.
    cached_files: dict[str, str] = dataclasses.field(default_factory=dict)
    # One FileCache (a higher module: Any) per value of the option file_cache_opts. Not sent to workers: each process
    # says itself which files it uses. Used by returnn.util.file_cache.
    file_caches: dict[str, Any] = dataclasses.field(default_factory=dict)
    # (path, modification time, size) -> labels of the vocabulary file, oldest use first. Bounded and used by
    # returnn.datasets._vocabulary.files. Any: the class lives in a higher layer.
    vocab_files: dict[tuple[str, int, int], Any] = dataclasses.field(default_factory=dict)


state = ProcessState()


def find_global_config() -> Config | None:
    """
    :return: the one of :func:`returnn.config.set_global_config`, else the variable ``config`` of the main module or of
        ``returnn.__main__`` (if that is already imported). In the program, it is the last one
    """
    if state.global_config is not None:
        return state.global_config
    for module_name in ("__main__", "returnn.__main__"):
        config: Any = getattr(sys.modules.get(module_name), "config", None)  # Any: the main module is anything
        if hasattr(config, "typed_dict"):
            return config  # type: ignore[no-any-return]
    return None


@contextlib.contextmanager
def process_state_ctx(**updates: Any) -> Iterator[ProcessState]:
    """
    Save the state, apply updates, and restore all fields at exit. For tests and for nested use as a library.

    :param updates: fields of ProcessState. Any: each field has its own type
    """
    saved = {f.name: getattr(state, f.name) for f in dataclasses.fields(state)}
    try:
        for key, value in updates.items():
            if key not in saved:
                raise TypeError(f"process_state_ctx: unknown field {key!r}, known are {sorted(saved)}")
            setattr(state, key, value)
        yield state
    finally:
        for key, value in saved.items():
            setattr(state, key, value)
