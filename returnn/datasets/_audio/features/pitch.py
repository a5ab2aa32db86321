"""Fundamental frequency by the WORLD vocoder (DIO, refined by StoneMask)."""

from __future__ import annotations

import numpy

from returnn.errors import DatasetOptionError, describe
from returnn.util.optional_import import optional_import

__all__ = ["FundamentalFrequency"]


class FundamentalFrequency:
    """Feature type "f0": one value in Hz per frame; 0 where there is no voice. M. Morise et al., 2009 and 2016."""

    def __init__(self, *, step_len: float, fmin: float | None = None, fmax: float | None = None):
        """
        :param step_len: in seconds
        :param fmin: lowest frequency to be found, in Hz
        :param fmax: highest
        :raises DatasetOptionError: fmin or fmax is missing
        """
        if fmin is None or fmax is None:
            raise DatasetOptionError(
                describe(
                    'features "f0" needs fmin and fmax',
                    where='option "audio": feature_options',
                    expected="numbers in Hz",
                    got={"fmin": fmin, "fmax": fmax},
                    todo='E.g. feature_options = {"fmin": 80, "fmax": 400}',
                )
            )
        self.step_len = step_len
        self.fmin = fmin
        self.fmax = fmax

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """
        :param audio: ``[time]``, float64
        :param sample_rate: in Hz
        :param where: the sequence, for error texts
        :return: ``[frames, 1]``, float32
        :raises MissingDependencyError: there is no pyworld
        """
        pyworld = optional_import("pyworld", needed_by='the option "audio" with features "f0"')
        estimate, times = pyworld.dio(
            audio, sample_rate, f0_floor=self.fmin, f0_ceil=self.fmax, frame_period=self.step_len * 1000
        )
        freqs = pyworld.stonemask(audio, estimate, times, sample_rate)
        return numpy.nan_to_num(freqs, nan=0.0).astype(numpy.float32)[:, None]
