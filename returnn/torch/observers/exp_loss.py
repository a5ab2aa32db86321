"""The option calculate_exp_loss."""

from __future__ import annotations

import math
from collections.abc import Mapping

from returnn.torch.observers.base import PassObserver

__all__ = ["ExpLoss", "safe_exp"]


def safe_exp(value: float) -> float:
    """:return: exp(value), inf if it is too large"""
    try:
        return math.exp(value)
    except OverflowError:
        return math.inf


class ExpLoss(PassObserver):
    """Reports exp(value) of each loss that is no error, e.g. the perplexity for a cross entropy."""

    def more_losses(self, losses: Mapping[str, float], *, errors: frozenset[str]) -> Mapping[str, float]:
        """:return: ``<name>:exp``"""
        return {f"{name}:exp": safe_exp(value) for name, value in losses.items() if name not in errors}
