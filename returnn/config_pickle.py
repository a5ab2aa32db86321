"""
What a worker process gets: the whole state of this process that user code may rely on, and an object.
"""

from __future__ import annotations

import dataclasses
import pickle
from typing import Any

from returnn._config import pickling
from returnn._state import state
from returnn.config import Config, get_global_config, set_global_config
from returnn.log import log
from returnn.util.debug import init_better_exchook, init_faulthandler

__all__ = ["dumps_for_worker", "loads_in_worker"]

# Not for other processes, or contained otherwise.
_STATE_FIELDS_NOT_SENT = (
    "global_config",
    "loading_config",
    "run_ctx",
    "shown_warnings",
    "quitting",
    "in_worker",
    "file_caches",
    "distributed",
    "rank_watch",
    "status_page",
    "shared_corpus",
    "shared_rooms",
)


def dumps_for_worker(obj: Any) -> bytes:
    """
    Pickle an object together with the global config (functions and classes of the config by value, lambdas too),
    the process state, and ``sys.path``. Functions of the config inside the object are the same ones as in the config.

    :param obj: e.g. a dataset. Any: whatever the worker needs
    :return: for :func:`loads_in_worker`, in a process of the same Python and package version
    :raises ConfigError: the object cannot be pickled
    """
    config = get_global_config(raise_exception=False)
    fields = {
        field.name: getattr(state, field.name)
        for field in dataclasses.fields(state)
        if field.name not in _STATE_FIELDS_NOT_SENT
    }
    # Without global config, an empty one carries the object.
    data = pickling.dump_config(config if config is not None else Config(), [obj])
    log_settings = log.settings_for_workers if log.initialized else None
    return pickle.dumps((config is not None, fields, log_settings, data), protocol=pickle.HIGHEST_PROTOCOL)


def loads_in_worker(data: bytes) -> Any:
    """
    Make this process ready (exception hook, faulthandler, process state, log, global config), then unpickle the object.

    :param data: from :func:`dumps_for_worker` of our own parent process
    :return: the object
    """
    init_better_exchook()
    init_faulthandler()
    has_config, fields, log_settings, config_data = pickle.loads(data)
    for name, value in fields.items():
        setattr(state, name, value)
    if log_settings is not None:
        log.initialize(**log_settings)
    config = Config()
    if has_config:
        # Before anything of the user is unpickled: it may ask for the config, also at import.
        set_global_config(config)
    (obj,) = pickling.load_config_state(config, config_data)
    return obj
