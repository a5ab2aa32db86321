"""
What ended a run of several ranks: the first failure, with its rank, and the error file that torchrun's agent reads.

Standard library only, so that also an error before torch is imported can be reported.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from typing import Any, Literal

from returnn._state import state
from returnn.util.env import get_hostname

__all__ = ["FailureKind", "RankFailure", "rank_prefix", "prefix_lines", "write_error_file"]

#: error: an exception of its own; peer: an operation with other ranks failed, which may be the fault of another rank;
#: lost: the process is gone without a word; hang: no progress; left: it ended without error, but too early; stopped: by a signal
FailureKind = Literal["error", "peer", "lost", "hang", "left", "stopped"]

#: Set by torchrun's agent for each rank. Format: torch.distributed.elastic.multiprocessing.errors.ErrorHandler.
ERROR_FILE_VARIABLE = "TORCHELASTIC_ERROR_FILE"
#: The longest sentence that is sent to other ranks.
_MAX_CHARS = 4000


@dataclasses.dataclass(frozen=True)
class RankFailure:
    """
    How one rank failed.

    :param rank: which
    :param sentence: the last line of its report, e.g. ``ValueError: wrong``
    :param kind: see :data:`FailureKind`
    :param time: seconds since 1970
    :param host: where it ran
    :param pid: its process
    """

    rank: int
    sentence: str
    kind: FailureKind = "error"
    time: float = 0.0
    host: str = ""
    pid: int = 0

    @classmethod
    def here(cls, sentence: str, kind: FailureKind = "error") -> RankFailure:
        """:return: failure of this process, now"""
        return cls(state.rank, sentence[:_MAX_CHARS], kind, time.time(), get_hostname(), os.getpid())

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> RankFailure:  # Any: from JSON
        """
        :param values: of :func:`to_dict`
        :raises KeyError, TypeError, ValueError: it is something else
        """
        return cls(
            rank=int(values["rank"]),
            sentence=str(values["sentence"]),
            kind=values["kind"],
            time=float(values["time"]),
            host=str(values["host"]),
            pid=int(values["pid"]),
        )

    def to_dict(self) -> dict[str, Any]:  # Any: fields of several types
        """:return: for JSON"""
        return dataclasses.asdict(self)

    def __str__(self) -> str:
        return f"rank {self.rank} failed first: {self.sentence}"


def rank_prefix() -> str:
    """:return: what lines on the screen start with: ``[rank 1] `` with several ranks, else empty"""
    return f"[rank {state.rank}] " if state.world_size > 1 else ""


def prefix_lines(text: str) -> str:
    """:return: the text with :func:`rank_prefix` at the start of each line"""
    prefix = rank_prefix()
    return "".join(prefix + line for line in text.splitlines(keepends=True)) if prefix else text


def write_error_file(report: str, *, first: RankFailure | None = None, is_stop: bool = False) -> None:
    """
    Tell torchrun's agent what happened, for its final report. Without the agent nothing happens.

    The agent calls the error with the earliest time (in full seconds) the root cause; for a killed rank it takes the time
    when it looked. So a rank that failed because of another one says a later time.

    :param report: traceback and sentence; the sentence last
    :param first: the first failure of all, if that is another rank's
    :param is_stop: this rank was told to end, so another reason is more interesting
    """
    path = os.environ.get(ERROR_FILE_VARIABLE)
    if not path:
        return
    timestamp = int(time.time())
    if first is not None and first.rank != state.rank:
        timestamp = max(timestamp, int(first.time)) + 2
    elif is_stop:
        timestamp += 2
    sentence = report.strip().rsplit("\n", 1)[-1]
    message = {"message": sentence, "extraInfo": {"py_callstack": report.rstrip("\n"), "timestamp": str(timestamp)}}
    temp = f"{path}.tmp{os.getpid()}"
    try:
        with open(temp, "w", encoding="utf8") as file:
            json.dump({"message": message}, file)
        os.replace(temp, path)
    except OSError:  # the folder is gone, or the disk is full: the error itself is shown anyway
        return
