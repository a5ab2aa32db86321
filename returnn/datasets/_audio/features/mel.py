"""Mel filter bank with the scale and normalization of Slaney's Auditory Toolbox, as librosa has it by default."""

from __future__ import annotations

import math

import numpy

from returnn.datasets._audio.features.products import matmul_in_one_thread

__all__ = ["mel_filter_bank", "MelFilters"]

#: below this frequency the scale is linear
_LINEAR_BELOW_HZ = 1000.0
_HZ_PER_MEL = 200.0 / 3
_LOG_STEP = math.log(6.4) / 27
#: neighbouring filters, which are computed by one matrix product: wider, and there are more zeros in it
_FILTERS_PER_PRODUCT = 16


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
    bins = numpy.arange(n_fft // 2 + 1)[:, None] * (sample_rate / n_fft)  # if n_fft is odd, the last is below the half
    corners = _mel_to_hz(numpy.linspace(_hz_to_mel(fmin), _hz_to_mel(fmax), num_filters + 2))
    left, middle, right = corners[:-2], corners[1:-1], corners[2:]
    weights = numpy.minimum((bins - left) / (middle - left), (right - bins) / (right - middle))
    return (numpy.maximum(0, weights) * (2 / (right - left))).astype(numpy.float32)


class MelFilters:
    """
    A filter bank, to be applied to powers. Each filter covers only few of the bins, so there is one small matrix product
    for each group of neighbouring filters, instead of a large one.
    """

    def __init__(self, weights: numpy.ndarray):
        """
        :param weights: ``[bins, filters]``
        """
        used = numpy.flatnonzero(weights.any(axis=1))
        #: which bins have any weight
        self.bins = _range_of(used)
        weights = weights[self.bins]
        self._groups: list[tuple[slice, slice, numpy.ndarray]] = []
        for start in range(0, weights.shape[1], _FILTERS_PER_PRODUCT):
            filters = slice(start, start + _FILTERS_PER_PRODUCT)
            bins = _range_of(numpy.flatnonzero(weights[:, filters].any(axis=1)))
            self._groups.append((bins, filters, numpy.ascontiguousarray(weights[bins, filters])))

    @property
    def num_bins(self) -> int:
        """:return: length of :attr:`bins`"""
        return self.bins.stop - self.bins.start

    def apply(self, powers: numpy.ndarray, *, out: numpy.ndarray) -> None:
        """
        :param powers: ``[frames, num_bins]``: those of :attr:`bins`
        :param out: ``[frames, filters]``
        """
        for bins, filters, weights in self._groups:
            matmul_in_one_thread(powers[:, bins], weights, out=out[:, filters])


def _range_of(indices: numpy.ndarray) -> slice:
    """:return: from the first to the last one; one element if there is none"""
    return slice(int(indices[0]), int(indices[-1]) + 1) if len(indices) else slice(0, 1)
