"""
What a worker process gets at its start, and a clear message if it cannot be sent.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

from returnn.config_pickle import dumps_for_worker
from returnn.datasets._loading.source import SourceOptions
from returnn.errors import ConfigError, UserError

if TYPE_CHECKING:
    from returnn.datasets.basic import Dataset

__all__ = ["dump_payload"]


def dump_payload(dataset: Dataset, options: SourceOptions) -> bytes:
    """
    :param dataset: pickled by its constructor arguments
    :param options: from sequences to batches
    :return: for :func:`returnn.config_pickle.loads_in_worker`
    :raises ConfigError: something in them cannot be sent to another process
    """
    try:
        return dumps_for_worker((dataset, options))
    except Exception as exc:  # user objects raise anything when pickled
        culprit = _find_culprit(dataset, options)
        if culprit is None:
            raise
        raise ConfigError(_describe(culprit, options.name)) from exc


def _can_be_sent(value: Any) -> bool:  # Any: of the user
    try:
        dumps_for_worker(value)
    except Exception:  # as above
        return False
    return True


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    """:return: (access path, part) of containers and datasets. Any: of the user"""
    if isinstance(value, Mapping):
        yield from ((f"[{key!r}]", part) for key, part in value.items())
    elif isinstance(value, (list, tuple, set)):
        yield from ((f"[{i}]", part) for i, part in enumerate(value))
    elif hasattr(value, "init_seq_order"):
        # (cls, kwargs, state) by the contract of Dataset.__reduce__
        try:
            _, (_, kwargs, *_) = value.__reduce__()[:2]
        except Exception:  # an own __reduce__ of another form: not to be looked into
            return
        if isinstance(kwargs, Mapping):
            yield from ((f" option {key!r}", part) for key, part in kwargs.items())


def _find_culprit(dataset: Dataset, options: SourceOptions) -> tuple[str, Any] | None:
    """:return: (where, the smallest part that cannot be sent). Any: of the user"""
    path, value = "", None
    if not _can_be_sent(None):
        return None  # the config itself, which goes along with everything
    for name, start in (("dataset", dataset), ("batching", vars(options))):
        if not _can_be_sent(start):
            path, value = name, start
            break
    else:
        return None
    seen: set[int] = set()
    while id(value) not in seen:
        seen.add(id(value))
        for name, part in _parts(value):
            if not _can_be_sent(part):
                path, value = path + name, part
                break
        else:
            break
    return path, value


def _describe(culprit: tuple[str, Any], name: str) -> str:
    path, value = culprit
    code = getattr(value, "__code__", None)
    if code is not None:
        what = f"function {value.__qualname__} ({code.co_filename}:{code.co_firstlineno})"
    else:
        shown = repr(value)
        what = f"{type(value).__name__} {shown if len(shown) < 100 else shown[:100] + '...'}"
    todo = "Define it at the top level of the config or of a module, or set num_workers_per_gpu = 0."
    try:
        pickle.dumps(value)
        reason = "it does not work together with the config"
    except UserError as exc:  # says itself what to do
        reason = str(exc).rstrip(".")
        todo = "With num_workers_per_gpu = 0 it is not sent anywhere."
    except Exception as exc:  # as above
        reason = str(exc).rstrip(".")
    return f"dataset {name!r}: {path} cannot be sent to a worker process: {what}.\nThe reason: {reason}.\n{todo}"
