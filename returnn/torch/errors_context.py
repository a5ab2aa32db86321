"""Adds to an exception of user code where in the data it happened."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from returnn.engine.base import EngineBase

__all__ = ["error_context"]


@contextlib.contextmanager
def error_context(engine: EngineBase, data: Mapping[str, Any]) -> Iterator[None]:
    """
    :param engine: running the step
    :param data: raw batch
    """
    try:
        yield
    except Exception as exc:
        tags = [str(t) for t in data.get("seq_tag", ())]
        shapes = {k: tuple(v.shape) for k, v in data.items() if hasattr(v, "shape") and ":size" not in k}
        note = (
            f"in epoch {engine.epoch}, sequences {', '.join(tags[:5])}{' ...' if len(tags) > 5 else ''}; "
            f"shapes {shapes}"
        )
        if hasattr(exc, "add_note"):  # Python 3.11
            exc.add_note(note)
        raise
