"""Feature functions on the spectrum: mel filter banks, cepstral coefficients, and the linear spectrogram."""

from __future__ import annotations

import abc
import math
from collections.abc import Iterator
from typing import Any

import numpy

from returnn.datasets._audio.features.frames import hann_window, iter_frame_blocks, num_frames_of
from returnn.datasets._audio.features.mel import MelFilters, mel_filter_bank
from returnn.datasets._audio.features.products import matmul_in_one_thread
from returnn.errors import DatasetError, describe

__all__ = ["SpectralFeatures", "LogMel", "LogLogMel", "DbMel", "Mfcc", "LinearSpectrogram"]

#: factor from the natural logarithm to 10 * log10
_DB = 10 / math.log(10)
#: values which are less by this than the largest one of the sequence are raised, in dB
_TOP_DB = 80.0
#: frames that are converted to float64 at once
_FRAMES_OF_DCT = 512


class SpectralFeatures(abc.ABC):
    """
    Features of one type, with its options. Windows and filters are kept per sample rate, but not pickled.

    The Fourier transform is in float64 (numpy's is even faster than in float32), powers and filters are float32:
    all terms of these sums are positive, so that the relative error stays below 1e-6.
    """

    def __init__(self, *, window_len: float, step_len: float, dim: int, center: bool = True):
        """
        :param window_len: in seconds
        :param step_len: in seconds
        :param dim: of the result
        :param center: pad the audio by half a window of zeros on both sides
        """
        self.window_len = window_len
        self.step_len = step_len
        self.dim = dim
        self.center = center
        self._tables: dict[int, Any] = {}  # Any: each class has its own table

    def __getstate__(self) -> dict[str, Any]:
        """:return: all but the tables. Any: attributes"""
        return {**self.__dict__, "_tables": {}}

    def _get_tables(self, sample_rate: int, *, where: str) -> Any:
        """:return: what :func:`_make_tables` gave for this rate. Any: see there"""
        tables = self._tables.get(sample_rate)
        if tables is None:
            tables = self._tables[sample_rate] = self._make_tables(sample_rate, where=where)
        return tables

    @abc.abstractmethod
    def _make_tables(self, sample_rate: int, *, where: str) -> Any:
        """:return: what depends only on the rate. Any: each class has its own"""

    @abc.abstractmethod
    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """
        :param audio: ``[time]``, float64
        :param sample_rate: in Hz
        :param where: the sequence, for error texts
        :return: ``[frames, dim]``, float32
        """

    def _window_samples(self, sample_rate: int) -> int:
        return self._num_samples("window_len", self.window_len, sample_rate)

    def _hop_samples(self, sample_rate: int) -> int:
        return self._num_samples("step_len", self.step_len, sample_rate)

    @staticmethod
    def _num_samples(option: str, secs: float, sample_rate: int) -> int:
        num_samples = int(secs * sample_rate)
        if num_samples < 1:
            raise DatasetError(
                describe(
                    f"{option} is less than one sample at a sample rate of {sample_rate} Hz",
                    where='option "audio"',
                    expected="seconds",
                    got=secs,
                )
            )
        return num_samples


class _MelFeatures(SpectralFeatures):
    """What is computed from mel powers."""

    def __init__(self, *, n_mels: int | None = None, fmin: float = 0.0, fmax: float | None = None, **options: Any):
        """
        :param n_mels: number of mel filters; default: dim
        :param fmin: of the filters, in Hz
        :param fmax: of the filters, in Hz; default: half of the sample rate
        :param options: of the base class. Any: passed on
        """
        super().__init__(**options)
        self.n_mels = n_mels or self.dim
        self.fmin = fmin
        self.fmax = fmax

    def _make_tables(self, sample_rate: int, *, where: str) -> tuple[numpy.ndarray, MelFilters]:
        """:return: window, filters"""
        n_fft = self._window_samples(sample_rate)
        fmax = sample_rate / 2 if self.fmax is None else self.fmax
        if not self.fmin < fmax:
            raise DatasetError(
                describe(
                    f"feature_options: fmin must be below fmax at a sample rate of {sample_rate} Hz",
                    where=where,
                    expected=f"fmin < {fmax:g}",
                    got=self.fmin,
                )
            )
        weights = mel_filter_bank(
            sample_rate=sample_rate, n_fft=n_fft, num_filters=self.n_mels, fmin=self.fmin, fmax=fmax
        )
        return hann_window(n_fft), MelFilters(weights)

    def _iter_mel_powers(
        self, audio: numpy.ndarray, sample_rate: int, *, out: numpy.ndarray, where: str
    ) -> Iterator[tuple[slice, numpy.ndarray, numpy.ndarray]]:
        """
        :param out: ``[frames, n_mels]``, float32, gets the powers, block by block
        :return: which frames, their samples, and their powers, i.e. this part of out
        """
        window, filters = self._get_tables(sample_rate, where=where)
        hop, frame_len = self._hop_samples(sample_rate), len(window)
        windowed = powers = numpy.empty((0, 0))
        for block, frames in iter_frame_blocks(
            audio, num_frames=len(out), frame_len=frame_len, hop=hop, center=self.center
        ):
            if len(windowed) < len(frames):
                windowed = numpy.empty((len(frames), frame_len))
                powers = numpy.empty((len(frames), filters.num_bins), dtype=numpy.float32)
            spectrum = numpy.fft.rfft(numpy.multiply(frames, window, out=windowed[: len(frames)]))[:, filters.bins]
            squares = spectrum.view(numpy.float64)  # real and imaginary parts in turn
            numpy.square(squares, out=squares)
            power = powers[: len(frames)]
            numpy.add(squares[:, 0::2], squares[:, 1::2], out=power, casting="same_kind")
            filters.apply(power, out=out[block])
            yield block, frames, out[block]

    def _new_result(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """:return: ``[frames, n_mels]``, float32, to be filled"""
        num_frames = num_frames_of(
            len(audio),
            frame_len=self._window_samples(sample_rate),
            hop=self._hop_samples(sample_rate),
            center=self.center,
            where=where,
        )
        return numpy.empty((num_frames, self.n_mels), dtype=numpy.float32)


def _log_in_place(values: numpy.ndarray, *, minimum: float, factor: float = 1.0) -> None:
    """values = factor * ln(max(minimum, values))"""
    numpy.maximum(values, minimum, out=values)
    numpy.log(values, out=values)
    if factor != 1:
        values *= factor


class LogMel(_MelFeatures):
    """``ln(max(1e-3, mel power))``"""

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """See the base class."""
        result = self._new_result(audio, sample_rate, where=where)
        for _, _, powers in self._iter_mel_powers(audio, sample_rate, out=result, where=where):
            _log_in_place(powers, minimum=1e-3)
        return result


class LogLogMel(LogMel):
    """The amplitude in dB of the values of :class:`LogMel`, at most 80 dB below the largest. Not monotonic in the power."""

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """See the base class."""
        result = super().__call__(audio, sample_rate, where=where)
        numpy.abs(result, out=result)
        _log_in_place(result, minimum=1e-5, factor=2 * _DB)
        return numpy.maximum(result, result.max() - _TOP_DB, out=result)


class DbMel(_MelFeatures):
    """``20 log10(max(min_amp, mel power))``: a factor for amplitudes, but on powers, as the peers have it."""

    def __init__(self, *, min_amp: float = 1e-10, **options: Any):
        """
        :param min_amp: smaller powers count as this
        :param options: of the base class. Any: passed on
        """
        super().__init__(**options)
        self.min_amp = min_amp

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """See the base class."""
        result = self._new_result(audio, sample_rate, where=where)
        for _, _, powers in self._iter_mel_powers(audio, sample_rate, out=result, where=where):
            _log_in_place(powers, minimum=self.min_amp, factor=2 * _DB)
        return result


class Mfcc(_MelFeatures):
    """
    Cepstral coefficients: the orthonormal DCT-II of the mel powers in dB, which are at most 80 dB below the largest.
    Coefficient 0 is replaced by the energy of the frame, ``sqrt(mean(x ** 2))`` without window.
    """

    def __init__(self, **options: Any):
        """:param options: of the base class. Any: passed on"""
        super().__init__(**options)
        mels = (numpy.arange(self.n_mels) + 0.5)[:, None]
        dct = numpy.cos(numpy.pi / self.n_mels * mels * numpy.arange(self.dim)) * math.sqrt(2 / self.n_mels)
        dct[:, 0] *= math.sqrt(0.5)
        self._dct = dct

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """See the base class."""
        mels = self._new_result(audio, sample_rate, where=where)
        energies = numpy.empty(len(mels))
        for block, frames, powers in self._iter_mel_powers(audio, sample_rate, out=mels, where=where):
            _log_in_place(powers, minimum=1e-10, factor=_DB)
            numpy.einsum("tn,tn->t", frames, frames, out=energies[block])
        numpy.maximum(mels, mels.max() - _TOP_DB, out=mels)
        result = numpy.empty((len(mels), self.dim), dtype=numpy.float32)
        for start in range(0, len(mels), _FRAMES_OF_DCT):
            # In float64, because the terms have both signs: in float32 the error can be 2e-4.
            block = slice(start, start + _FRAMES_OF_DCT)
            part = numpy.empty((len(mels[block]), self.dim))
            matmul_in_one_thread(mels[block].astype(numpy.float64), self._dct, out=part)
            result[block] = part
        result[:, 0] = numpy.sqrt(energies / self._window_samples(sample_rate))
        return result


class LinearSpectrogram(SpectralFeatures):
    """
    Absolute values of the Fourier transform of length ``2 * dim``, without the bin of frequency 0.
    The window of window_len is in its middle.
    """

    def _make_tables(self, sample_rate: int, *, where: str) -> numpy.ndarray:
        """:return: window ``[2 * dim]``"""
        window_samples, n_fft = self._window_samples(sample_rate), 2 * self.dim
        if window_samples > n_fft:
            raise DatasetError(
                describe(
                    f'num_feature_filters is too small for features "linear_spectrogram" with {window_samples} samples'
                    f" of window_len at {sample_rate} Hz",
                    where=where,
                    expected=f"even number >= {math.ceil(window_samples / 2)}",
                    got=self.dim,
                )
            )
        window = numpy.zeros(n_fft)
        start = (n_fft - window_samples) // 2
        window[start : start + window_samples] = hann_window(window_samples)
        return window

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """See the base class."""
        window = self._get_tables(sample_rate, where=where)
        frame_len, hop = len(window), self._hop_samples(sample_rate)
        num_frames = num_frames_of(len(audio), frame_len=frame_len, hop=hop, center=self.center, where=where)
        result = numpy.empty((num_frames, self.dim), dtype=numpy.float32)
        for block, frames in iter_frame_blocks(
            audio, num_frames=num_frames, frame_len=frame_len, hop=hop, center=self.center
        ):
            spectrum = numpy.fft.rfft(frames * window)
            numpy.abs(spectrum[:, 1:], out=result[block], casting="same_kind")
        return result
