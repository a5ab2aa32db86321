"""Stops that all ranks agree on, outside of training steps."""

from __future__ import annotations

from returnn.torch.distributed.context import get_distributed
from returnn.util import stop_request

__all__ = ["agreed_stop_reason"]


def agreed_stop_reason() -> str | None:
    """
    All ranks must come here together, e.g. at the end of a pass, or after the step that they agreed to stop after: the host
    waits for all. Without other ranks, the same as :func:`returnn.util.stop_request.requested`.

    :return: why a stop was requested, of the first rank of which one was, the same on all; None: of none
    """
    reason = stop_request.requested()
    ctx = get_distributed()
    if ctx is None:
        return reason
    reasons = ctx.all_gather_objects(reason)
    rank = next((rank for rank, other in enumerate(reasons) if other is not None), None)
    if rank is None:
        return None
    return reasons[rank] if all(other == reasons[rank] for other in reasons) else f"{reasons[rank]} on rank {rank}"
