"""How fast each rank is, and which one is the slowest: one line per epoch."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Sequence

__all__ = ["RankSpeed", "speed_line"]

#: Up to so many ranks, each is listed.
_MAX_LISTED = 8
_NUM_SLOWEST = 3


@dataclasses.dataclass(frozen=True)
class RankSpeed:
    """
    One pass of one rank.

    :param rank: which
    :param num_seqs: it had
    :param secs: the pass took
    :param secs_waited: thereof waiting for data
    :param secs_busy: thereof at work by itself, without waiting for other ranks: for data, and computing losses; 0: unknown
    """

    rank: int
    num_seqs: int
    secs: float
    secs_waited: float
    secs_busy: float = 0.0

    @property
    def seqs_per_sec(self) -> float:
        """:return: sequences per second of the whole pass"""
        return self.num_seqs / max(self.secs, 1e-9)

    @property
    def wait_share(self) -> float:
        """:return: share of the time waiting for data, 0 to 1"""
        return min(self.secs_waited / max(self.secs, 1e-9), 1.0)

    def text(self) -> str:
        """:return: e.g. ``rank 1 120 seqs/s, 3.0% waiting for data``"""
        return f"rank {self.rank} {self.seqs_per_sec:.4g} seqs/s, {self.wait_share:.1%} waiting for data"


def slowest_first(speeds: Sequence[RankSpeed]) -> list[RankSpeed]:
    """
    The ranks go in step, so all take the same time; the slow one is that for which the others wait.

    :param speeds: of all ranks
    :return: those that were longest at work by themselves first, then those that waited longest for data
    """
    return sorted(speeds, key=lambda s: (-(s.secs_busy or s.secs_waited), -s.secs_waited, s.rank))


def speed_line(prefix: str, speeds: Sequence[RankSpeed]) -> str:
    """
    :param prefix: of the pass
    :param speeds: of all ranks, at least one
    :return: the line of the log. Few ranks are listed; of many: least, median and most, and the slowest
    """
    total = sum(s.seqs_per_sec for s in speeds)
    order = slowest_first(speeds)
    text = f"{prefix}: {len(speeds)} ranks, {total:.4g} seqs/s in all: "
    if len(speeds) <= _MAX_LISTED:
        text += "; ".join(s.text() for s in speeds)
        return f"{text}; slowest: rank {order[0].rank}{_own_share(order[0])}"
    rates = [s.seqs_per_sec for s in speeds]
    waits = [s.wait_share for s in speeds]
    text += f"seqs/s per rank min {min(rates):.4g}, median {statistics.median(rates):.4g}, max {max(rates):.4g}; "
    text += f"waiting for data min {min(waits):.1%}, median {statistics.median(waits):.1%}, max {max(waits):.1%}; "
    return text + "slowest: " + "; ".join(s.text() + _own_share(s) for s in order[:_NUM_SLOWEST])


def _own_share(speed: RankSpeed) -> str:
    if not speed.secs_busy:
        return ""
    return f" (at work by itself {min(speed.secs_busy / max(speed.secs, 1e-9), 1.0):.1%} of the time)"
