"""Random changes of audio: volume, speed and pitch."""

from __future__ import annotations

from collections.abc import Mapping

import numpy

from returnn.errors import MissingRandomStateError, OptionError, describe
from returnn.util.optional_import import optional_import

__all__ = ["RandomPermutation"]

_SWITCHED_DEFAULTS: Mapping[str, Mapping[str, float]] = {
    "rnd_zoom_switch": {"rnd_zoom_lower": 0.9, "rnd_zoom_upper": 1.1, "rnd_zoom_order": 3},
    "rnd_stretch_switch": {"rnd_stretch_lower": 0.9, "rnd_stretch_upper": 1.2},
    "rnd_pitch_switch": {"rnd_pitch_lower": -1.0, "rnd_pitch_upper": 1.0},
}
_SCALE_DEFAULTS: Mapping[str, float] = {"rnd_scale_lower": 0.8, "rnd_scale_upper": 1.0}
_DEFAULT_SWITCH = 0.2
_NEEDED_BY = 'the option "audio": random_permute'


class RandomPermutation:
    """
    The option random_permute, checked. Each sequence takes the same draws in the same order, as in the peers:
    the scale; then for each of zoom, stretch and pitch whether it is done, and only if so, how much.
    """

    def __init__(self, option: Mapping[str, float] | bool):
        """
        :param option: True, or dict with any of: ``rnd_scale_lower``, ``rnd_scale_upper``; the probabilities
            ``rnd_zoom_switch``, ``rnd_stretch_switch``, ``rnd_pitch_switch``; and for those that are not 0:
            ``rnd_zoom_lower``, ``rnd_zoom_upper``, ``rnd_zoom_order`` (of the spline, 0 to 5),
            ``rnd_stretch_lower``, ``rnd_stretch_upper`` (speed), ``rnd_pitch_lower``, ``rnd_pitch_upper`` (semitones)
        :raises OptionError: unknown or invalid entry
        """
        given = {} if option is True else option
        if not isinstance(given, Mapping):
            raise OptionError("random_permute", expected="None, bool or dict", got=option, where='option "audio"')
        self._options: dict[str, float] = {**_SCALE_DEFAULTS}
        useless = []
        for switch, defaults in _SWITCHED_DEFAULTS.items():
            self._options[switch] = given.get(switch, _DEFAULT_SWITCH)
            if self._options[switch] != 0:
                self._options.update(defaults)
            else:
                useless += [name for name in defaults if name in given]
        unknown = {name for name in given if name not in self._options}
        if unknown:
            raise OptionError(
                "random_permute",
                expected=f"keys of {sorted(self._options)}",
                got=dict(given),
                where='option "audio"',
                todo=f"The keys {unknown} were not read in the collection {dict(given)}"
                + (f"; {useless} have no effect, because their switch is 0" if useless else ""),
            )
        for name, value in given.items():
            if isinstance(value, (str, bytes)) or not numpy.isscalar(value) or not numpy.isfinite(value):
                raise OptionError(f"random_permute[{name!r}]", expected="number", got=value, where='option "audio"')
        self._options.update(given)

    @property
    def only_scales(self) -> bool:
        """:return: all other changes are switched off"""
        return all(self._options[switch] == 0 for switch in _SWITCHED_DEFAULTS)

    def __call__(
        self, audio: numpy.ndarray, sample_rate: int, *, random_state: numpy.random.RandomState | None, where: str
    ) -> numpy.ndarray:
        """
        :param audio: ``[time]`` or ``[time, channel]``, may be changed in place
        :param sample_rate: in Hz
        :param random_state: source of the draws
        :param where: the sequence, for error texts
        :return: audio of the same number of axes; the length can differ
        :raises MissingRandomStateError: no random_state
        :raises MissingDependencyError: scipy or librosa is needed, and missing
        """
        if random_state is None:
            raise MissingRandomStateError(
                describe(
                    "random_permute needs a random_state",
                    where=where,
                    todo="Datasets give it. In own code: ExtractAudioFeatures(..., random_state=numpy.random.RandomState(seed))",
                )
            )
        audio *= self._draw(random_state, "rnd_scale")
        if self._is_chosen(random_state, "rnd_zoom"):
            factor = self._draw(random_state, "rnd_zoom")
            ndimage = optional_import("scipy.ndimage", needed_by=f"{_NEEDED_BY} with rnd_zoom_switch")
            factors = (factor, *[1.0] * (audio.ndim - 1))
            audio = ndimage.zoom(audio, factors, order=int(self._options["rnd_zoom_order"]))
        if self._is_chosen(random_state, "rnd_stretch"):
            speed = self._draw(random_state, "rnd_stretch")
            effects = optional_import("librosa.effects", needed_by=f"{_NEEDED_BY} with rnd_stretch_switch")
            audio = effects.time_stretch(audio.T, rate=speed).T
        if self._is_chosen(random_state, "rnd_pitch"):
            num_semitones = self._draw(random_state, "rnd_pitch")
            effects = optional_import("librosa.effects", needed_by=f"{_NEEDED_BY} with rnd_pitch_switch")
            audio = effects.pitch_shift(audio.T, sr=sample_rate, n_steps=num_semitones).T
        return audio

    def _draw(self, random_state: numpy.random.RandomState, group: str) -> float:
        return random_state.uniform(self._options[f"{group}_lower"], self._options[f"{group}_upper"])

    def _is_chosen(self, random_state: numpy.random.RandomState, group: str) -> bool:
        return bool(random_state.uniform(0.0, 1.0) < self._options[f"{group}_switch"])
