"""Learning rate and scores per epoch: the part that all control strategies share."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

from returnn._state import state
from returnn.errors import ConfigError
from returnn.log import log
from returnn.lr import lr_file
from returnn.lr.epoch_data import META_PREFIX, EpochData
from returnn.lr.scores import choose_error_key, last_best_epoch, measure_keys
from returnn.options.learning_rate import LearningRateOptions

if TYPE_CHECKING:
    from typing_extensions import Self

    from returnn.config import Config

__all__ = ["LearningRateControl", "Factor"]

#: A factor for the learning rate, or a function: old rate -> new rate.
Factor = float | Callable[[float], float]


class LearningRateControl:
    """
    Base class. Stores learning rate and scores of each epoch, in memory and in a file.

    A subclass defines :func:`calc_learning_rate_for_epoch`. This class itself can be used to read a file.
    """

    EpochData: ClassVar[type[EpochData]] = EpochData

    def __init__(
        self,
        default_learning_rate: float,
        min_learning_rate: float = 0.0,
        default_learning_rates: Sequence[float] | Mapping[int, float] | None = None,
        error_measure_key: str | Sequence[str] | None = None,
        relative_error_also_relative_to_learning_rate: bool = False,
        min_num_epochs_per_new_learning_rate: int = 0,
        relative_error_div_by_old: bool = False,
        learning_rate_decay: Factor = 1.0,
        learning_rate_growth: Factor = 1.0,
        filename: str | None = None,
        *,
        read_only: bool = False,
    ):
        """
        :param default_learning_rate: of the first epoch
        :param min_learning_rate: a decay does not go below
        :param default_learning_rates: fixed rates by epoch; a list starts at epoch 1
        :param error_measure_key: the score (or scores, by priority) that the strategy looks at; None: chosen by name
        :param relative_error_also_relative_to_learning_rate: a smaller rate is expected to improve less
        :param min_num_epochs_per_new_learning_rate: keep a new rate at least so long
        :param relative_error_div_by_old: relative to the old instead of the new error
        :param learning_rate_decay: factor, or function of the rate
        :param learning_rate_growth: factor, or function of the rate
        :param filename: where to keep the data. Read now if it exists. None: only in memory
        :param read_only: never write the file
        :raises DataFileError: the file is broken
        """
        self.epoch_data: dict[int, EpochData] = {}
        self.filename = os.fspath(filename) if filename else None
        self.read_only = read_only
        self.default_learning_rate = float(default_learning_rate)
        self.min_learning_rate = float(min_learning_rate)
        self.default_learning_rates = _rates_by_epoch(default_learning_rates)
        self._rates_given_as_list = isinstance(default_learning_rates, Sequence)
        self.error_measure_key = error_measure_key
        self.relative_error_also_relative_to_learning_rate = relative_error_also_relative_to_learning_rate
        self.min_num_epochs_per_new_learning_rate = min_num_epochs_per_new_learning_rate
        self.relative_error_div_by_old = relative_error_div_by_old
        self.learning_rate_decay = learning_rate_decay
        self.learning_rate_growth = learning_rate_growth
        self._warned_about_measure = False
        if self.filename and os.path.exists(self.filename):
            self.load()
        self._store_default_learning_rates()

    # --- construction from a config

    @classmethod
    def load_initial_from_config(cls, config: Config | Mapping[str, Any]) -> Self:
        """
        :param config: its learning-rate options are used, except the type
        :raises OptionError: an option is invalid
        """
        options = LearningRateOptions.from_config(config)
        return cls(**cls.kwargs_from_options(options))

    @classmethod
    def kwargs_from_options(cls, options: LearningRateOptions) -> dict[str, Any]:
        """
        :param options:
        :return: constructor arguments. Any: each has its own type
        """
        return {
            "default_learning_rate": options.learning_rate,
            "min_learning_rate": options.min_learning_rate,
            "default_learning_rates": options.learning_rates,
            "error_measure_key": options.error_measure,
            "relative_error_also_relative_to_learning_rate": options.relative_error_relative_lr,
            "min_num_epochs_per_new_learning_rate": options.min_num_epochs_per_new_lr,
            "relative_error_div_by_old": options.relative_error_div_by_old,
            "learning_rate_decay": options.decay,
            "learning_rate_growth": options.growth,
            "filename": options.filename,
            "read_only": not options.write_to_disk,
        }

    def _store_default_learning_rates(self) -> None:
        differing = []
        for epoch, rate in self.default_learning_rates.items():
            data = self.epoch_data.get(epoch)
            if data is None:
                self.epoch_data[epoch] = EpochData(rate)
            elif not data.learning_rate:
                data.learning_rate = rate
            elif data.learning_rate != rate:
                differing.append(epoch)
        if differing:
            first = differing[0]
            print(
                f"Learning-rate-control: warning: {self.filename} has other learning rates than the option "
                f"learning_rates in {len(differing)} epoch(s), first in epoch {first}: "
                f"{self.epoch_data[first].learning_rate} in the file, {self.default_learning_rates[first]} in the config. "
                "The file is used. Edit or remove the file to use the config.",
                file=log.v2,
            )

    def warn_if_learning_rates_end_early(self, num_epochs: int) -> bool:
        """
        Log a warning if a list of rates ends before the training, and nothing else than the last rate follows.

        :param num_epochs: last epoch of the training
        :return: whether there was a reason
        """
        num = len(self.default_learning_rates)
        if not self._rates_given_as_list or not 0 < num < num_epochs or self._uses_errors:
            return False
        print(
            f"Learning-rate-control: warning: learning_rates has {num} entries, but num_epochs is {num_epochs}. "
            f"The last one ({self.default_learning_rates[num]}) is used from epoch {num + 1} on.",
            file=log.v2,
        )
        return True

    #: Whether the strategy looks at scores.
    _uses_errors: ClassVar[bool] = True

    # --- learning rates

    def calc_learning_rate_for_epoch(self, epoch: int) -> float:
        """
        The rule of the strategy.

        :param epoch: from 1
        :return: learning rate, from the data of earlier epochs
        """
        raise NotImplementedError(f"{type(self).__name__} has no rule for learning rates")

    def calc_new_learning_rate_for_epoch(self, epoch: int) -> float:
        """
        The rule of the strategy, unless the last rate is too young to be changed.

        :param epoch: from 1
        """
        self._maybe_warn_about_measure(epoch)
        num = self.min_num_epochs_per_new_learning_rate
        if num > 1:
            rates = [self.epoch_data[ep].learning_rate for ep in self._epochs_before(epoch)[-num:]]
            if len(set(rates)) >= 2 or 0 < len(rates) < num:
                return self.default_learning_rate if rates[-1] is None else rates[-1]
        return self.calc_learning_rate_for_epoch(epoch)

    def get_learning_rate_for_epoch(self, epoch: int) -> float:
        """
        :param epoch: from 1
        :return: the stored rate, or a new one, which is then stored
        """
        assert epoch >= 1, f"epoch {epoch}"
        data = self.epoch_data.get(epoch)
        if data is not None and data.learning_rate is not None:
            return data.learning_rate
        rate = float(self.calc_new_learning_rate_for_epoch(epoch))
        if data is None:
            self.epoch_data[epoch] = EpochData(rate)
        else:
            data.learning_rate = rate
        return rate

    def get_most_recent_learning_rate(self, epoch: int, exclude_current: bool = True) -> float:
        """
        :param epoch: look at epochs before this one
        :param exclude_current: False: and at this one
        :return: the last rate that is known, or the default
        """
        for ep in reversed(self._epochs_before(epoch if exclude_current else epoch + 1)):
            rate = self.epoch_data[ep].learning_rate
            if rate is not None:
                return rate
        return self.default_learning_rate

    def get_last_epoch(self, epoch: int) -> int | None:
        """:return: the last epoch before the given one that is known"""
        epochs = self._epochs_before(epoch)
        return epochs[-1] if epochs else None

    def calc_learning_rate_decay_or_grow(self, learning_rate: float, decay: bool, grow: bool | None = None) -> float:
        """
        :param learning_rate: old one
        :param decay: make it smaller (not below min_learning_rate)
        :param grow: make it larger. None: if not decay
        :return: new one
        """
        if grow is None:
            grow = not decay
        assert not (decay and grow), "cannot decay and grow"
        if decay:
            return max(_apply(self.learning_rate_decay, learning_rate), self.min_learning_rate)
        if grow:
            return _apply(self.learning_rate_growth, learning_rate)
        return learning_rate

    def calc_relative_error(self, old_epoch: int, new_epoch: int) -> float | None:
        """
        :param old_epoch:
        :param new_epoch:
        :return: relative change of the error, negative for an improvement. None: not comparable
        """
        old_key, old_error = self.get_epoch_error_key_value(old_epoch)
        new_key, new_error = self.get_epoch_error_key_value(new_epoch)
        if old_error is None or new_error is None or old_key != new_key:
            return None
        relative_error = _divide(new_error - old_error, abs(old_error if self.relative_error_div_by_old else new_error))
        if self.relative_error_also_relative_to_learning_rate:
            rate = self.get_most_recent_learning_rate(new_epoch, exclude_current=False)
            # If the rate is lower than the initial one, smaller changes are expected.
            if rate > 0 and self.default_learning_rate > 0:
                relative_error /= rate / self.default_learning_rate
        return relative_error

    # --- scores

    def set_epoch_error(self, epoch: int, error: Mapping[str, Any]) -> None:
        """
        Add scores of an epoch to those that it already has.

        :param epoch: from 1
        :param error: score key -> number, or score key -> {"cost:output": number}; ":meta:..." -> anything
        :raises TypeError: a score is not a number
        """
        if epoch not in self.epoch_data:
            self.get_learning_rate_for_epoch(epoch)
        flat: dict[str, Any] = {}
        for key, value in error.items():
            if not isinstance(value, Mapping) or key.startswith(":"):
                flat[key] = value
            elif len(value) == 1:
                flat[key] = next(iter(value.values()))
            else:
                for name, sub_value in value.items():
                    flat[f"{key}_{name.split(':', 1)[-1]}"] = sub_value
        self.epoch_data[epoch].update(flat)
        if epoch == 1:
            scores = {key: value for key, value in flat.items() if not key.startswith(META_PREFIX)}
            print(
                f"Learning-rate-control: error key {self.get_error_key(epoch)!r} from {scores!r}",
                file=log.v4,
            )

    def get_error_key(self, epoch: int) -> str | None:
        """
        :param epoch:
        :return: the key of the score that the strategies look at
        """
        measures = self._measures()
        if epoch not in self.epoch_data:
            return measures[0] if measures else None
        error = self.epoch_data[epoch].error
        if not error:
            return None
        return choose_error_key(error, measures)

    def get_epoch_error_dict(self, epoch: int) -> dict[str, float]:
        """:return: all scores of the epoch; empty if there are none"""
        return self.epoch_data[epoch].error if epoch in self.epoch_data else {}

    def get_epoch_error_value(self, epoch: int) -> float | None:
        """:return: the score that the strategies look at, None if there is none"""
        return self.get_epoch_error_key_value(epoch)[1]

    def get_epoch_error_key_value(self, epoch: int) -> tuple[str | None, float | None]:
        """:return: key and value of the score that the strategies look at"""
        error = self.get_epoch_error_dict(epoch)
        if not error:
            return None, None
        key = self.get_error_key(epoch)
        assert key is not None
        return key, error.get(key)

    def get_last_best_epoch(
        self,
        last_epoch: int,
        first_epoch: int = 1,
        only_last_epochs: int | None = None,
        filter_score: float = float("inf"),
        only_last_n: int = -1,
        min_score_dist: float = 0.0,
    ) -> int | None:
        """
        The best epoch that is better than the last one.

        :param last_epoch: inclusive
        :param first_epoch: inclusive
        :param only_last_epochs: consider only so many epochs up to last_epoch
        :param filter_score: ignore epochs with a higher score
        :param only_last_n: of the remaining ones, consider only the last n; -1: all
        :param min_score_dist: the best one must be better than the last one by more than this
        :return: epoch, None if there is none
        """
        if only_last_epochs is not None:
            first_epoch = max(first_epoch, last_epoch - only_last_epochs + 1)
        return last_best_epoch(
            [(ep, *self.get_epoch_error_key_value(ep)) for ep in range(first_epoch, last_epoch + 1)],
            filter_score=filter_score,
            only_last_n=only_last_n,
            min_score_dist=min_score_dist,
        )

    def _measures(self) -> list[str]:
        if not self.error_measure_key:
            return []
        return [self.error_measure_key] if isinstance(self.error_measure_key, str) else list(self.error_measure_key)

    def _maybe_warn_about_measure(self, epoch: int) -> None:
        """The configured score does not exist: the peers take another one without a word."""
        last = self.get_last_epoch(epoch)
        measures = self._measures()
        if self._warned_about_measure or last is None or not measures or not self._uses_errors:
            return
        error = self.epoch_data[last].error
        if error and not any(key in error for key in measure_keys(measures)):
            self._warned_about_measure = True
            print(
                f"Learning-rate-control: warning: learning_rate_control_error_measure = {self.error_measure_key!r} "
                f"is not among the scores of epoch {last}: {sorted(error)}. Using {self.get_error_key(last)!r}.",
                file=log.v1,
            )

    def _epochs_before(self, epoch: int) -> list[int]:
        return sorted(ep for ep in self.epoch_data if ep < epoch)

    # --- file

    def save(self) -> None:
        """Write the file, if there is one, so that it is always whole."""
        if self.filename and not self.read_only and state.rank == 0:
            lr_file.save(self.filename, self.epoch_data)

    def load(self) -> None:
        """
        Replace all data by the content of the file.

        :raises DataFileError: missing or broken
        """
        if not self.filename:
            raise ConfigError('The learning-rate control has no file. Set e.g. learning_rate_file = "learning_rates".')
        self.epoch_data = lr_file.load(self.filename)

    def to_text(self) -> str:
        """:return: all data, in the format of the file"""
        return lr_file.dumps(self.epoch_data)

    def update_from_text(self, text: str, *, source: str) -> None:
        """
        Take over epochs and scores that are not known yet. A stored rate wins over one of the config.

        :param text: from :func:`to_text`
        :param source: file name, for the error message
        :raises DataFileError: wrong format
        """
        for epoch, data in lr_file.loads(text, filename=source).items():
            own = self.epoch_data.get(epoch)
            if own is None or not own.error:
                if own is not None and data.learning_rate is None:
                    data.learning_rate = own.learning_rate
                self.epoch_data[epoch] = data
                continue
            own.error = {**data.error, **own.error}
            own.meta = {**data.meta, **own.meta}

    def describe(self) -> str:
        """:return: one line for the log: strategy, first rates, what it looks at, file"""
        parts = [type(self).__name__, f"learning rate {self.default_learning_rate}"]
        if self.default_learning_rates:
            # The file goes before the option.
            stored = {epoch: data.learning_rate for epoch, data in self.epoch_data.items()}
            rates = [(epoch, stored.get(epoch) or rate) for epoch, rate in self.default_learning_rates.items()]
            shown = ", ".join(f"{rate} (epoch {epoch})" for epoch, rate in rates[:3])
            parts[1] = f"learning rates {shown}{', ...' if len(rates) > 3 else ''}"
        if self._uses_errors:
            parts.append(f"error key {' or '.join(self._measures()) or 'automatic'}")
        parts.append(
            f"file {self.filename}"
            if self.filename
            else "no learning_rate_file (scores are only in the log and in the checkpoints)"
        )
        return ", ".join(parts)

    def __repr__(self) -> str:
        names = ("default_learning_rate", "min_learning_rate", "error_measure_key", "filename")
        args = ", ".join(f"{name}={getattr(self, name)!r}" for name in names)
        return f"{type(self).__name__}({args}, epochs={len(self.epoch_data)})"

    __str__ = __repr__


def _rates_by_epoch(rates: Sequence[float] | Mapping[int, float] | None) -> dict[int, float]:
    if rates is None:
        return {}
    items = rates.items() if isinstance(rates, Mapping) else enumerate(rates, 1)
    return {int(epoch): float(rate) for epoch, rate in items}


def _apply(factor: Factor, learning_rate: float) -> float:
    return float(factor(learning_rate)) if callable(factor) else learning_rate * float(factor)


def _divide(a: float, b: float) -> float:
    if b == 0:
        return 0.0 if a == 0 else float("inf") * (1 if a > 0 else -1)
    return a / b
