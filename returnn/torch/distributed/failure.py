"""
The start of the watch over the ranks, and which exceptions may be the fault of another rank.
"""

from __future__ import annotations

import re
import socket

import torch.distributed

from returnn._state import state
from returnn.errors import DistributedError
from returnn.log import log
from returnn.torch.distributed.watchdog import RankWatch

__all__ = ["is_peer_error", "start_rank_watch", "end_rank_watch"]

#: Texts of RuntimeErrors that operations between ranks raise if the other end is gone or does not come (torch 2.6 to 2.13).
_PEER_TEXTS = re.compile(
    r"gloo/|\[c10d|TCPStore|ProcessGroup\w+|NCCL|ncclRemoteError|Connection (closed|reset) by peer|Broken pipe"
    r"|Socket (Timeout|Closed)|Timed out waiting|Application timeout|monitoredBarrier|Watchdog caught collective",
    re.IGNORECASE,
)


def is_peer_error(exc: BaseException) -> bool:
    """
    :param exc: that ends this rank
    :return: whether an operation with other ranks failed, or was not answered in time: then another rank may be the cause
    """
    seen: set[int] = set()
    current: BaseException | None = exc
    while current is not None and id(current) not in seen:
        seen.add(id(current))
        if isinstance(current, (torch.distributed.DistError, ConnectionError)):
            return True
        if isinstance(current, RuntimeError) and _PEER_TEXTS.search(str(current)):
            return True
        current = current.__cause__
    return False


def start_rank_watch(
    store: torch.distributed.Store | None, *, host: str | None, timeout_secs: float | None
) -> RankWatch | None:
    """
    Connect this rank to the others for messages about failures. To be called before the process group is made, so that
    no rank waits there for one that is gone.

    :param store: that all ranks have; None: that of the process group, which exists then
    :param host: where the others reach rank 0; None: as rank 0 calls its host itself
    :param timeout_secs: a rank that makes no step for so long within a pass has failed; None: no limit
    :return: the watch, which is also in ``state.rank_watch``; None: it runs already, or there is one rank only
    :raises DistributedError: rank 0 cannot be reached
    """
    if state.world_size <= 1 or state.rank_watch is not None:
        return None
    if store is None:
        store = torch.distributed.distributed_c10d._get_default_store()
    try:
        watch = RankWatch(
            rank=state.rank,
            size=state.world_size,
            store=store,
            host=host or socket.getfqdn(),
            timeout_secs=timeout_secs,
            is_peer_error=is_peer_error,
            on_line=lambda line: print(line, file=log.v2),
        )
    except OSError as exc:
        raise DistributedError(
            f"Rank {state.rank} cannot reach rank 0 on host {host}: {exc}. "
            "Check that the hosts of the ranks can connect to each other on any port."
        ) from exc
    state.rank_watch = watch
    return watch


def end_rank_watch(*, error: bool = False) -> None:
    """
    This rank ends. Does nothing without watch.

    :param error: an error ends the run
    """
    watch, state.rank_watch = state.rank_watch, None
    if watch is not None:
        watch.close(error=error)
