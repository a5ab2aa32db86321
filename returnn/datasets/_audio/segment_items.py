"""Segments of a Bliss corpus by recording, sorted and merged: what ``tools/bliss-get-segment-names.py`` lists."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Collection, Iterable, Iterator, Sequence
from decimal import Decimal

from returnn.datasets.util.bliss import BlissSegment
from returnn.errors import DatasetError

__all__ = ["ATTRIBUTES", "SegmentItem", "iter_segment_items", "seq_len_of_segment"]


@dataclasses.dataclass(frozen=True)
class SegmentItem:
    """
    A segment, or several merged ones.

    :param segment_name: names joined by ";"
    :param recording_filename: of the (first) recording
    :param start_time: in seconds; 0 if merged
    :param end_time: in seconds; the sum of durations if merged
    :param orth: texts joined by a blank
    """

    segment_name: str
    recording_filename: str
    start_time: Decimal
    end_time: Decimal
    orth: str

    @property
    def delta_time(self) -> Decimal:
        """:return: duration in seconds"""
        return self.end_time - self.start_time

    def text(self, attribute: str) -> str:
        """:return: one of ATTRIBUTES; times as floats"""
        value = getattr(self, attribute)
        return str(float(value)) if isinstance(value, Decimal) else str(value)


ATTRIBUTES = ("segment_name", "recording_filename", "start_time", "end_time", "orth", "delta_time")


def iter_segment_items(
    segments: Iterable[BlissSegment],
    *,
    merge_swb_ab: bool = False,
    sort_by_time: bool = False,
    merge_segs_up_to_time: float | None = None,
    subset: Collection[str] | None = None,
) -> Iterator[SegmentItem]:
    """
    :param segments: of a corpus
    :param merge_swb_ab: recordings whose names differ only in A or B at the end (two channels) are one group
    :param sort_by_time: sort by start time in each group
    :param merge_segs_up_to_time: merge consecutive segments of a group while the sum of their durations is not more
        than these seconds
    :param subset: only segments with these names
    :return: group after group, in the order of the corpus
    """
    groups: dict[str, list[SegmentItem]] = {}
    for segment in segments:
        if subset is not None and segment.name not in subset:
            continue
        audio = segment.audio or ""
        item = SegmentItem(segment.name, audio, segment.start, segment.end, segment.orth)
        groups.setdefault(_group_name(audio or segment.recording_name, merge_swb_ab), []).append(item)
    limit = None if merge_segs_up_to_time is None else Decimal(repr(float(merge_segs_up_to_time)))
    for items in groups.values():
        if sort_by_time:
            items.sort(key=lambda item: item.start_time)
        yield from items if limit is None else _merged(items, limit)


def _group_name(recording: str, merge_swb_ab: bool) -> str:
    if not merge_swb_ab:
        return recording
    stem, ext = os.path.splitext(recording)
    return stem[:-1] + ext if stem.endswith(("A", "B")) else recording


def _merged(items: Sequence[SegmentItem], limit: Decimal) -> Iterator[SegmentItem]:
    start = 0
    total = Decimal(0)
    for i, item in enumerate(items):
        if i > start and total + item.delta_time > limit:
            yield _merge(items[start:i], total)
            start, total = i, Decimal(0)
        total += item.delta_time
    yield _merge(items[start:], total)


def _merge(items: Sequence[SegmentItem], total: Decimal) -> SegmentItem:
    if len(items) == 1:
        return items[0]
    return SegmentItem(
        ";".join(item.segment_name for item in items),
        items[0].recording_filename,
        Decimal(0),
        total,
        " ".join(item.orth for item in items if item.orth),
    )


def seq_len_of_segment(segment: BlissSegment) -> int:
    """
    :return: number of frames of 10 ms, rounded
    :raises DatasetError: the segment has no end
    """
    if not segment.end.is_finite():
        raise DatasetError(
            f"The length of segment {segment.name!r} is not known: it has no end time. Add it to the corpus."
        )
    return round((segment.end - segment.start) * 100)
