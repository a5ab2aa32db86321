"""Features from audio files, e.g. for :class:`returnn.datasets.audio.OggZipDataset`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import IO, Any

import numpy

from returnn.datasets._audio.features.deltas import WIDTH as DELTA_WIDTH
from returnn.datasets._audio.features.deltas import with_deltas
from returnn.datasets._audio.features.factory import RAW, FeatureFunction, make_feature_function
from returnn.datasets._audio.features.joining import join_frames as join_successive_frames
from returnn.datasets._audio.features.norm import NormValue, divide_by_std_dev, subtract_mean
from returnn.datasets._audio.features.random_permute import RandomPermutation
from returnn.datasets._audio.features.waveform import apply_preemphasis, decode_audio, normalize_peak
from returnn.datasets._basic.jump import is_plain_function
from returnn.errors import DatasetError, OptionError, describe
from returnn.log import log

__all__ = ["ExtractAudioFeatures"]

_WHERE = 'option "audio"'


class ExtractAudioFeatures:
    """
    Decodes audio and computes features, in this order: decode, preemphasis, peak_normalization, random_permute,
    pre_process, features, with_delta, norm_mean, norm_std_dev, join_frames, post_process.

    The formulae are those of librosa with the settings of RETURNN. librosa itself is imported only if random_permute
    stretches or shifts the pitch, scipy only if it zooms.
    """

    def __init__(
        self,
        window_len: float = 0.025,
        step_len: float = 0.010,
        num_feature_filters: int | None = None,
        with_delta: bool | int = False,
        norm_mean: Any = None,
        norm_std_dev: Any = None,
        features: str | Callable[..., numpy.ndarray] = "mfcc",
        feature_options: Mapping[str, Any] | None = None,
        random_permute: Mapping[str, float] | bool | None = None,
        random_state: numpy.random.RandomState | None = None,
        raw_ogg_opts: Mapping[str, Any] | None = None,
        pre_process: Callable[..., numpy.ndarray] | None = None,
        post_process: Callable[..., numpy.ndarray] | None = None,
        sample_rate: float | None = None,
        num_channels: int | None = None,
        peak_normalization: bool = True,
        preemphasis: float | None = None,
        join_frames: int | None = None,
    ):
        """
        Any: of numbers or file names (norm_*), and options of a function (feature_options, raw_ogg_opts).

        :param window_len: in seconds
        :param step_len: from one frame to the next, in seconds
        :param num_feature_filters: dimension of the features without deltas and joining; default 1 for "raw", else 40
        :param with_delta: append the derivatives over time up to this order (True: 1, at most 8)
        :param norm_mean: subtracted: number, vector of the feature dimension, "per_seq", or a text file with the vector
        :param norm_std_dev: divisor, in the same forms; "per_seq" is at least 0.01
        :param features: "raw", "mfcc", "log_mel_filterbank", "log_log_mel_filterbank", "db_mel_filterbank",
            "linear_spectrogram", "f0", or a function, called with the keywords random_state, sample_rate, window_len,
            step_len, num_feature_filters, audio and the feature_options, for ``[frames, num_feature_filters]``
        :param feature_options: e.g. fmin, fmax, center of mel features, n_mels of "mfcc", min_amp of "db_mel_filterbank"
        :param random_permute: True or a nonempty dict: random scale, zoom, stretch and pitch, see
            :class:`returnn.datasets._audio.features.random_permute.RandomPermutation`
        :param random_state: for random_permute, pre_process and features. A dataset may set the attribute
            before each sequence
        :param raw_ogg_opts: of features "raw_ogg", which is not available
        :param pre_process: called with the keywords audio (float64 ``[time]``), sample_rate (Hz), random_state;
            gives audio
        :param post_process: called with the features and the keyword seq_name; gives features of the same dimension
        :param sample_rate: in Hz, which all files must have
        :param num_channels: which all files must have; only for "raw", and the result is then ``[time, channel, 1]``
        :param peak_normalization: scale the audio such that the largest absolute value is 1
        :param preemphasis: a in ``y[t] = x[t] - a * x[t - 1]``
        :param join_frames: join so many successive frames to one
        :raises OptionError: invalid value
        :raises DatasetOptionError: unknown key in feature_options
        :raises MissingDependencyError: "raw_ogg"
        """
        self.window_len = _checked_number("window_len", window_len, minimum=0.0)
        self.step_len = _checked_number("step_len", step_len, minimum=0.0)
        if num_feature_filters is None:
            num_feature_filters = 1 if features == RAW else 40
        self.num_feature_filters = _checked_count("num_feature_filters", num_feature_filters)
        self.with_delta = _checked_count(
            "with_delta", int(with_delta) if with_delta in (True, False) else with_delta, 0
        )
        if self.with_delta >= DELTA_WIDTH:
            raise OptionError("with_delta", expected=f"bool or int < {DELTA_WIDTH}", got=with_delta, where=_WHERE)
        self.sample_rate = None if sample_rate is None else _checked_number("sample_rate", sample_rate, minimum=0.0)
        self.num_channels = None if num_channels is None else _checked_count("num_channels", num_channels)
        if num_channels is not None and features != RAW:
            raise OptionError(
                "num_channels", expected='None with features other than "raw"', got=num_channels, where=_WHERE
            )
        if peak_normalization not in (True, False, None):
            raise OptionError("peak_normalization", expected="bool", got=peak_normalization, where=_WHERE)
        self.peak_normalization = bool(peak_normalization)
        self.preemphasis = _checked_number("preemphasis", preemphasis) if preemphasis else None
        self.join_frames = _checked_count("join_frames", join_frames) if join_frames else None
        self.random_state = random_state
        self.pre_process = _checked_function("pre_process", pre_process)
        self.post_process = _checked_function("post_process", post_process)
        self.features = features
        if feature_options is not None and not isinstance(feature_options, Mapping):
            raise OptionError("feature_options", expected="dict or None", got=feature_options, where=_WHERE)
        self.feature_options = dict(feature_options or {})
        self._feature_function: FeatureFunction | None = None
        if not callable(features):
            self._feature_function = make_feature_function(
                features,
                window_len=self.window_len,
                step_len=self.step_len,
                dim=self.num_feature_filters,
                feature_options=self.feature_options,
            )
        if raw_ogg_opts:
            print(f"{_WHERE}: raw_ogg_opts has no effect with features {features!r}", file=log.v2)
        self._random_permutation = RandomPermutation(random_permute) if random_permute else None
        self._norm_mean = self._make_norm("norm_mean", norm_mean)
        self._norm_std_dev = self._make_norm("norm_std_dev", norm_std_dev)
        # What float32 samples keep up to the last bit but one. Functions of the user get float64, as from the peers.
        only_scales = self._random_permutation is None or self._random_permutation.only_scales
        self._audio_dtype: type[numpy.floating] = (
            numpy.float32 if features == RAW and pre_process is None and only_scales else numpy.float64
        )

    def can_jump(self, *, per_seq: bool) -> bool:
        """
        :param per_seq: whether the dataset sets another random_state for each audio
        :return: whether the features of an audio do not depend on which ones were read before
        """
        functions = [func for func in (self.pre_process, self.post_process, self.features) if callable(func)]
        draws = self._random_permutation is not None or bool(functions)
        return (per_seq or not draws) and all(map(is_plain_function, functions))

    def _make_norm(self, option: str, value: Any) -> NormValue | None:
        """:param value: of the option. Any: see there"""
        if value is None:
            return None
        return NormValue(
            option,
            value,
            dim=self.get_feature_dimension(),
            join_frames=self.join_frames or 1,
            is_divisor=option == "norm_std_dev",
        )

    def get_feature_dimension(self) -> int:
        """:return: last axis of the features, with deltas and joined frames"""
        return (self.with_delta + 1) * self.num_feature_filters * (self.join_frames or 1)

    def get_audio_features_from_raw_bytes(
        self, raw_bytes: IO[bytes] | bytes, seq_name: str | None = None
    ) -> numpy.ndarray:
        """
        :param raw_bytes: content of an audio file (ogg, flac, wav, ...)
        :param seq_name: for post_process and error texts
        :return: see :func:`get_audio_features`
        :raises DataFileError: it cannot be decoded
        :raises DatasetError: see :func:`get_audio_features`
        :raises MissingDependencyError: there is no soundfile
        """
        audio, sample_rate = decode_audio(
            raw_bytes,
            dtype=self._audio_dtype,
            with_channels=self.num_channels is not None,
            where=_where(seq_name),
        )
        return self._compute(audio, sample_rate, seq_name=seq_name)

    def get_audio_features(self, audio: numpy.ndarray, sample_rate: int, seq_name: str | None = None) -> numpy.ndarray:
        """
        :param audio: ``[time]`` or ``[time, channel]``, is not changed
        :param sample_rate: in Hz
        :param seq_name: for post_process and error texts
        :return: float32 ``[frames, dim]``, or ``[frames, channel, dim]`` with num_channels
        :raises DatasetError: the audio does not fit to the options, or a function returned another shape
        :raises MissingRandomStateError: random_permute without random_state
        :raises MissingDependencyError: librosa, scipy or pyworld is needed by an option, and missing
        """
        copy = numpy.array(audio, dtype=self._audio_dtype, order="C")
        if self.num_channels == 1 and copy.ndim == 1:
            copy = copy[:, None]
        return self._compute(copy, sample_rate, seq_name=seq_name)

    def _compute(self, audio: numpy.ndarray, sample_rate: int, *, seq_name: str | None) -> numpy.ndarray:
        """
        :param audio: ``[time]`` or ``[time, channel]``, in the dtype of this object, may be changed
        :return: see :func:`get_audio_features`
        """
        where = _where(seq_name)
        self._check_audio(audio, sample_rate, where=where)
        if self.preemphasis:
            apply_preemphasis(audio, self.preemphasis)
        if self.peak_normalization:
            normalize_peak(audio, where=where)
        if self._random_permutation is not None:
            audio = self._random_permutation(audio, sample_rate, random_state=self.random_state, where=where)
        if self.pre_process is not None:
            audio = self._apply_pre_process(audio, sample_rate, where=where)
        features = self._compute_base_features(audio, sample_rate, where=where)
        if self.with_delta:
            features = with_deltas(features, self.with_delta, where=where)
        if self._norm_mean is not None:
            features = subtract_mean(features, self._norm_mean)
        if self._norm_std_dev is not None:
            features = divide_by_std_dev(features, self._norm_std_dev)
        if self.join_frames is not None and self.join_frames > 1:
            features = join_successive_frames(features, self.join_frames)
        if self.post_process is not None:
            features = self._apply_post_process(features, seq_name=seq_name)
        return features

    def _check_audio(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> None:
        if self.sample_rate is not None and sample_rate != self.sample_rate:
            raise DatasetError(
                describe(
                    "The audio has another sample rate than the option says; currently no conversion implemented",
                    where=where,
                    expected=f"{self.sample_rate:g} Hz",
                    got=sample_rate,
                    todo="Convert the files (e.g. bliss-to-ogg-zip.py --ffmpeg_resample), or change audio: sample_rate",
                )
            )
        num_channels = 1 if audio.ndim == 1 else audio.shape[1]
        if (
            audio.ndim not in (1, 2)
            or num_channels != (self.num_channels or 1)
            or (audio.ndim == 2) != (self.num_channels is not None)
        ):
            raise DatasetError(
                describe(
                    "The audio has another number of channels than expected",
                    where=where,
                    expected=f"{self.num_channels or 1} (num_channels={self.num_channels})",
                    got=num_channels,
                    todo=f'Use features "raw" with num_channels={num_channels}, or convert the files to one channel'
                    " (e.g. bliss-to-ogg-zip.py --number_of_channels 1)",
                )
            )

    def _compute_base_features(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """:return: ``[frames, (channel,) num_feature_filters]``, float32"""
        if callable(self.features):
            features = numpy.asarray(
                self.features(
                    random_state=self.random_state,
                    sample_rate=sample_rate,
                    window_len=self.window_len,
                    step_len=self.step_len,
                    num_feature_filters=self.num_feature_filters,
                    audio=audio,
                    **self.feature_options,
                ),
                dtype=numpy.float32,
            )
            if features.ndim != 2 or features.shape[1] != self.num_feature_filters:
                raise DatasetError(
                    describe(
                        "The function given as features returned another shape than expected",
                        where=where,
                        expected=f"[time, num_feature_filters={self.num_feature_filters}]",
                        got=features.shape,
                    )
                )
            return features
        if self._feature_function is None:
            return audio.astype(numpy.float32, copy=False)[..., None]
        return self._feature_function(numpy.ascontiguousarray(audio), sample_rate, where=where)

    def _apply_pre_process(self, audio: numpy.ndarray, sample_rate: int, *, where: str) -> numpy.ndarray:
        """:return: audio of the same number of axes, in the dtype of this object"""
        assert self.pre_process is not None
        processed = self.pre_process(audio=audio, sample_rate=sample_rate, random_state=self.random_state)
        if not isinstance(processed, numpy.ndarray) or processed.shape[1:] != audio.shape[1:] or processed.ndim < 1:
            raise DatasetError(
                describe(
                    "pre_process returned something else than audio",
                    where=where,
                    expected="numpy array [time]" if audio.ndim == 1 else f"numpy array [time, {audio.shape[1]}]",
                    got=processed.shape if isinstance(processed, numpy.ndarray) else processed,
                )
            )
        return processed.astype(self._audio_dtype, copy=False)

    def _apply_post_process(self, features: numpy.ndarray, *, seq_name: str | None) -> numpy.ndarray:
        """:return: features with the same number of axes and dimension"""
        assert self.post_process is not None
        processed = self.post_process(features, seq_name=seq_name)
        if (
            not isinstance(processed, numpy.ndarray)
            or processed.ndim != features.ndim
            or processed.shape[-1] != features.shape[-1]
        ):
            raise DatasetError(
                describe(
                    "post_process returned another shape than it got",
                    where=_where(seq_name),
                    expected=f"numpy array with {features.ndim} axes, the last one of {features.shape[-1]}",
                    got=processed.shape if isinstance(processed, numpy.ndarray) else processed,
                )
            )
        return processed


def _where(seq_name: str | None) -> str:
    return _WHERE if seq_name is None else f"seq {seq_name!r}, {_WHERE}"


def _checked_number(name: str, value: Any, *, minimum: float | None = None) -> float:
    """
    :param value: of an option. Any: checked here
    :param minimum: exclusive
    :return: finite number
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, (int, float, numpy.number))
        or not numpy.isfinite(value)
        or (minimum is not None and value <= minimum)
    ):
        limit = "" if minimum is None else f" > {minimum:g}"
        raise OptionError(name, expected=f"number{limit}", got=value, where=_WHERE)
    return float(value)


def _checked_count(name: str, value: Any, minimum: int = 1) -> int:
    """
    :param value: of an option. Any: checked here
    :return: int, at least minimum
    """
    if isinstance(value, bool) or not isinstance(value, (int, numpy.integer)) or value < minimum:
        raise OptionError(name, expected=f"int >= {minimum}", got=value, where=_WHERE)
    return int(value)


def _checked_function(name: str, value: Any) -> Callable[..., numpy.ndarray] | None:
    """:param value: of an option. Any: checked here"""
    if value is not None and not callable(value):
        raise OptionError(name, expected="function or None", got=value, where=_WHERE)
    return value
