"""What ConcatSeqsDataset does with the frames of each part of a sequence, as index arrays."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from returnn.errors import DatasetError

__all__ = ["PartOptions", "Parts"]


@dataclasses.dataclass(frozen=True)
class PartOptions:
    """
    What is done with all parts of a sequence but the last, in this order.

    :param postfix: stream -> label that ends each part, and is removed
    :param target_multiple: stream -> (target stream, m): cut, or filled up with the last frame, to m frames per frame of
        the target, counted before the postfix is removed
    :param multiple: stream -> m: filled up with the last frame to a multiple of m
    """

    postfix: Mapping[str, int]
    target_multiple: Mapping[str, tuple[str, int]]
    multiple: Mapping[str, int]

    def touches(self, stream: str) -> bool:
        """:return: whether anything is done with the stream"""
        return stream in self.postfix or stream in self.target_multiple or stream in self.multiple


@dataclasses.dataclass(frozen=True)
class Parts:
    """
    Parts of some sequences, in order.

    :param is_last: bool [P], the last part of its sequence
    :param tag_of: tag of a part, for errors
    :param where: for errors
    """

    is_last: np.ndarray
    tag_of: Callable[[int], str]
    where: str

    def new_lens(self, stream: str, lens: Mapping[str, np.ndarray], options: PartOptions) -> np.ndarray:
        """
        :param stream: data key
        :param lens: int64 [P] of the stream, and of the targets which the options name
        :param options: what to do
        :return: int64 [P]
        :raises DatasetError: a part is too short for it
        """
        result = lens[stream].copy()
        inner = ~self.is_last
        if stream in options.postfix:
            self._need_frames(stream, result, inner, "has no last label to remove")
            result[inner] -= 1
        if stream in options.target_multiple:
            target, factor = options.target_multiple[stream]
            wanted = lens[target] * factor
            self._need_frames(stream, result, inner & (wanted > 0), "has no last frame to repeat")
            result[inner] = wanted[inner]
        if stream in options.multiple:
            factor = options.multiple[stream]
            result[inner] += -result[inner] % factor
        return result

    def _need_frames(self, stream: str, lens: np.ndarray, which: np.ndarray, problem: str) -> None:
        empty = np.flatnonzero(which & (lens == 0))
        if len(empty):
            raise DatasetError(
                f"{self.where}: stream {stream!r} of {self.tag_of(int(empty[0]))!r} is empty, so it {problem}."
            )

    def take_frames(
        self, stream: str, flat: np.ndarray, lens: Mapping[str, np.ndarray], options: PartOptions
    ) -> tuple[np.ndarray, np.ndarray]:
        """
        :param stream: data key
        :param flat: all frames of all parts
        :param lens: see :func:`new_lens`
        :param options: what to do
        :return: frames, int64 [P] how many of each part
        :raises DatasetError: a part has not the postfix
        """
        old = lens[stream]
        if not options.touches(stream) or self.is_last.all():
            return flat, old
        new = self.new_lens(stream, lens, options)
        starts = np.cumsum(old) - old
        kept = old
        if stream in options.postfix:
            self._check_postfix(stream, flat, starts + old - 1, options.postfix[stream])
            kept = old - ~self.is_last
        if stream in options.target_multiple:
            target, factor = options.target_multiple[stream]
            kept = np.where(self.is_last, kept, np.minimum(kept, lens[target] * factor))
        if np.array_equal(new, old) and np.array_equal(kept, old):
            return flat, new
        in_part = np.arange(int(new.sum())) - np.repeat(np.cumsum(new) - new, new)
        # Beyond the end: the last frame again.
        frames = np.repeat(starts, new) + np.minimum(in_part, np.repeat(kept - 1, new))
        return flat[frames], new

    def _check_postfix(self, stream: str, flat: np.ndarray, last_frames: np.ndarray, label: int) -> None:
        if flat.ndim != 1:
            raise DatasetError(
                f"{self.where}: remove_in_between_postfix needs labels, but stream {stream!r} has {flat.ndim} axes."
            )
        inner = np.flatnonzero(~self.is_last)
        wrong = inner[flat[last_frames[inner]] != label]
        if len(wrong):
            idx = int(wrong[0])
            raise DatasetError(
                f"{self.where}: remove_in_between_postfix: stream {stream!r} of {self.tag_of(idx)!r} does not end with the"
                f" label {label}, but with {flat[last_frames[idx]]}."
            )
