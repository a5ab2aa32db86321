"""
What all ranks must agree on before they train: where to start, from which files, with which learning rates.

Rank 0 decides. The other ranks need not see its files: what they lack they get from rank 0. Without other ranks, all functions
here only do what the single process needs.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Callable, Iterator
from typing import TypeVar

import torch
import torch.distributed as dist

from returnn.errors import CheckpointError
from returnn.learning_rate_control import LearningRateControl
from returnn.log import log
from returnn.torch.checkpoint import find_checkpoint_file
from returnn.torch.distributed.context import DistributedContext, get_distributed
from returnn.torch.rng_state import RngState, get_rng_state

__all__ = ["agreed_learning_rate", "first_rank_decides", "gather_rng_states", "share_learning_rates", "shared_file"]

T = TypeVar("T")

#: Files are sent in parts of this size.
_PART_BYTES = 64 * 2**20


def first_rank_decides(func: Callable[[], T]) -> T:
    """
    :param func: looks e.g. at files; called on rank 0 only
    :return: its result, on all ranks
    """
    ctx = get_distributed()
    if ctx is None:
        return func()
    result: T | None = func() if ctx.is_first else None
    return ctx.broadcast_object(result)  # type: ignore[return-value]


def share_learning_rates(lr_control: LearningRateControl | None) -> None:
    """:param lr_control: gets all learning rates and scores of that of rank 0, which may have read them from a file"""
    ctx = get_distributed()
    if ctx is None or lr_control is None:
        return
    text = ctx.broadcast_object(lr_control.to_text())
    if not ctx.is_first:
        lr_control.epoch_data.clear()
        lr_control.update_from_text(text, source="the learning rates of rank 0")


def agreed_learning_rate(lr_control: LearningRateControl, epoch: int) -> float:
    """
    :param lr_control: the same on all ranks, but functions of the user in it may be random
    :param epoch: that begins
    :return: its learning rate
    """
    own = lr_control.get_learning_rate_for_epoch(epoch)
    agreed = first_rank_decides(lambda: own)
    if agreed != own:
        lr_control.epoch_data[epoch].learning_rate = agreed
    return agreed


def gather_rng_states(own: RngState | None = None) -> list[RngState]:
    """
    :param own: state of this rank; None: as it is now
    :return: on rank 0 the states of the random generators of rank 1, 2, ...; else nothing
    """
    ctx = get_distributed()
    states = None if ctx is None else ctx.gather_objects(own or get_rng_state())
    return states[1:] if states else []


@contextlib.contextmanager
def shared_file(filename: str | None, *, is_model: bool) -> Iterator[str | None]:
    """
    All ranks must come here together.

    :param filename: that rank 0 will read; None: no file
    :param is_model: with or without suffix, see :func:`returnn.torch.checkpoint.find_checkpoint_file`
    :return: the same; on a rank that does not have the file, a temporary copy of that of rank 0
    """
    ctx = get_distributed()
    if ctx is None or filename is None:
        yield filename
        return
    path = _find(filename, is_model=is_model)
    paths = ctx.all_gather_objects(path)
    if paths[0] is None or None not in paths:
        yield filename  # rank 0 says what is wrong with it
        return
    missing = [rank for rank, other in enumerate(paths) if other is None]
    if ctx.is_first:
        print(
            f"{paths[0]} is not there for the ranks {missing[:5]} ({len(missing)} in all): they get it from rank 0.",
            file=log.v3,
        )
    with contextlib.ExitStack() as stack:
        own: str | None = None
        if path is None:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="returnn-checkpoint-"))
            own = os.path.join(folder, os.path.basename(paths[0]))
        _send(ctx, paths[0], own)
        yield own or filename


def _find(filename: str, *, is_model: bool) -> str | None:
    if not is_model:
        return filename if os.path.isfile(filename) else None
    try:
        return find_checkpoint_file(filename)
    except CheckpointError:
        return None


def _send(ctx: DistributedContext, source: str, target: str | None) -> None:
    """
    :param ctx: the ranks
    :param source: file of rank 0
    :param target: file to write; None: this rank needs none
    """
    size = ctx.broadcast_object(os.path.getsize(source) if ctx.is_first else 0)
    with contextlib.ExitStack() as stack:
        reader = stack.enter_context(open(source, "rb")) if ctx.is_first else None
        writer = stack.enter_context(open(target, "wb")) if target is not None else None
        for start in range(0, size, _PART_BYTES):
            num = min(_PART_BYTES, size - start)
            part = torch.empty(num, dtype=torch.uint8)
            if reader is not None:
                reader.readinto(part.numpy())  # type: ignore[arg-type]  # an array is a buffer
            dist.broadcast(part, src=0, group=ctx.object_group)
            if writer is not None:
                writer.write(part.numpy().data)
