"""
Statistics of a pass over a data loader.
"""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping
from typing import Any

from returnn.datasets._loading.len_filter import DropReason, LenFilter
from returnn.datasets._loading.source import BatchInfo

__all__ = ["LoaderStats"]


@dataclasses.dataclass
class LoaderStats:
    """
    Numbers of the current or newest pass.

    num_seqs_dropped is complete when the pass is.
    """

    num_seqs: int | None = None  # of the epoch, before filter and chunking; None: not known
    num_batches: int = 0  # given so far
    num_seqs_seen: int = 0  # sequences (or chunks) in them
    frames: Counter[str] = dataclasses.field(default_factory=Counter)  # per data key, without padding
    padded_frames: Counter[str] = dataclasses.field(default_factory=Counter)  # per data key, with padding
    #: By reason ("too short", "too long", "no chunk", "drop_last") and data key (None: not about a key).
    num_seqs_dropped: Counter[DropReason] = dataclasses.field(default_factory=Counter)
    secs_waited: float = 0.0  # time that the loop waited for data
    len_filter: LenFilter | None = None  # for the text
    complete_frac: float | None = None  # 0..1: how much of the epoch is done; None: not known

    def add(self, info: BatchInfo) -> None:
        """Count a batch that is given now."""
        self.num_batches += 1
        self.num_seqs_seen += info.num_seqs
        for key, count in info.frames.items():
            self.frames[key] += count
            self.padded_frames[key] += info.padded_frames[key]
        if info.complete_frac is not None:
            self.complete_frac = max(self.complete_frac or 0.0, info.complete_frac)

    def to_plain(self) -> dict[str, Any]:
        """:return: all but the filter, for a checkpoint. Any: numbers, and lists and dicts of them"""
        return {
            "num_seqs": self.num_seqs,
            "num_batches": self.num_batches,
            "num_seqs_seen": self.num_seqs_seen,
            "frames": {key: int(count) for key, count in self.frames.items()},
            "padded_frames": {key: int(count) for key, count in self.padded_frames.items()},
            "num_seqs_dropped": [[reason, key, count] for (reason, key), count in self.num_seqs_dropped.items()],
            "secs_waited": self.secs_waited,
            "complete_frac": None if self.complete_frac is None else float(self.complete_frac),
        }

    @classmethod
    def from_plain(cls, value: Mapping[str, Any], *, len_filter: LenFilter | None) -> LoaderStats:
        """
        :param value: of :func:`to_plain`. Any: as there
        :param len_filter: for the text
        """
        fields = {**value, "len_filter": len_filter}
        fields["frames"] = Counter(value["frames"])
        fields["padded_frames"] = Counter(value["padded_frames"])
        fields["num_seqs_dropped"] = Counter({(reason, key): n for reason, key, n in value["num_seqs_dropped"]})
        return cls(**fields)

    @property
    def padding_ratio(self) -> float | None:
        """:return: 0..1: share of padding in all frames of all keys; None: no frames so far"""
        padded = sum(self.padded_frames.values())
        return 1.0 - sum(self.frames.values()) / padded if padded else None

    def padding_ratios(self) -> dict[str, float]:
        """:return: per data key"""
        return {key: 1.0 - self.frames[key] / padded for key, padded in self.padded_frames.items() if padded}

    def dropped_text(self) -> str | None:
        """:return: e.g. ``3 of 50 seqs: 2 data longer than 10, 1 no chunk``; None: nothing dropped"""
        total = sum(self.num_seqs_dropped.values())
        if not total:
            return None
        parts = []
        for (reason, key), count in sorted(self.num_seqs_dropped.items(), key=lambda item: -item[1]):
            parts.append(f"{count} {key + ' ' if key else ''}{self._reason_text(reason, key)}")
        of_all = f" of {self.num_seqs}" if self.num_seqs is not None else ""
        return f"{total}{of_all} seqs: " + ", ".join(parts)

    def _reason_text(self, reason: str, key: str | None) -> str:
        if reason == "drop_last":
            return "in the last batch (batch_drop_last)"
        limit = self.len_filter.limit_of(reason, key) if self.len_filter is not None and key else None
        if limit is not None:
            return f"{'shorter' if reason == 'too short' else 'longer'} than {limit}"
        return reason
