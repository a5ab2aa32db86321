"""Audio samples: decoding of a file, preemphasis, and normalization of the peak."""

from __future__ import annotations

import io
import math
from typing import IO

import numpy

from returnn.errors import DataFileError, describe
from returnn.util.optional_import import optional_import

__all__ = ["decode_audio", "is_cut_ogg", "apply_preemphasis", "normalize_peak"]

#: samples that are handled at once, so that intermediate results stay in the cache of the CPU
_BLOCK_SAMPLES = 1 << 14


def decode_audio(
    file: IO[bytes] | bytes, *, dtype: type[numpy.floating], with_channels: bool, where: str
) -> tuple[numpy.ndarray, int]:
    """
    :param file: an audio file in any format that libsndfile knows, or its content
    :param dtype: float32 or float64. The samples of 16 and 24 bit and Vorbis files are the same numbers in both
    :param with_channels: give the axis of channels also if there is only one
    :param where: the sequence, for error texts
    :return: samples in [-1, 1], ``[time]`` or ``[time, channel]`` (see with_channels), and the rate in Hz
    :raises DataFileError: it cannot be decoded
    :raises MissingDependencyError: there is no soundfile
    """
    soundfile = optional_import(
        "soundfile", needed_by='the option "audio" (ExtractAudioFeatures) to decode audio files'
    )
    if isinstance(file, bytes):  # soundfile would take it as a name
        file = io.BytesIO(file)
    try:
        audio, sample_rate = soundfile.read(file, dtype=numpy.dtype(dtype).name, always_2d=with_channels)
    # TypeError: no header, thus taken as headerless samples. The others: a header that claims an absurd length.
    except (soundfile.SoundFileError, TypeError, ValueError, MemoryError) as exc:
        problem = getattr(exc, "error_string", None) or exc  # without the repr of the buffer
        raise DataFileError(
            describe(
                f"The audio cannot be decoded ({type(exc).__name__}: {problem})",
                where=where,
                todo="It must be a complete file in a format of libsndfile, e.g. ogg vorbis, flac, wav",
            )
        ) from exc
    return audio, sample_rate


def is_cut_ogg(data: bytes) -> bool:
    """
    libsndfile leaves out, without an error, what comes after the last complete page. Format: RFC 3533, section 6.

    :param data: content of an audio file
    :return: it is an Ogg file, and its last page is not complete. A file that was cut between two pages is not noticed
    """
    if not data.startswith(b"OggS"):
        return False
    page = data.rfind(b"OggS")
    table = page + 27
    if len(data) < table:
        return True
    num_segments = data[table - 1]
    return len(data) < table + num_segments + sum(data[table : table + num_segments])


def apply_preemphasis(audio: numpy.ndarray, factor: float) -> None:
    """
    Replace the samples by ``y[0] = x[0]``, ``y[t] = x[t] - factor * x[t - 1]``, rounded once.

    :param audio: ``[time, ...]``, changed in place
    :param factor: e.g. 0.97
    """
    # From the end, because each block needs the old value before it.
    for end in range(len(audio), 1, -_BLOCK_SAMPLES):
        start = max(1, end - _BLOCK_SAMPLES)
        old = audio[start - 1 : end].astype(numpy.float64)
        new = old[:-1] * -factor
        new += old[1:]
        audio[start:end] = new


def normalize_peak(audio: numpy.ndarray, *, where: str) -> None:
    """
    Scale such that the largest absolute value, over all channels, is 1. Silence stays as it is.

    :param audio: any shape, changed in place
    :param where: the sequence, for error texts
    :raises DataFileError: there is an infinite value or NaN, or there are no samples
    """
    if not audio.size:
        raise DataFileError(
            describe(
                "The audio has no samples",
                where=where,
                todo="The file is empty or cut off: leave out the sequence",
            )
        )
    peak = float(max(audio.max(), -audio.min()))
    if not math.isfinite(peak):
        raise DataFileError(
            describe(
                "The audio cannot be normalized",
                where=where,
                expected="finite samples",
                got=peak,
                todo="The file has samples of type float, and is broken",
            )
        )
    if peak != 0:
        audio /= peak
