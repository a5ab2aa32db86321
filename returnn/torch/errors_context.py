"""Adds to an exception of user code where in the data it happened."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from returnn.log import log

__all__ = ["add_batch_note", "add_oom_note", "add_seq_note"]


def add_batch_note(exc: Exception, *, epoch: int, data: Mapping[str, Any]) -> None:
    """
    :param exc: raised in a step; gets a note that the traceback shows
    :param epoch: current one
    :param data: raw batch. Any: tensors and lists
    """
    tags = [str(t) for t in data.get("seq_tag", ())]
    shapes = {k: tuple(v.shape) for k, v in data.items() if hasattr(v, "shape") and ":size" not in k}
    note = f"in epoch {epoch}, sequences {', '.join(tags[:5])}{' ...' if len(tags) > 5 else ''}; shapes {shapes}"
    _add_note(exc, note)


def add_seq_note(exc: Exception, *, what: str, seq_tag: str) -> None:
    """
    :param exc: raised by user code that works on one sequence; gets a note that the traceback shows
    :param what: which code
    :param seq_tag: of the sequence
    """
    _add_note(exc, f"in {what}, sequence {seq_tag!r}")


def add_oom_note(exc: Exception) -> None:
    """:param exc: the device has too little memory for a batch in forward; gets a note that tells what to do"""
    _add_note(
        exc, "forward_auto_split_batch_on_oom = True splits such batches; batch_size and max_seqs make all smaller."
    )


def _add_note(exc: Exception, note: str) -> None:
    if hasattr(exc, "add_note"):  # Python 3.11
        exc.add_note(note)
    else:
        print(f"{type(exc).__name__} {note}", file=log.v1)
