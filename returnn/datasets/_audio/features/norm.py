"""Mean and standard deviation for the features, from options, from files, or of the sequence."""

from __future__ import annotations

import os
from typing import Any

import numpy

from returnn.errors import DataFileError, OptionError, describe

__all__ = ["PER_SEQ", "MIN_STD_DEV", "NormValue", "subtract_mean", "divide_by_std_dev"]

PER_SEQ = "per_seq"
#: smallest divisor for norm_std_dev="per_seq"
MIN_STD_DEV = 0.01


class NormValue:
    """One of norm_mean, norm_std_dev. A file is read at first use."""

    def __init__(self, option: str, value: Any, *, dim: int, join_frames: int, is_divisor: bool):
        """
        :param option: its name
        :param value: number, vector ``[dim]``, ``"per_seq"``, or name of a text file. Any: checked here
        :param dim: feature dimension
        :param join_frames: a vector is not possible if above 1, because frames are joined after the normalization
        :param is_divisor: must be > 0
        :raises OptionError: invalid value
        """
        self._option = option
        self._dim = dim
        self._join_frames = join_frames
        self._is_divisor = is_divisor
        self._filename: str | None = None
        self._value: numpy.ndarray | None = None
        if isinstance(value, (str, os.PathLike)):
            if value != PER_SEQ:
                self._filename = os.fspath(value)
        elif isinstance(value, (int, float, numpy.number)) and not isinstance(value, bool):
            self._value = self._checked(numpy.float32(value), where='option "audio"')
        elif isinstance(value, (numpy.ndarray, list, tuple)):
            vector = numpy.asarray(value)
            if vector.dtype.kind not in "fiu":
                raise self._error(value, where='option "audio"')
            self._value = self._checked(vector, where='option "audio"')
        else:
            raise self._error(value, where='option "audio"')

    def get(self) -> numpy.ndarray | None:
        """
        :return: number or ``[dim]``, float32; None for per_seq
        :raises DataFileError: the file is missing, or has no numbers
        :raises OptionError: of another dimension
        """
        if self._value is None and self._filename is not None:
            try:
                vector = numpy.loadtxt(self._filename, ndmin=1)
            except (OSError, ValueError) as exc:
                raise DataFileError(
                    describe(
                        f"Cannot read the file of the option {self._option!r} ({type(exc).__name__}: {exc})",
                        where=f'{self._filename}, option "audio"',
                        todo="It must be a text file with one number per line, as tools/dump-dataset.py --dump_stats "
                        "writes it",
                    )
                ) from exc
            self._value = self._checked(vector, where=f'{self._filename}, option "audio"')
        return self._value

    def _error(self, got: object, *, where: str, todo: str | None = None) -> OptionError:
        sign = " > 0" if self._is_divisor else ""
        return OptionError(
            self._option,
            expected=f'number{sign}, vector of {self._dim} numbers{sign}, "{PER_SEQ}", or name of a text file',
            got=got,
            where=where,
            todo=todo,
        )

    def _checked(self, value: Any, *, where: str) -> numpy.ndarray:
        """
        :param value: number or array. Any: numpy
        :return: float32
        """
        if numpy.ndim(value) > 0:
            if value.shape != (self._dim,):
                raise OptionError(
                    self._option,
                    expected=f"vector of the feature dimension, shape {(self._dim,)}",
                    got=value.shape,
                    where=where,
                    todo="The dimension is (with_delta + 1) * num_feature_filters * join_frames",
                )
            if self._join_frames > 1:
                raise self._error(
                    f"vector with join_frames={self._join_frames}",
                    where=where,
                    todo="Frames are joined after the normalization, so a vector cannot fit. Use a number or "
                    f'"{PER_SEQ}", or normalize with a function as post_process',
                )
        if not numpy.all(numpy.isfinite(value)) or (self._is_divisor and not numpy.all(numpy.asarray(value) > 0)):
            raise self._error(value, where=where)
        return numpy.asarray(value, dtype=numpy.float32)


def subtract_mean(features: numpy.ndarray, norm: NormValue) -> numpy.ndarray:
    """
    :param features: ``[time, ..., dim]``, float32
    :param norm: option norm_mean
    :return: same shape
    """
    mean = norm.get()
    if mean is None:
        if not len(features):
            return features
        mean = numpy.asarray(numpy.mean(features, axis=0, dtype=numpy.float64), dtype=numpy.float32)
    return features - mean


def divide_by_std_dev(features: numpy.ndarray, norm: NormValue) -> numpy.ndarray:
    """
    :param features: ``[time, ..., dim]``, float32
    :param norm: option norm_std_dev
    :return: same shape
    """
    std_dev = norm.get()
    if std_dev is None:
        if not len(features):
            return features
        std_dev = numpy.maximum(numpy.std(features, axis=0, dtype=numpy.float64), MIN_STD_DEV).astype(numpy.float32)
    return features / std_dev
