"""Mel filter bank with the scale and normalization of Slaney's Auditory Toolbox, as librosa has it by default."""

from __future__ import annotations

import math

import numpy

__all__ = ["mel_filter_bank"]

#: below this frequency the scale is linear
_LINEAR_BELOW_HZ = 1000.0
_HZ_PER_MEL = 200.0 / 3
_LOG_STEP = math.log(6.4) / 27


def _hz_to_mel(hz: float) -> float:
    if hz < _LINEAR_BELOW_HZ:
        return hz / _HZ_PER_MEL
    return _LINEAR_BELOW_HZ / _HZ_PER_MEL + math.log(hz / _LINEAR_BELOW_HZ) / _LOG_STEP


def _mel_to_hz(mel: numpy.ndarray) -> numpy.ndarray:
    mel_of_limit = _LINEAR_BELOW_HZ / _HZ_PER_MEL
    return numpy.where(
        mel < mel_of_limit,
        mel * _HZ_PER_MEL,
        _LINEAR_BELOW_HZ * numpy.exp(_LOG_STEP * (numpy.maximum(mel, mel_of_limit) - mel_of_limit)),
    )


def mel_filter_bank(*, sample_rate: int, n_fft: int, num_filters: int, fmin: float, fmax: float) -> numpy.ndarray:
    """
    Triangles whose corners are equidistant on the mel scale; each has the area of 2 Hz / 2 (``2 / (right - left)``).

    :param sample_rate: in Hz
    :param n_fft: length of the Fourier transform, in samples
    :param num_filters: number of triangles
    :param fmin: left corner of the first, in Hz
    :param fmax: right corner of the last, in Hz
    :return: weights ``[n_fft // 2 + 1, num_filters]``, float32
    """
    bins = numpy.linspace(0, sample_rate / 2, n_fft // 2 + 1)[:, None]
    corners = _mel_to_hz(numpy.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), num_filters + 2))
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    weights = numpy.minimum((bins - left) / (middle - left), (right - bins) / (right - middle))
    return (numpy.maximum(0, weights) * (2 / (right - left))).astype(numpy.float32)
