"""Cut a signal into overlapping frames, block by block, so that long signals need little memory."""

from __future__ import annotations

from collections.abc import Iterator

import numpy

from returnn.errors import DatasetError, describe

__all__ = ["num_frames_of", "iter_frame_blocks", "hann_window"]

#: samples of the frames of one block together: what is computed from a block then stays in the cache of the CPU
_BLOCK_SAMPLES = 100_000


def hann_window(num_samples: int) -> numpy.ndarray:
    """:return: periodic Hann window ``0.5 - 0.5 cos(2 pi n / N)``, ``[num_samples]``"""
    return 0.5 - 0.5 * numpy.cos(2 * numpy.pi * numpy.arange(num_samples) / num_samples)


def num_frames_of(num_samples: int, *, frame_len: int, hop: int, center: bool, where: str) -> int:
    """
    :param num_samples: length of the signal
    :param frame_len: in samples
    :param hop: from one frame to the next, in samples
    :param center: there are frame_len // 2 zeros before and after the signal
    :param where: the sequence, for error texts
    :return: number of complete frames
    :raises DatasetError: there is none
    """
    padded_len = num_samples + 2 * (frame_len // 2) if center else num_samples
    if num_samples < 1 or padded_len < frame_len:
        raise DatasetError(
            describe(
                "The audio is too short for one frame",
                where=where,
                expected=f"at least {1 if center else frame_len} samples (window_len; center={center})",
                got=num_samples,
                todo="Leave out the sequence, or use a shorter window_len",
            )
        )
    return 1 + (padded_len - frame_len) // hop


def iter_frame_blocks(
    audio: numpy.ndarray, *, num_frames: int, frame_len: int, hop: int, center: bool
) -> Iterator[tuple[slice, numpy.ndarray]]:
    """
    :param audio: ``[time]``, contiguous
    :param num_frames: see :func:`num_frames_of`
    :param frame_len: in samples
    :param hop: in samples
    :param center: pad with frame_len // 2 zeros on both sides
    :return: which frames, and their samples ``[frames, frame_len]``: a read-only view, where frames overlap in memory
    """
    pad = frame_len // 2 if center else 0
    frames_per_block = max(1, _BLOCK_SAMPLES // frame_len)
    for first in range(0, num_frames, frames_per_block):
        last = min(first + frames_per_block, num_frames)
        start, end = first * hop - pad, (last - 1) * hop - pad + frame_len
        if start >= 0 and end <= len(audio):
            part = audio[start:end]
        else:
            part = numpy.zeros(end - start, dtype=audio.dtype)
            part[max(0, -start) : len(audio) - start] = audio[max(0, start) : end]
        frames = numpy.lib.stride_tricks.sliding_window_view(part, frame_len)[::hop]
        yield slice(first, last), frames
