"""Which feature function belongs to the name in the option features, and which options it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, Protocol

import numpy

from returnn.datasets._audio.features.pitch import FundamentalFrequency
from returnn.datasets._audio.features.spectral import DbMel, LinearSpectrogram, LogLogMel, LogMel, Mfcc
from returnn.errors import DatasetOptionError, MissingDependencyError, OptionError, describe

__all__ = ["FeatureFunction", "RAW", "make_feature_function"]

RAW = "raw"
_WHERE = 'option "audio"'
_MEL_OPTIONS = ("center", "fmin", "fmax")
#: name -> keys of feature_options
_FEATURE_OPTIONS: Mapping[str, tuple[str, ...]] = {
    RAW: (),
    "mfcc": ("n_mels", *_MEL_OPTIONS),
    "log_mel_filterbank": _MEL_OPTIONS,
    "log_log_mel_filterbank": _MEL_OPTIONS,
    "db_mel_filterbank": ("min_amp", *_MEL_OPTIONS),
    "linear_spectrogram": ("center",),
    "f0": ("fmin", "fmax"),
}


class FeatureFunction(Protocol):
    """Computes the features of one sequence."""

    def __call__(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """
        :param audio: ``[time]``, float64
        :param sample_rate: in Hz
        :param where: the sequence, for error texts
        :return: ``[frames, dim]``, float32
        """
        ...


def make_feature_function(
    features: str, *, window_len: float, step_len: float, dim: int, feature_options: Mapping[str, Any]
) -> FeatureFunction | None:
    """
    :param features: name
    :param window_len: in seconds
    :param step_len: in seconds
    :param dim: num_feature_filters
    :param feature_options: of the function. Any: checked here
    :return: the function; None for "raw"
    :raises OptionError: unknown name, or invalid value
    :raises DatasetOptionError: unknown key in feature_options
    :raises MissingDependencyError: "raw_ogg"
    """
    if features == "raw_ogg":
        raise MissingDependencyError(
            describe(
                'features "raw_ogg" is not available, because it needs the library ParseOggVorbis of RETURNN',
                where=_WHERE,
                todo='Use e.g. features="log_mel_filterbank"',
            )
        )
    if not isinstance(features, str) or features not in _FEATURE_OPTIONS:
        raise OptionError(
            "features",
            expected=f"one of {list(_FEATURE_OPTIONS)}, or a function",
            got=features,
            where=_WHERE,
            todo=f"non-supported feature type {features!r}",
        )
    allowed = _FEATURE_OPTIONS[features]
    unknown = [key for key in feature_options if key not in allowed]
    if unknown:
        raise DatasetOptionError(
            describe(
                f'feature_options has unknown keys {unknown} for features "{features}"',
                where=_WHERE,
                expected=f"keys of {list(allowed)}" if allowed else "none",
                got=dict(feature_options),
            )
        )
    _check_values(features, feature_options, dim=dim)
    if features == RAW:
        return None
    if features == "f0":
        return FundamentalFrequency(step_len=step_len, **feature_options)
    options: dict[str, Any] = {"window_len": window_len, "step_len": step_len, "dim": dim}  # Any: of each class
    if features == "linear_spectrogram":
        return LinearSpectrogram(**options, **feature_options)
    if features == "mfcc":
        return Mfcc(**{**options, "n_mels": 128, **feature_options})
    if features == "db_mel_filterbank":
        return DbMel(**options, **feature_options)
    return (LogMel if features == "log_mel_filterbank" else LogLogMel)(**options, **feature_options)


def _is_number(value: Any) -> bool:
    # Any: of an option
    return isinstance(value, (int, float, numpy.number)) and not isinstance(value, bool)


def _check_values(features: str, feature_options: Mapping[str, Any], *, dim: int) -> None:
    """:raises OptionError: of a value in feature_options, or of num_feature_filters. Any: checked here"""
    rules: dict[str, tuple[str, Callable[[Any], bool]]] = {
        "center": ("bool", lambda value: isinstance(value, (bool, numpy.bool_))),
        "fmin": ("Hz >= 0", lambda value: _is_number(value) and value >= 0),
        "fmax": ("Hz > 0, or None", lambda value: value is None or (_is_number(value) and value > 0)),
        "min_amp": ("number > 0", lambda value: _is_number(value) and value > 0),
        "n_mels": ("int > 0", lambda value: isinstance(value, (int, numpy.integer)) and bool(value > 0)),
    }
    for key, value in feature_options.items():
        expected, is_valid = rules[key]
        if not (is_valid(value) or (value is None and features == "f0")):
            raise OptionError(f"feature_options[{key!r}]", expected=expected, got=value, where=_WHERE)
    fixed_dim = {RAW: 1, "f0": 1}.get(features)
    if fixed_dim not in (None, dim):
        raise OptionError(
            "num_feature_filters", expected=f'{fixed_dim} for features "{features}"', got=dim, where=_WHERE
        )
    if features == "linear_spectrogram" and dim % 2 != 0:
        raise OptionError("num_feature_filters", expected=f'an even number for "{features}"', got=dim, where=_WHERE)
    n_mels = feature_options.get("n_mels", 128)
    if features == "mfcc" and n_mels < dim:
        raise OptionError(
            "num_feature_filters",
            expected=f'at most n_mels={n_mels} of feature_options for features "mfcc"',
            got=dim,
            where=_WHERE,
        )
